"""Batch decode: what is timed in which order, its arithmetic with a fake clock, ragged rows, stopping, refusals."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import OptionError
from engine.measure.kinds.batch import Batch, BatchFinished, BatchResult, BatchRowMeasured, check, table, title
from engine.measure.options import parse_counts, parse_ids
from engine.measure.runners import batch as module
from engine.measure.runners.batch import begin, check_memory, decode, row_lengths, run_batch
from engine.model.decoder import Decoder
from engine.process.events import Failed
from engine.process.service import Service
from engine.records import Cancelled, Event, Progress
from engine.weights.formats import read_bytes
from tests.engine.models import decoder

MS = 1_000_000


class Clock:
    """Stands still, but for what a decoder's passes are said to take."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@contextmanager
def timed(model: Decoder, clock: Clock, pass_ms: Callable[[int, int, int], float]) -> Iterator[list[tuple[int, int]]]:
    """Passes of (rows, tokens) take `pass_ms(rows, tokens, passes of that shape so far)`; what was asked for."""
    asked: list[tuple[int, int]] = []
    forward = model.forward

    def slow(ids: Tensor, cache: Any = None, *, last_only: bool = False) -> Tensor:
        shape = (ids.size(0), ids.size(1))
        clock.now_ns += round(pass_ms(*shape, asked.count(shape)) * MS)
        asked.append(shape)
        return forward(ids, cache, last_only=last_only)

    model.forward = slow  # type: ignore[method-assign]
    yield asked


def events_of(model: Decoder, request: Batch, clock: Clock, **rest: Any) -> list[Event]:
    return list(run_batch(model, request, clock_ns=clock, model_name="tiny", **rest))


def result_of(events: list[Event]) -> BatchResult:
    last = events[-1]
    assert isinstance(last, BatchFinished)
    return last.result


# --- arithmetic, with a fake clock ------------------------------------------------------------------------


def test_rows_hold_the_steps_of_all_rounds_but_the_first() -> None:
    """Steps of 2 rows: 900 ms to warm up, then 10, 20, 30, 40, 50, 60 ms; a prompt 900, then 100, 200, 300 ms."""
    model, clock = decoder(), Clock()

    def pass_ms(rows: int, tokens: int, before: int) -> float:
        if tokens > 8:
            return 100 * before or 900
        return 900 if before < 2 or tokens > 1 else 10 * (before - 1)

    request = Batch(batches=(2,), context=8, new_tokens=2, repeats=3)
    with timed(model, clock, pass_ms):
        result = result_of(events_of(model, request, clock))
    (row,) = result.rows
    assert (row.step_p50_s, row.step_min_s, row.step_max_s) == pytest.approx((0.035, 0.010, 0.060))
    assert row.tokens_per_s == pytest.approx(2 / 0.035)
    assert (result.prefill_tokens, result.prefill_s) == (64, pytest.approx(0.2))  # the model has 64 positions
    assert row.context_tokens == (4 + 8) / 2 + 2 / 2
    config = model.config
    assert row.kv_cache_bytes == 2 * config.n_layers * config.n_kv_heads * config.head_dim * 8 * (8 + 2) * 2
    assert row.weight_bytes == read_bytes(model) == (model.n_parameters - 29 * 16) * 8  # all but the look-up table
    assert (result.model, result.context, result.new_tokens, result.repeats, result.ragged) == ("tiny", 8, 2, 3, True)


def test_batches_take_turns_and_each_prompt_runs_once() -> None:
    model, clock = decoder(), Clock()
    request = Batch(batches=(1, 3), context=8, new_tokens=2, repeats=2)
    with timed(model, clock, lambda *_: 1) as asked:
        events = events_of(model, request, clock)
    steps = [(1, 1)] * 2, [(3, 1)] * 2
    warmup = [(1, 64), (1, 8), *steps[0], (3, 8), *steps[1]]
    assert asked == warmup + [(1, 64), *steps[0], *steps[1]] * 2
    rows = [event.row for event in events if isinstance(event, BatchRowMeasured)]
    assert [row.batch for row in rows] == [1, 3, 1, 3]
    assert list(result_of(events).rows) == rows[2:]
    assert rows[1].tokens_per_s == pytest.approx(3000)


def test_long_prompts_of_many_rows_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 6)
    model, clock = decoder(), Clock()
    request = Batch(batches=(2,), context=8, new_tokens=1, repeats=1)
    with timed(model, clock, lambda *_: 1) as asked:
        events_of(model, request, clock)
    assert asked[1:5] == [(2, 3), (2, 3), (2, 2), (2, 1)]


