"""The protocol: every record survives the wire, the wire form is pinned, anything else is refused clearly."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EngineError
from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.measure.kinds.batch import Batch, BatchFinished, BatchResult, BatchRowMeasured
from engine.measure.kinds.benchmark import Benchmark, BenchmarkFinished, BenchmarkResult, BenchmarkRowMeasured
from engine.measure.kinds.evaluate import CaseEvaluated, CaseResult, Evaluate, EvaluationFinished, EvaluationResult
from engine.measure.kinds.formats import FormatChoice, FormatMeasured, Formats, FormatsFinished, FormatsResult
from engine.measure.kinds.machine import MachineFinished, MachineRowMeasured, MeasureMachine
from engine.measure.machine_result import Gpu, MachineResult, MachineRow
from engine.measure.own import (
    MeasureOwnTimes,
    Needs,
    OwnTimes,
    OwnTimesMeasured,
    PromptTime,
    RowsTime,
    StepTime,
    TextTime,
)
from engine.process import events as protocol
from engine.process.events import (
    Cancel,
    EngineExited,
    Failed,
    Generate,
    Loaded,
    ProtocolError,
    Ready,
    Shutdown,
    decode_event,
    decode_request,
    encode,
    ends,
)
from engine.records import Cancelled, Event, Load, Machine, Progress, Request
from engine.speculation import Drafted, Speculate
from tests.records import TWO_LAYER, batch_row, benchmark_row, format_row

WIRE = Path(__file__).with_name("wire.jsonl")
MODEL = TWO_LAYER
CASE = CaseResult(case=0, prompt_tokens=3, passed=True, max_abs_error=5e-6, cache_max_abs_error=None)
ROW = benchmark_row(
    10,
    0.5,
    1.0,
    with_cache_min_s=0.4,
    with_cache_max_s=0.6,
    without_cache_min_s=0.9,
    without_cache_max_s=1.1,
    prefill_s=0.1,
)
FORMAT_ROW = format_row(
    "int8", weight_bytes=10, kv_bytes_per_token=4, load_s=0.5, tpot_p50_s=0.1, tpot_p95_s=0.2, tokens_per_s=10.0,
    n_tokens=8, n_same=7, mean_error=0.01, max_error=0.5, perplexity=12.5, compiled=False,
)  # fmt: skip
BATCH_ROW = batch_row(4, 0.02, 56.5, step_min_s=0.01, step_max_s=0.03, kv_cache_bytes=160_000, weight_bytes=14_000_000)
MACHINE_ROW = MachineRow(dtype="bf16", read_bytes_per_s=1e10, matmul_flops_per_s={"1": 1e10, "128": 1e11})
MACHINE = Machine(
    cpu="x", cores=2, threads=1, device="cpu", dtype="float32", torch="2.13", python="3.11", system="Linux"
)
DEEP = b"[" * 100_000 + b"]" * 100_000
REQUESTS: list[Request] = [
    Load(request_id=1, model="m.pt", dtype="float64", threads=2),
    Generate(
        request_id=2, prompt_ids=(1, 2), temperature=0.5, top_k=3, top_p=0.9, seed=7, speculate=Speculate(tokens=5)
    ),
    Evaluate(request_id=3, weights="w.pt", cases="c.json", atol=1e-4, cached=True),
    Benchmark(request_id=4, lengths=(10, 50)),
    Formats(request_id=5, choices=(FormatChoice(dtype="int8", cache="int8"),), n_tokens=9),
    Batch(request_id=6, batches=(1, 8), context=32, new_tokens=4, ragged=False),
    MeasureMachine(request_id=7, measure=True, dtypes="bf16", threads=2),
    MeasureOwnTimes(request_id=8, needs=Needs(rows=1, context=64, prompt=0)),
    Cancel(target_id=4),
    Shutdown(),
]
EVENTS: list[Event] = [
    Ready(pid=7, torch_version="2.13.0+cpu", device="cpu", threads=2),
    Progress(request_id=1, stage="benchmark", done=1, total=3, elapsed_ns=5, remaining_s=1.5, detail="d"),
    Loaded(request_id=1, model=MODEL),
    GenerationStarted(request_id=2, prompt_ids=(1,), start_ns=5, kv_cache_bytes=8, kv_bytes_per_token=4),
    TokenGenerated(request_id=2, index=0, token_id=3, text="é", time_ns=9, kv_tokens=1, kv_used_bytes=4),
    GenerationFinished(
        request_id=2,
        reason="eos",
        prompt_ids=(1,),
        ids=(3,),
        text=None,
        start_ns=5,
        token_times_ns=(9,),
        kv_cache_bytes=8,
        drafted=Drafted(draft="lookup", tokens=5, by_step=(5, 0), accepted=(2, 0), drafting_ns=3),
    ),
    CaseEvaluated(request_id=3, case=CASE),
    EvaluationFinished(
        request_id=3,
        result=EvaluationResult(
            command="kv-evaluate", weights="w.pt", dtype="float64", atol=1e-4, passed=True, cases=(CASE,)
        ),
    ),
    BenchmarkRowMeasured(request_id=4, row=ROW),
    BenchmarkFinished(
        request_id=4,
        result=BenchmarkResult(
            model="m", new_tokens=1, repeats=5, warmup=1, rows=(ROW,), machine=MACHINE, notes=("n",)
        ),
    ),
    FormatMeasured(request_id=5, row=FORMAT_ROW),
    FormatsFinished(request_id=5, result=FormatsResult(model="m", rows=(FORMAT_ROW,), machine=MACHINE, notes=("n",))),
    BatchRowMeasured(request_id=6, row=BATCH_ROW, prefill_tokens=256, prefill_s=0.1),
    BatchFinished(
        request_id=6,
        result=BatchResult(
            model="m",
            context=32,
            new_tokens=4,
            repeats=5,
            ragged=False,
            rows=(BATCH_ROW,),
            prefill_tokens=256,
            prefill_s=0.1,
            machine=MACHINE,
            notes=("n",),
        ),
    ),
    MachineRowMeasured(request_id=7, row=MACHINE_ROW),
    MachineFinished(
        request_id=7,
        result=MachineResult(
            cpu="c",
            cores=2,
            threads=1,
            memory_bytes=None,
            last_cache_bytes=8,
            gpus=(
                Gpu(
                    name="g",
                    memory_bytes=9,
                    read_bytes_per_s={"bf16": 2.0},
                    matmul_flops_per_s={"bf16": {"1": 3.0}},
                    operator_overhead_s=1e-6,
                ),
            ),
            rows=(MACHINE_ROW,),
            operator_overhead_s=1e-6,
            load_average=None,
            spread=0.1,
            rounds=5,
            measured_at="2026-12-01T12:00:00+00:00",
            versions={"torch": "2"},
            machine=MACHINE,
        ),
    ),
    OwnTimesMeasured(
        request_id=8,
        times=OwnTimes(
            compiled=True,
            max_rows=32,
            threads=1,
            n_layers=4,
            layers_timed=2,
            chunk=128,
            steps=(StepTime(batch=1, context=32, seconds=0.1),),
            prompts=(PromptTime(tokens=8, past=0, seconds=0.1),),
            texts=(TextTime(tokens=6, context=32, seconds=0.2),),
            heads=(RowsTime(rows=1, seconds=0.1),),
        ),
    ),
    Failed(request_id=4, kind="memory", message="no room"),
    Cancelled(request_id=4),
    EngineExited(request_id=4, returncode=-9, message="killed", stderr_tail="bye"),
]


def test_the_examples_cover_the_protocol() -> None:
    assert {type(request) for request in REQUESTS} == set(protocol.REQUESTS)
    assert {type(event) for event in EVENTS} == set(protocol.EVENTS)


def test_every_record_keeps_its_wire_form() -> None:
    """The lines were written by earlier versions of the protocol: keys and values stay, new keys are added."""
    lines = WIRE.read_bytes().splitlines()
    records = [*REQUESTS, *EVENTS]
    assert len(lines) == len(records)
    for line, record in zip(lines, records, strict=True):
        assert msgspec.json.decode(encode(record)) == msgspec.json.decode(line)
        read = decode_request(line) if isinstance(record, Request) else decode_event(line)
        assert read == record


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda record: type(record).__name__)
def test_a_request_comes_back_equal_from_one_line(request_: Request) -> None:
    line = encode(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert decode_request(line) == request_


@pytest.mark.parametrize("event", EVENTS, ids=lambda record: type(record).__name__)
def test_an_event_comes_back_equal_from_one_line(event: Event) -> None:
    line = encode(event)
    assert line.count(b"\n") == 1
    assert decode_event(line) == event


def test_the_wire_form_is_pinned() -> None:
    assert (
        encode(EVENTS[4])
        == (
            '{"type":"TokenGenerated","request_id":2,"index":0,"token_id":3,"text":"é","time_ns":9,'
            '"kv_tokens":1,"kv_used_bytes":4,"drafted":false}\n'
        ).encode()
    )
    assert decode_request('{"type":"Generate","prompt":"x"}') == Generate(prompt="x", max_new_tokens=64)
    assert decode_request(b'{"type":"Benchmark"}') == Benchmark(
        lengths=(10, 50, 100, 500, 1000), new_tokens=40, repeats=5, warmup=1
    )


@given(st.text(), st.integers(0, 2**62))
def test_any_text_survives(prompt: str, request_id: int) -> None:
    generate = Generate(prompt=prompt, request_id=request_id)
    assert decode_request(encode(generate)) == generate


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "not an engine request"),
        (b"{", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"prompt":"x"}', "missing required field `type`"),
        (b'{"type":"Explode"}', "Invalid value 'Explode'"),
        (b'{"type":"Cancel"}', "missing required field `target_id`"),
        (b'{"type":"Load","dtype":"int3"}', "Invalid enum value 'int3'"),
        (b'{"type":"Generate","prompt_ids":[1,"2"]}', r"Expected `int`, got `str` - at `\$.prompt_ids"),
        (b'{"type":"Generate","temperature":NaN}', "malformed"),
        (encode(EVENTS[0]), "Invalid value 'Ready'"),
        (b'{"type":"Generate","prompt":"x","max_tokens":3}', "unknown field `max_tokens`"),
        (b'{"type":"Load","threads":1,"device":"cpu","gpu":0}', "unknown field `gpu`"),
        (b'{"type":"Generate","turns":[{"role":"user","content":"x","name":"y"}]}', "unknown field `name`"),
        (b'{"type":"Formats","choices":[{"dtype":"int8","group":64}]}', "unknown field `group`"),
        (b'{"type":"Generate","prompt":"x","speculate":{"draft":"lookup","k":3}}', "unknown field `k`"),
        (b'{"type":"Cancel","target_id":1,"now":true}', "unknown field `now`"),
        (b'{"x":' + DEEP + b',"type":"Load"}', "nested too deeply"),
        (DEEP, "Expected `object`, got `array`"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_anything_else_is_refused_with_its_fault(line: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        decode_request(line)


def test_an_event_stream_refuses_requests_and_quotes_briefly() -> None:
    with pytest.raises(ProtocolError, match="not an engine event: Invalid value 'Load'") as caught:
        decode_event(encode(Load(model="x" * 500)))
    assert len(caught.value.message) < 250
    assert isinstance(caught.value, EngineError)


def test_text_that_is_no_unicode_is_refused_at_the_sender() -> None:
    with pytest.raises(ProtocolError, match="Generate holds text that cannot be sent"):
        encode(Generate(prompt="\ud800"))


def test_records_are_frozen() -> None:
    with pytest.raises(AttributeError):
        EVENTS[0].request_id = 3  # type: ignore[misc]
    assert msgspec.structs.replace(EVENTS[0], request_id=3).request_id == 3


def test_which_events_end_which_requests() -> None:
    final = {"GenerationFinished", "EvaluationFinished", "BenchmarkFinished", "FormatsFinished", "BatchFinished"}
    final |= {"MachineFinished", "OwnTimesMeasured", "Failed", "Cancelled", "EngineExited"}
    for request in REQUESTS:
        ending = {type(event).__name__ for event in EVENTS if ends(request, event)}
        assert ending == (final | {"Loaded"} if isinstance(request, Load) else final)


def test_what_the_app_imports_brings_nothing_heavy() -> None:
    modules = (
        "process.events",
        "process.client",
        "measure.timing",
        "measure.registry",
        "machine",
        "measure.options",
        "commands.documents",
        "commands.summary",
        "commands.cli",
        "commands.run",
        "files",
        "text",
    )
    code = f"""
import sys
for name in {modules}: __import__("engine." + name)
heavy = {{"torch", "numpy", "plotext", "textual", "tokenizers", "safetensors", "cairosvg"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    root = Path(protocol.__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
