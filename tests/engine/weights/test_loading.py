"""Loads that say how far they are and end when told to: what is counted, what is left behind, what is raised."""

import contextlib
import gc
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError, Stopped
from engine.measure.kinds.benchmark import Benchmark
from engine.measure.kinds.evaluate import Evaluate
from engine.measure.kinds.formats import Formats
from engine.model.made_weights import random_weights
from engine.process.events import Generate, Loaded
from engine.process.service import Service
from engine.records import NS_PER_S, Cancelled, Event, Load, Progress
from engine.weights.checkpoint import load_checkpoint
from engine.weights.loading import REPORT_NS, Watch, followed
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config
from tests.engine.weights.test_checkpoint import save_folder, save_reference
from tests.patience import PATIENCE_S, wait_until

CONFIG = llama_config(head_dim=8, hidden_size=32, intermediate_size=64, vocab_size=320)


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "m.gguf", CONFIG, random_weights(CONFIG), kind="Q8_0")


def progress_of(events: list[Event]) -> list[Progress]:
    return [event for event in events if isinstance(event, Progress)]


# --- what is counted --------------------------------------------------------------------------------------


def watched(path: Path, **options: Any) -> list[Progress]:
    """Every report of a load, by a clock that makes each count a report."""
    told: list[Progress] = []
    ticks = iter(range(0, 10**15, REPORT_NS))
    load_checkpoint(path, watch=Watch("m", report=told.append, clock_ns=lambda: next(ticks)), **options)
    return told


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int8", "int4"])
def test_every_weight_counts_once_with_its_bytes_in_the_file(gguf: Path, dtype: str) -> None:
    told = watched(gguf, dtype=dtype)
    weights = random_weights(CONFIG)
    packed = sum(w.numel() * 34 // 32 for w in weights.values() if w.dim() == 2)  # Q8_0: 34 bytes per group of 32
    assert told[-1].total == packed + sum(4 * w.numel() for w in weights.values() if w.dim() == 1)
    done = [event.done for event in told if event.total]
    assert done == sorted(done)
    assert done[-1] == told[-1].total
    assert len(set(done)) > 10  # weight by weight


def test_safetensors_and_pt_count_alike(tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "hf")
    told = watched(folder)
    whole = (folder / "model.safetensors").stat().st_size
    assert 0.9 * whole < told[-1].total < whole  # but for the header
    assert told[-1].done == told[-1].total
    reference = watched(save_reference(tmp_path / "m.pt"))
    assert reference[-1].done == reference[-1].total > 0


def test_a_large_weight_is_taken_in_pieces_in_its_own_dtype_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_folder(tmp_path / "hf")
    whole, n_whole = load_checkpoint(folder).decoder.embedding, len(watched(folder))
    monkeypatch.setattr("engine.weights.convert._PIECE", 50)
    assert torch.equal(load_checkpoint(folder).decoder.embedding, whole)
    assert len(watched(folder)) > n_whole


def test_reports_keep_their_distance_and_guess_the_rest() -> None:
    told: list[Progress] = []
    now = iter([0, 0, *(NS_PER_S * n // 20 for n in range(1, 100))])  # a count every 50 ms
    watch = Watch("name", report=told.append, clock_ns=lambda: next(now))
    watch.begin(1000, "downloading")
    for _ in range(20):
        watch.add(50)
    watch.add(50)
    watch.end()
    assert (told[0].total, told[0].remaining_s) == (0, None)
    assert [event.done for event in told[1:4]] == [100, 200, 300]
    assert told[1].detail == "downloading name"
    assert told[1].remaining_s == pytest.approx(0.9)
    assert [event.done for event in told][-2:] == [1000, 1000]
    assert told[-1].remaining_s == 0


def test_a_count_is_never_taken_back() -> None:
    told: list[Progress] = []
    ticks = iter(range(0, 10**12, REPORT_NS))
    watch = Watch(report=told.append, clock_ns=lambda: next(ticks))
    watch.begin(100)
    for done in (40, 20, 60):  # two bars of one download, one behind the other
        watch.reach(done)
    assert [event.done for event in told[1:]] == [40, 40, 60]


# --- the thread -------------------------------------------------------------------------------------------


def collect(load: Generator[Progress, None, Any]) -> tuple[list[Progress], Any]:
    told = []
    while True:
        try:
            told.append(next(load))
        except StopIteration as end:
            return told, end.value


def test_what_it_returns_and_raises_is_passed_on() -> None:
    told, value = collect(followed(lambda watch: 42, "m", lambda: False))
    assert ([event.detail for event in told], value) == (["m"], 42)

    def fail(watch: Watch) -> None:
        raise CheckpointError("m is damaged")

    with pytest.raises(CheckpointError, match="m is damaged"):
        collect(followed(fail, "m", lambda: False))


class Large:
    """Something that must not stay in memory."""


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_what_a_load_has_made_is_free_when_it_ends_early(how: str) -> None:
    made: list[weakref.ref[Large]] = []

    def load(watch: Watch) -> None:
        large = Large()
        made.append(weakref.ref(large))
        if how == "failed":
            raise MemoryError
        while True:
            watch.check()
            time.sleep(0.001)

    gc.collect()
    gc.disable()  # it must be free at once, not when the collector comes by
    try:
        with contextlib.suppress(Stopped, MemoryError):
            collect(followed(load, "m", lambda: bool(made)))
        wait_until(lambda: made[0]() is None)  # the thread may end a moment later
    finally:
        gc.enable()


def test_a_load_that_does_not_answer_is_left_behind() -> None:
    done: list[bool] = []

    speaks = threading.Event()

    def silent(watch: Watch) -> None:
        speaks.wait(PATIENCE_S)  # a server that says nothing
        try:
            watch.check()
        finally:
            done.append(True)

    with pytest.raises(Stopped):
        collect(followed(silent, "m", lambda: True))
    assert not done
    speaks.set()
    wait_until(lambda: bool(done))


# --- the service ------------------------------------------------------------------------------------------


class Slow:
    """Stops a request as soon as it has counted something, with a loader that waits over each weight for the stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken = 0
        add = Watch.add

        def slow(watch: Watch, n_bytes: int) -> None:
            self.taken += 1
            wait_until(watch._should_stop)
            add(watch, n_bytes)

        monkeypatch.setattr(Watch, "add", slow)

    def should_stop(self) -> bool:
        return self.taken > 0


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch)


REQUESTS: tuple[Callable[[str], Load | Generate | Benchmark | Formats | Evaluate], ...] = (
    lambda model: Load(request_id=3, model=model),
    lambda model: Generate(request_id=3, model=model, prompt_ids=(1,)),
    lambda model: Benchmark(request_id=3, model=model),
    lambda model: Formats(request_id=3, model=model),
    lambda model: Evaluate(request_id=3, weights=model, cases="cases.json"),
)


@pytest.mark.parametrize("make", REQUESTS, ids=["load", "generate", "benchmark", "formats", "evaluate"])
def test_every_kind_of_request_can_be_stopped_while_it_loads(
    gguf: Path, slow: Slow, make: Callable[[str], Load]
) -> None:
    service = Service()
    events = list(service.answer(make(str(gguf)), slow.should_stop))
    assert events[-1] == Cancelled(request_id=3)
    assert slow.taken == 1  # of some twenty weights
    assert not any(isinstance(event, Loaded) for event in events)
    assert service.held.model is None


def test_after_a_stop_the_next_request_loads_as_ever(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()
    with monkeypatch.context() as patch:
        slow = Slow(patch)
        list(service.answer(Load(model=str(gguf)), slow.should_stop))
    events = list(service.answer(Load(model=str(gguf))))
    assert isinstance(events[-1], Loaded)
    told = progress_of(events)
    assert told[0].detail == "m.gguf"
    assert told[-1].done == told[-1].total > 0


def test_leaving_the_events_stops_the_load(gguf: Path, slow: Slow) -> None:
    events: Iterator[Event] = Service().answer(Load(model=str(gguf)))
    next(events)
    events.close()  # type: ignore[attr-defined]
    wait_until(lambda: not any(thread.name == "engine-load" for thread in threading.enumerate()))
    assert slow.taken <= 1


@pytest.mark.slow
def test_ranks_that_are_still_starting_end_with_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.parallel import launch

    processes: list[Any] = []
    ended: list[float] = []
    end = launch.Ranks.end

    def noted(ranks: launch.Ranks, patience_s: float = 10.0) -> None:
        processes.extend(process for _, process, _ in ranks._processes)
        end(ranks, patience_s)
        ended.append(patience_s)

    monkeypatch.setattr(launch.Ranks, "end", noted)
    started: list[int] = []
    start = launch.Ranks.start

    def seen(ranks: launch.Ranks, rank: int, *what: Any) -> None:
        start(ranks, rank, *what)
        started.append(rank)

    monkeypatch.setattr(launch.Ranks, "start", seen)
    told = list(Service().answer(Load(tp=2, threads=1), lambda: bool(started)))
    assert told[-1] == Cancelled()
    wait_until(lambda: bool(ended))  # the thread that loads ends the ranks
    assert ended == [0]
    assert [process.returncode is not None for process in processes] == [True]