def test_progress_says_what_comes_and_how_long_the_rest_takes() -> None:
    """Passes of one token take 10 ms per row, a long prompt 100: a round of 1 and 2 rows and 2 steps takes 160 ms."""
    model, clock = decoder(), Clock()
    request = Batch(batches=(1, 2), context=8, new_tokens=2, repeats=2)
    with timed(model, clock, lambda rows, tokens, _: 100 if tokens > 8 else 10 * rows):
        progress = [event for event in events_of(model, request, clock) if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(9))
    assert {(event.stage, event.total) for event in progress} == {("batch", 9)}
    assert [event.remaining_s for event in progress[:3]] == [None] * 3
    assert [event.remaining_s for event in progress[3:]] == pytest.approx([0.32, 0.22, 0.20, 0.16, 0.06, 0.04])
    assert progress[0].detail == "a long prompt, warm-up"
    assert progress[5].detail == "2 rows, round 1 of 2"


# --- ragged rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "expected"), [(1, (64,)), (2, (32, 64)), (5, (32, 40, 48, 56, 64))])
def test_lengths_are_spread_evenly(batch: int, expected: tuple[int, ...]) -> None:
    assert row_lengths(batch, 64, ragged=True) == expected
    assert row_lengths(batch, 64, ragged=False) == (64,) * batch
    assert set(row_lengths(batch, 1, ragged=True)) == {1}


@pytest.mark.parametrize("variant", ["llama", "one-head-learned", "sliding", "latent"])
def test_rows_of_a_batch_make_the_tokens_that_each_makes_alone(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(variant)
    request = Batch(context=12, new_tokens=6)
    lengths = row_lengths(4, request.context, ragged=True)
    together = tokens_of(model, request, lengths)
    drawn = module.make_prompt(sum(lengths), model.config.vocab_size)
    for row, length in enumerate(lengths):
        own = drawn[sum(lengths[:row]) : sum(lengths[: row + 1])]
        monkeypatch.setattr(module, "make_prompt", lambda *_, own=own: own)
        alone = tokens_of(model, Batch(context=length, new_tokens=6), (length,))
        assert [step[row] for step in together] == [step[0] for step in alone]


def tokens_of(model: Decoder, request: Batch, lengths: tuple[int, ...]) -> list[list[int]]:
    """The tokens of each step of the second of two runs: the first must leave nothing behind."""
    rows = begin(model, lengths, request, lambda: False)
    assert rows is not None
    made: list[list[int]] = []
    for _ in range(2):
        made = [rows.following[:, 0].tolist()]
        forward = model.forward

        def recording(*args: Any, forward: Any = forward, made: Any = made, **rest: Any) -> Tensor:
            logits: Tensor = forward(*args, **rest)
            made.append(logits[:, -1].argmax(-1).tolist())
            return logits

        model.forward = recording  # type: ignore[method-assign]
        assert decode(model, rows, request, lambda: False, lambda: 0) == [0.0] * request.new_tokens
        model.forward = forward  # type: ignore[method-assign]
    return made


# --- stopping, notes, refusals ----------------------------------------------------------------------------


def stop_after(calls: int) -> Callable[[], bool]:
    asked = iter(range(calls))
    return lambda: next(asked, None) is None


@pytest.mark.parametrize("calls", [0, 1, 2, 8, 12, 13])
def test_it_can_be_stopped_before_every_pass(calls: int) -> None:
    """Asked before the long prompt, the prompts of a batch and every step: 9 times in the warm-up."""
    request = Batch(batches=(1, 2), context=4, new_tokens=3, repeats=1)
    events = events_of(decoder(), request, RunningClock(), should_stop=stop_after(calls))
    assert events[-1] == Cancelled()
    assert any(isinstance(event, BatchRowMeasured) for event in events) == (calls > 12)
    whole = events_of(decoder(), request, RunningClock(), should_stop=stop_after(9 + 7))
    assert isinstance(whole[-1], BatchFinished)


class RunningClock(Clock):
    def __call__(self) -> int:
        self.now_ns += MS
        return self.now_ns


def test_notes_say_what_ran() -> None:
    request = Batch(batches=(1,), context=4, new_tokens=2, repeats=1)
    notes = result_of(events_of(decoder(), request, RunningClock())).notes
    assert notes == ("There is no compiled step: the layers ran one by one.",)
    long = Batch(batches=(1,), context=70, new_tokens=2, repeats=1)
    first, _ = result_of(events_of(decoder(), long, RunningClock())).notes
    assert first.startswith("The sweep needs 72 positions: the rotary angles were continued past its 64.")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batches": ()}, "at least one batch"),
        ({"batches": (1, 0)}, "batches must be a whole number from 1 to 1,024, not 0"),
        ({"batches": (4096,)}, "batches must be a whole number from 1 to 1,024, not 4,096"),
        ({"batches": (2, 4, 2)}, "the batch 2 is given twice"),
        ({"context": 0}, "context must be a whole number from 1"),
        ({"new_tokens": 0}, "new-tokens must be a whole number from 1"),
        ({"repeats": 0}, "repeats must be a whole number from 1"),
        ({"threads": 0}, "threads must be a whole number from 1"),
        ({"tp": 0}, "tp must be a whole number from 1"),
    ],
)
def test_impossible_batches_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        check(Batch(**changes))
    assert caught.value.field in changes
    with pytest.raises(OptionError, match=said):
        next(run_batch(decoder(), Batch(**changes)))


