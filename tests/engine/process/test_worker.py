"""The worker: every request answered, bad ones too, cancels heard at once; and the true process end to end."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError, OutOfMemory
from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.measure.kinds.benchmark import Benchmark, BenchmarkFinished, BenchmarkRowMeasured
from engine.measure.kinds.evaluate import CaseEvaluated, Evaluate, EvaluationFinished
from engine.process import service as service_module
from engine.process.client import EngineClient
from engine.process.events import Cancel, EngineExited, Failed, Generate, Loaded, Ready, Shutdown, decode_event, encode
from engine.process.inbox import Inbox
from engine.process.service import Service, failure, is_out_of_memory
from engine.process.worker import Outlet, run
from engine.records import Cancelled, Event, Load, Progress, Request
from engine.weights.checkpoint import SMALL_MODEL_PARAMETERS
from tests.engine import oracle
from tests.engine.processes import exists
from tests.engine.reference import Reference
from tests.patience import PATIENCE_S, wait_until

ROOT = Path(__file__).parents[3]
STATE = oracle.random_state_dict()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model of the assignment's kind."""
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save({name: torch.from_numpy(values) for name, values in STATE.items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three cases with the oracle's logits; the last one is wrong by 0.5."""
    items = [
        {"input_ids": [ids], "expected_logits_no_cache": [(oracle.logits(STATE, ids) + wrong).tolist()]}
        for ids, wrong in (([3, 1, 4], 0.0), ([1, 5], 0.0), ([9, 2, 6, 5], 0.5))
    ]
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    path.write_text(json.dumps(items))
    return str(path)


def answer(request: Request, service: Service | None = None, **kwargs: Any) -> list[Event]:
    return list((service or Service()).answer(request, **kwargs))


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def once(events: list[Event]) -> list[str]:
    """The kinds of events, those in a row once: a busy machine says more often how far a load is."""
    return [kind for kind, _ in groupby(kinds(events))]


# --- the service ------------------------------------------------------------------------------------------


def test_generate_loads_once_and_again_for_another_model_or_dtype(weights: str) -> None:
    service = Service()
    ask = {"prompt_ids": (3, 1), "max_new_tokens": 2, "model": weights}
    first = answer(Generate(request_id=5, **ask), service)
    run_only = ["GenerationStarted", "TokenGenerated", "TokenGenerated", "GenerationFinished"]
    assert once(first) == ["Progress", "Loaded", *dict.fromkeys(run_only)]
    assert {event.request_id for event in first} == {5}
    assert kinds(answer(Generate(**ask), service)) == run_only
    assert once(answer(Generate(**ask, dtype="float64"), service))[:2] == ["Progress", "Loaded"]
    assert kinds(answer(Load(model=weights, dtype="float64"), service)) == ["Loaded"]


def test_a_file_that_changed_is_loaded_again(weights: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.pt"
    copy.write_bytes(Path(weights).read_bytes())
    service = Service()
    assert once(answer(Load(model=str(copy)), service)) == ["Progress", "Loaded"]
    os.utime(copy, ns=(1, 1))
    assert once(answer(Load(model=str(copy)), service)) == ["Progress", "Loaded"]


def test_loaded_describes_the_model(weights: str) -> None:
    loaded = answer(Load(model=weights, dtype="float64"))[-1]
    assert isinstance(loaded, Loaded)
    model = loaded.model
    vocab, width = STATE["token_embedding.weight"].shape
    assert (model.name, model.path) == ("small.pt", weights)
    assert (model.vocab_size, model.hidden_size, model.n_heads, model.n_kv_heads) == (vocab, width, 1, 1)
    assert model.max_positions == STATE["pos_embedding.weight"].shape[0]
    assert model.n_parameters == sum(values.size for values in STATE.values())
    assert model.weight_bytes == 8 * model.n_parameters
    assert model.kv_bytes_per_token == 2 * model.n_layers * width * 8
    assert (model.norm, model.learned_positions, model.has_tokenizer) == ("layernorm", True, False)
    assert model.load_ns is not None
    assert model.load_ns > 0


def test_greedy_tokens_are_the_oracles_with_and_without_the_cache(weights: str) -> None:
    ids = [3, 1, 4]
    expected = list(ids)
    for _ in range(4):
        expected.append(int(oracle.logits(STATE, expected)[-1].argmax()))
    for use_cache in (True, False):
        request = Generate(prompt_ids=tuple(ids), max_new_tokens=4, model=weights, dtype="float64", use_cache=use_cache)
        finished = answer(request)[-1]
        assert isinstance(finished, GenerationFinished)
        assert finished.ids == tuple(expected[3:])
        per_token = 2 * 2 * STATE["token_embedding.weight"].shape[1] * 8
        assert finished.kv_cache_bytes == (7 * per_token if use_cache else 0)


def test_the_bundled_model_continues_text() -> None:
    events = answer(Generate(prompt="The king", max_new_tokens=8))
    started = next(event for event in events if isinstance(event, GenerationStarted))
    finished = events[-1]
    assert isinstance(finished, GenerationFinished)
    assert started.prompt_text == "The king"
    assert finished.text == "".join(event.text for event in events if isinstance(event, TokenGenerated))
    assert len(finished.ids) == 8
    by_ids = answer(Generate(prompt_ids=finished.prompt_ids, max_new_tokens=8, model="bundled"))
    assert isinstance(by_ids[-1], GenerationFinished)
    assert by_ids[-1].ids == finished.ids
    assert next(e for e in by_ids if isinstance(e, GenerationStarted)).prompt_text == "The king"


def test_evaluate_says_which_case_fails_and_keeps_the_model_held(weights: str, cases: str) -> None:
    service = Service()
    answer(Load(), service)
    events = answer(Evaluate(request_id=4, weights=weights, cases=cases, cached=True), service)
    assert once(events) == ["Progress"] + ["CaseEvaluated", "Progress"] * 3 + ["EvaluationFinished"]
    last = events[-1]
    assert isinstance(last, EvaluationFinished)
    result = last.result
    assert (result.command, result.dtype, result.atol, result.passed) == ("kv-evaluate", "float64", 1e-4, False)
    assert [case.passed for case in result.cases] == [True, True, False]
    assert result.cases[2].max_abs_error == pytest.approx(0.5)
    assert result.cases[0].sequential_max_abs_error == pytest.approx(0, abs=1e-9)
    assert kinds(answer(Load(), service)) == ["Loaded"]  # still the bundled one
    loose = answer(Evaluate(weights=weights, cases=cases, atol=0.6), service)[-1]
    assert isinstance(loose, EvaluationFinished)
    assert loose.result.passed
    assert loose.result.command == "evaluate"
    assert loose.result.cases[0].cache_max_abs_error is None


@pytest.mark.parametrize("cached", [False, True])
def test_the_assignments_own_files_pass(reference: Reference, cached: bool) -> None:
    request = Evaluate(weights=str(reference.weights), cases=str(reference.cases), cached=cached)
    last = answer(request)[-1]
    assert isinstance(last, EvaluationFinished)
    assert last.result.passed
    assert last.result.atol == 1e-4
    assert len(last.result.cases) == 5


def test_the_bundled_cases_pass() -> None:
    last = answer(Evaluate(cached=True))[-1]
    assert isinstance(last, EvaluationFinished)
    assert last.result.passed


def test_a_small_model_gets_one_thread_unless_asked_otherwise(weights: str) -> None:
    before = torch.get_num_threads()
    try:
        service = Service()
        answer(Load(model=weights, threads=2), service)
        assert torch.get_num_threads() == 2
        loaded = answer(Load(model=weights), service)[-1]
        assert isinstance(loaded, Loaded)
        assert loaded.model.n_parameters < SMALL_MODEL_PARAMETERS
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Load(model="/no/such/file.pt"), "/no/such/file.pt"),
        (Load(threads=0), "threads must be a whole number from 1"),
        (Generate(), "in exactly one form"),
        (Generate(prompt="a", prompt_ids=(1,)), "in exactly one form"),
        (Generate(prompt=""), "prompt is empty"),
        (Generate(prompt_ids=()), "prompt is empty"),
        (Generate(prompt_ids=(1, 999_999)), "token id 999999 is outside the vocabulary"),
        (Generate(prompt_ids=(2**70,)), "outside the vocabulary"),
        (Generate(prompt_ids=(-1,)), "outside the vocabulary"),
        (Generate(prompt_ids=(1,) * 5000), "positions"),
        (Generate(prompt="a", max_new_tokens=0), "max_new_tokens"),
        (Generate(prompt="a", temperature=-1.0), "temperature"),
        (Generate(prompt="a", top_p=0.0), "top_p"),
        (Generate(prompt="a", top_k=0), "top_k"),
        (Generate(prompt="a", seed=2**80), "seed"),
        (Generate(prompt="a", model="a\0b"), "is not a path"),
        (Load(model="a\0b"), "is not a path"),
        (Evaluate(cases="/no/such/cases.json"), "/no/such/cases.json"),
        (Evaluate(weights="/no/such/file.pt"), "/no/such/file.pt"),
        (Evaluate(atol=-1.0), "atol"),
        (Benchmark(lengths=(0,)), "lengths must be"),
        (Cancel(target_id=1), "Cancel is not a request for an answer"),
    ],
    ids=str,
)
def test_bad_requests_are_input_failures_that_name_the_fault(request_: Request, said: str) -> None:
    events = answer(request_)
    assert isinstance(events[-1], Failed)
    assert events[-1].kind == "input"
    assert said in events[-1].message
    assert "\n" not in events[-1].message


def test_weights_without_cases_and_text_without_a_tokenizer_are_refused(weights: str) -> None:
    assert "no cases for" in answer(Evaluate(weights=weights))[-1].message  # type: ignore[union-attr]
    failed = answer(Generate(prompt="hello", model=weights))[-1]
    assert isinstance(failed, Failed)
    assert failed.kind == "input"
    assert "no tokenizer" in failed.message


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (CheckpointError("w.pt is damaged"), "input", "w.pt is damaged"),
        (OutOfMemory("a cache of 9 bytes does not fit"), "memory", "a cache of 9 bytes does not fit"),
        (MemoryError(), "memory", "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory", "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory", "out of memory"),
        (RuntimeError("shape\nmismatch"), "engine", "failed unexpectedly (RuntimeError: shape)"),
        (KeyError(), "engine", "failed unexpectedly (KeyError: no message)"),
    ],
)
def test_errors_become_one_sentence_of_the_right_kind(
    error: Exception, kind: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = failure(error, 6)
    assert (failed.request_id, failed.kind) == (6, kind)
    assert said in failed.message
    assert "\n" not in failed.message
    assert (type(error).__name__ in capsys.readouterr().err) == (kind == "engine")  # the traceback


def test_a_real_failed_allocation_is_a_memory_failure(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object, **__: object) -> None:
        torch.empty(2**55, dtype=torch.float64)

    monkeypatch.setattr(service_module, "generate", too_much)
    failed = answer(Generate(prompt_ids=(1,), model=weights))[-1]
    assert isinstance(failed, Failed)
    assert failed.kind == "memory"
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


# --- stopping ---------------------------------------------------------------------------------------------


def after(calls: int) -> Callable[[], bool]:
    asked = iter(range(calls))
    return lambda: next(asked, None) is None


def test_each_kind_of_work_can_be_stopped(weights: str, cases: str) -> None:
    service = Service()
    generate = Generate(prompt_ids=(1,), max_new_tokens=9, model=weights)
    answer(Load(model=weights), service)
    finished = answer(generate, service, should_stop=after(5))[-1]  # before the prompt's pass and its two layers
    assert isinstance(finished, GenerationFinished)
    assert (finished.reason, len(finished.ids)) == ("cancelled", 3)
    answer(Load(model=weights, dtype="float64"), service)
    evaluate = answer(Evaluate(weights=weights, cases=cases), service, should_stop=after(2))
    assert kinds(evaluate) == ["CaseEvaluated", "Progress", "CaseEvaluated", "Progress", "Cancelled"]
    assert kinds(answer(Evaluate(weights=weights, cases=cases), service, should_stop=after(0))) == ["Cancelled"]
    answer(Load(model=weights), service)
    benchmark = answer(Benchmark(model=weights, lengths=(2,), new_tokens=4), service, should_stop=after(6))
    assert kinds(benchmark)[-1] == "Cancelled"
    assert not any(isinstance(event, BenchmarkRowMeasured) for event in benchmark)


# --- the loop ---------------------------------------------------------------------------------------------


class FakeService:
    """Answers at once; a Benchmark runs until it is stopped."""

    def __init__(self) -> None:
        self.running = threading.Event()

    def answer(self, request: Request, should_stop: Callable[[], bool]) -> Iterator[Event]:
        if isinstance(request, Benchmark):
            self.running.set()
            while not should_stop():
                time.sleep(0.001)
            yield Cancelled(request_id=request.request_id)
        else:
            yield Failed(request_id=request.request_id, kind="input", message="seen")


class Loop:
    """A worker's inbox and loop in a thread, fed by hand."""

    def __init__(self) -> None:
        self.out: list[Event] = []
        self.inbox = Inbox(io.BytesIO(), self.out.append)
        self.service = FakeService()
        self.thread = threading.Thread(target=run, args=(self.service, self.inbox, self.out.append), daemon=True)
        self.thread.start()

    def send(self, *requests: Request) -> None:
        for request in requests:
            self.inbox.receive(encode(request))

    def wait_for(self, count: int) -> list[Event]:
        wait_until(lambda: len(self.out) >= count)
        return self.out


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.inbox.end()
    loop.thread.join(PATIENCE_S)
    assert not loop.thread.is_alive()


def test_requests_are_answered_in_order(loop: Loop) -> None:
    loop.send(Load(request_id=1), Load(request_id=2), Load(request_id=3))
    assert [event.request_id for event in loop.wait_for(3)] == [1, 2, 3]


def test_a_running_request_is_cancelled_and_the_next_one_runs(loop: Loop) -> None:
    loop.send(Benchmark(request_id=1))
    assert loop.service.running.wait(10)
    loop.send(Load(request_id=2), Cancel(target_id=1))
    assert [type(event) for event in loop.wait_for(2)] == [Cancelled, Failed]


def test_a_waiting_request_is_cancelled_while_another_runs(loop: Loop) -> None:
    loop.send(Benchmark(request_id=1))
    assert loop.service.running.wait(10)
    loop.send(Load(request_id=2), Load(request_id=3), Cancel(target_id=2), Cancel(target_id=99))
    assert loop.wait_for(1) == [Cancelled(request_id=2)]
    loop.send(Cancel(target_id=1))
    assert [event.request_id for event in loop.wait_for(3)] == [2, 1, 3]


def test_a_cancel_that_comes_too_late_hits_nobody(loop: Loop) -> None:
    loop.send(Load(request_id=1))
    loop.wait_for(1)
    loop.send(Cancel(target_id=1), Load(request_id=2))
    assert loop.wait_for(2)[1] == Failed(request_id=2, kind="input", message="seen")


def test_lines_that_are_no_requests_are_answered_to_their_sender(loop: Loop) -> None:
    for line in (b"garbage\n", b'{"type":"Load","request_id":7,"dtype":"int3"}\n', b'{"request_id":true}\n', b"[]\n"):
        loop.inbox.receive(line)
    events = loop.wait_for(4)
    assert [event.request_id for event in events] == [0, 7, 0, 0]
    assert {type(event) for event in events} == {Failed}
    assert "Invalid enum value 'int3'" in events[1].message  # type: ignore[union-attr]
    loop.send(Load(request_id=8))
    assert loop.wait_for(5)[-1].request_id == 8


@pytest.mark.parametrize(
    "nested",
    [b"[" * 200_000, b'{"type":"Load","x":' + b"[" * 200_000, b'{"a":' * 200_000],
    ids=["list", "in a field", "objects"],
)
def test_a_line_that_is_nested_deeply_ends_nothing(nested: bytes) -> None:
    """The reader itself, as a thread: what comes after such a line is still answered."""
    out: list[Event] = []
    inbox = Inbox(io.BytesIO(nested + b"\n" + encode(Load(request_id=2))), out.append)
    inbox.start()
    request = inbox.next()
    assert request == Load(request_id=2)
    (failed,) = out
    assert isinstance(failed, Failed)
    assert failed.kind == "input"
    inbox.end()


def test_an_unknown_field_is_answered_to_its_sender(loop: Loop) -> None:
    loop.inbox.receive(b'{"type":"Generate","request_id":9,"prompt":"Hi","max_tokens":3}\n')
    (failed,) = loop.wait_for(1)
    assert isinstance(failed, Failed)
    assert (failed.request_id, failed.kind) == (9, "input")
    assert "unknown field `max_tokens`" in failed.message


def test_shutdown_stops_what_runs_and_forgets_what_waits(loop: Loop) -> None:
    loop.send(Benchmark(request_id=1))
    assert loop.service.running.wait(10)
    loop.send(Load(request_id=2), Shutdown())
    loop.thread.join(PATIENCE_S)
    assert loop.out == [Cancelled(request_id=1)]


def test_an_event_that_cannot_be_sent_becomes_a_failure() -> None:
    stream = io.BytesIO()
    outlet = Outlet(stream)
    outlet(Failed(request_id=3, kind="input", message="bad \ud800"))
    outlet(Cancelled(request_id=4))
    first, second = map(decode_event, stream.getvalue().splitlines())
    assert isinstance(first, Failed)
    assert (first.request_id, first.kind) == (3, "engine")
    assert "cannot be sent" in first.message
    assert second == Cancelled(request_id=4)


# --- the true process -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[EngineClient]:
    """The true engine, shared by the tests below (starting it imports torch)."""
    with EngineClient() as client:
        yield client


def test_end_to_end(engine: EngineClient, weights: str, cases: str) -> None:
    events = list(engine.stream(Generate(prompt="Once upon a time", max_new_tokens=6)))
    run_only = ["GenerationStarted", *["TokenGenerated"] * 6, "GenerationFinished"]
    assert [kind for kind in kinds(events) if kind != "Progress"] == ["Loaded", *run_only]
    (ready,) = (event for event in engine.poll() if isinstance(event, Ready))
    assert ready.pid == engine.pid
    evaluation = list(engine.stream(Evaluate(weights=weights, cases=cases)))
    assert sum(isinstance(event, CaseEvaluated) for event in evaluation) == 3
    request = Benchmark(model=weights, lengths=(2, 5), new_tokens=3, repeats=1, warmup=0)
    finished = list(engine.stream(request))[-1]
    assert isinstance(finished, BenchmarkFinished)
    assert [row.prompt_tokens for row in finished.result.rows] == [2, 5]
    (failed,) = engine.stream(Generate(prompt="x", top_k=0))
    assert isinstance(failed, Failed)
    assert engine.alive


@pytest.mark.parametrize(
    "request_",
    [
        Generate(prompt="The", max_new_tokens=2000, use_cache=False),
        Benchmark(lengths=(1000,), repeats=1000),
        Evaluate(cached=True),
    ],
    ids=lambda request: type(request).__name__,
)
def test_a_cancel_is_answered_at_once(engine: EngineClient, request_: Request) -> None:
    """After little work, in processor time: what was asked takes minutes, and others may work on the same cores."""
    list(engine.stream(Load()))
    number = engine.submit(request_)
    poll_until(engine, lambda events: sum(event.request_id == number for event in events) >= 2)
    before_s = worked_s(engine)
    engine.cancel(number)
    ends = Cancelled | GenerationFinished | EvaluationFinished
    last = poll_until(engine, lambda events: isinstance(events[-1], ends))[-1]
    assert worked_s(engine) - before_s < 1.0 * (os.cpu_count() or 1)
    if isinstance(last, GenerationFinished):
        assert last.reason == "cancelled"


def worked_s(engine: EngineClient) -> float:
    """Processor time that the engine's process has used; 0 where the system does not say it in /proc."""
    try:
        fields = Path(f"/proc/{engine.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def poll_until(engine: EngineClient, reached: Callable[[list[Event]], bool]) -> list[Event]:
    """Events as they come until `reached`."""
    events: list[Event] = []

    def polled() -> bool:
        events.extend(engine.poll())
        return bool(events) and reached(events)

    wait_until(polled)
    return events


@pytest.mark.slow
def test_a_killed_engine_is_reported_and_replaced(engine: EngineClient) -> None:
    number = engine.submit(Benchmark(lengths=(1000,), repeats=1000))
    poll_until(engine, lambda events: isinstance(events[-1], Progress) and events[-1].request_id == number)
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    events = poll_until(engine, lambda events: isinstance(events[-1], EngineExited))
    assert isinstance(events[-1], EngineExited)
    assert events[-1].request_id == number
    assert "SIGKILL" in events[-1].message
    assert isinstance(list(engine.stream(Generate(prompt="a", max_new_tokens=1)))[-1], GenerationFinished)
    assert engine.pid != pid


def serve(*lines: bytes) -> "subprocess.CompletedProcess[bytes]":
    """A raw `serve` process given these lines, then the end of its input."""
    return subprocess.run(
        [sys.executable, "-m", "engine", "serve"],
        cwd=ROOT,
        input=b"".join(lines),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.slow
def test_piped_requests_are_all_answered_and_stdout_is_protocol_only() -> None:
    done = serve(encode(Load(request_id=1)), b"nonsense\n\n", encode(Generate(request_id=2, prompt_ids=(1,))))
    events = [decode_event(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, b"")
    assert [type(event) for event in events if event.request_id == 1 and not isinstance(event, Progress)] == [Loaded]
    assert isinstance(events[-1], GenerationFinished)
    (bad,) = (event for event in events if isinstance(event, Failed))
    assert "not an engine request" in bad.message


@pytest.mark.slow
def test_shutdown_exits_with_0_without_working_off_what_waits() -> None:
    done = serve(encode(Benchmark(request_id=1, repeats=1000)), encode(Shutdown()))
    assert done.returncode == 0
    assert not any(isinstance(decode_event(line), BenchmarkFinished) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_busy_worker_ends_with_its_parent() -> None:
    """Long before its thousand repeats are over."""
    code = """
import time
from engine.process.client import EngineClient
from engine.measure.kinds.benchmark import Benchmark
from engine.records import Progress
client = EngineClient()
for event in client.stream(Benchmark(lengths=(1000,), repeats=1000)):
    if isinstance(event, Progress) and event.stage == "benchmark":
        print(client.pid, flush=True)
        time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
        parent.kill()
    wait_until(lambda: not exists(pid))


@pytest.mark.slow
def test_prints_of_libraries_do_not_reach_the_protocol() -> None:
    code = """
import os
from engine.process import held
load = held._load
def noisy(*args):
    print("python prints")
    os.write(1, b"C prints\\n")
    return load(*args)
held._load = noisy
from engine.__main__ import main
raise SystemExit(main(["serve"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        input=encode(Load(request_id=1)),
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert once([decode_event(line) for line in done.stdout.splitlines()]) == ["Ready", "Progress", "Loaded"]
    assert b"python prints" in done.stderr
    assert b"C prints" in done.stderr