def test_caches_that_do_not_fit_are_refused_before_anything_runs() -> None:
    model, request = decoder(), Batch(batches=(1, 4), context=10, new_tokens=6)
    needed = 5 * 16 * 2 * 2 * 2 * 6 * 8  # rows, tokens, K and V, layers, KV heads, head_dim, float64
    check_memory(model, request, free=needed)
    with pytest.raises(OptionError, match=f"need {needed:,} bytes, but only {needed - 1:,} are free; use smaller"):
        check_memory(model, request, free=needed - 1)


def test_counts_are_read_with_ranges_and_ids_without() -> None:
    assert parse_counts("1..6, 32") == (1, 2, 4, 6, 32)
    assert parse_counts("5..5") == (5,)
    assert parse_ids("3, 1,3") == (3, 1, 3)
    for text, said in (("8..1", "8..1 does not go up"), ("0..4", "from 1 or more"), ("1..x", "'x' is not a whole")):
        with pytest.raises(ValueError, match=said):
            parse_counts(text)
    with pytest.raises(ValueError, match=r"'1\.\.4' is not a whole number"):
        parse_ids("1..4")


# --- through the service, and printed ---------------------------------------------------------------------


def test_the_service_answers_and_refuses() -> None:
    service = Service()
    request = Batch(batches=(1, 2), context=6, new_tokens=2, repeats=1, compile="off", request_id=5)
    events = list(service.answer(request))
    assert {event.request_id for event in events} == {5}
    result = result_of(events)
    assert [row.batch for row in result.rows] == [1, 2]
    assert all(0 < row.step_min_s <= row.step_p50_s <= row.step_max_s for row in result.rows)
    refused = list(service.answer(Batch(batches=(0,))))[-1]
    assert isinstance(refused, Failed)
    assert refused.kind == "input"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
def test_the_compiled_step_is_waited_for(dtype: str) -> None:
    service = Service()
    request = Batch(batches=(1, 33), context=6, new_tokens=2, repeats=1, dtype=dtype)  # type: ignore[arg-type]
    notes = result_of(list(service.answer(request))).notes
    assert notes == ("Batches of more than 32 rows ran layer by layer, the others as the compiled step.",)


def test_text_for_people_has_rises_over_the_smallest_batch() -> None:
    model, clock = decoder(), Clock()
    request = Batch(batches=(2, 1), context=8, new_tokens=2, repeats=1, ragged=False)
    with timed(model, clock, lambda rows, *_: 10 + 5 * rows):
        result = result_of(events_of(model, request, clock))
    lines = table(result).text().splitlines()
    assert lines[0] == title(result)
    assert lines[0] == "batch tiny: 2 steps after rows of 8 tokens, medians of 1 round after 1 warm-up"
    assert lines[1].split() == ["batch", "tokens/s", "rise", "step", "min..max", "KV", "cache"]
    assert lines[2].split()[:3] == ["2", "100.0", "1.50x"]
    assert lines[3].split()[:3] == ["1", "66.7", "1.00x"]
    assert "a prompt of 64 tokens takes 15.0 ms" in lines


@pytest.mark.parametrize("variant", ["llama", "qwen2", "one-head-learned"])
def test_bytes_read_are_the_matrices_and_norms(variant: str) -> None:
    model = decoder(variant, dtype=torch.float32)
    config = model.config
    look_up = 0 if config.tied else config.vocab_size * config.hidden_size
    positions = config.max_positions * config.hidden_size if config.positions == "learned" else 0
    assert read_bytes(model) == 4 * (model.n_parameters - look_up - positions)
