"""The benchmark: what it times, that both arms do the same work, its arithmetic, stopping, the time left."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import OptionError
from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.machine import cpu_name
from engine.measure.eta import RemainingTime
from engine.measure.kinds.benchmark import Benchmark, BenchmarkFinished, BenchmarkResult, BenchmarkRowMeasured
from engine.measure.options import parse_counts
from engine.measure.rates import machine_facts
from engine.measure.runners import benchmark
from engine.measure.runners.benchmark import Run, make_prompt, make_row, run_benchmark, with_room
from engine.model.decoder import Decoder
from engine.model.generate import GenerationOptions, generate
from engine.records import Cancelled, Progress
from tests.engine.models import decoder

MS = 1_000_000


def result_of(events: Sequence[Any]) -> BenchmarkResult:
    last = events[-1]
    assert isinstance(last, BenchmarkFinished)
    return last.result


class FakeRuns:
    """Stands in for `generate`: remembers what was asked, answers with made-up times and tokens."""

    def __init__(self, *, cached_ms: Sequence[int], full_ms: Sequence[int], differs: bool = False) -> None:
        self.times = {True: iter(cached_ms), False: iter(full_ms)}
        self.differs = differs
        self.asked: list[tuple[int, bool, tuple[int, ...] | None]] = []

    def __call__(
        self, decoder: Decoder, prompt_ids: Sequence[int], options: GenerationOptions, *, should_stop: Any
    ) -> Iterator[Any]:
        self.asked.append((len(prompt_ids), options.use_cache, options.forced_ids))
        assert not options.stop_at_eos
        total = next(self.times[options.use_cache]) * MS
        n = options.max_new_tokens
        ids = options.forced_ids or tuple(range(n))
        if self.differs and not options.use_cache and options.forced_ids is None:
            ids = (*ids[:-1], 28)
        first = total // 2  # half of the time is prefill
        times = [first + (total - first) * i // max(1, n - 1) for i in range(n)]
        start = 5 * MS
        yield GenerationFinished(
            reason="length",
            prompt_ids=tuple(prompt_ids),
            ids=ids,
            text=None,
            start_ns=start,
            token_times_ns=tuple(start + t for t in times),
            kv_cache_bytes=77 if options.use_cache else 0,
        )


# --- arithmetic, with a fake clock ------------------------------------------------------------------------


@pytest.mark.parametrize(("new_tokens", "tpot_s"), [(1, None), (2, 0.010), (10, 0.010 / 9)])
def test_a_row_holds_medians_of_the_runs_after_the_warmup(
    monkeypatch: pytest.MonkeyPatch, new_tokens: int, tpot_s: float | None
) -> None:
    runs = FakeRuns(cached_ms=[999, 999, 20, 10, 40], full_ms=[999, 999, 60, 90, 30])
    monkeypatch.setattr(benchmark, "generate", runs)
    options = Benchmark(lengths=(4,), new_tokens=new_tokens, repeats=3, warmup=2)
    (row,) = result_of(list(run_benchmark(decoder(), options))).rows
    scale = 1 if new_tokens > 1 else 0.5  # with one token a run ends with its prefill, half of the time
    assert row.prompt_tokens == 4
    assert row.with_cache_min_s == pytest.approx(0.010 * scale)
    assert row.with_cache_max_s == pytest.approx(0.040 * scale)
    assert row.with_cache_s == pytest.approx(0.020 * scale)
    assert row.without_cache_s == pytest.approx(0.060 * scale)
    assert row.without_cache_min_s == pytest.approx(0.030 * scale)
    assert row.without_cache_max_s == pytest.approx(0.090 * scale)
    assert row.speedup == pytest.approx(3.0)
    assert row.prefill_s == pytest.approx(0.010)
    assert row.tpot_s == (None if tpot_s is None else pytest.approx(tpot_s))
    assert row.kv_cache_bytes == 77
    later_ms = [] if new_tokens == 1 else [10 / (new_tokens - 1), 5 / (new_tokens - 1), 20 / (new_tokens - 1)]
    assert row.tpot_p50_s == (pytest.approx(sorted(later_ms)[1] / 1000) if later_ms else None)


def test_arms_and_lengths_take_turns_and_make_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = FakeRuns(cached_ms=[1] * 4, full_ms=[1] * 4)
    monkeypatch.setattr(benchmark, "generate", runs)
    result = result_of(list(run_benchmark(decoder(), Benchmark(lengths=(3, 5), new_tokens=2, repeats=1))))
    assert runs.asked == [(n, arm, None) for _ in range(2) for n in (5, 3) for arm in (True, False)]
    assert [row.prompt_tokens for row in result.rows] == [3, 5]
    assert result.notes == ()


def test_where_rounding_changes_a_token_it_is_forced_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = FakeRuns(cached_ms=[1, 1, 1], full_ms=[1, 1, 1, 1], differs=True)
    monkeypatch.setattr(benchmark, "generate", runs)
    options = Benchmark(lengths=(3,), new_tokens=4, repeats=2, warmup=1)
    result = result_of(list(run_benchmark(decoder(), options)))
    forced = (0, 1, 2, 3)
    assert runs.asked == [
        (3, True, None),
        (3, False, None),
        (3, False, forced),
        (3, True, forced),
        (3, False, forced),
        (3, True, forced),
        (3, False, forced),
    ]
    assert result.notes == (
        "At 3 prompt tokens, rounding changed the most likely token 4 without the cache; the tokens generated with the "
        "cache were used in both runs, so both did the same work.",
    )


def test_no_run_is_dropped_from_a_row_without_warmup() -> None:
    run = Run(ids=(1,), total_s=2.0, ttft_s=2.0, tpot_s=None, kv_cache_bytes=8)
    row = make_row(3, {"with_cache": [run], "without_cache": [run]}, warmup=0)
    assert (row.with_cache_s, row.without_cache_min_s, row.speedup) == (2.0, 2.0, 1.0)


# --- real runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["llama", "one-head-learned"])
def test_real_runs_of_both_arms_make_the_same_tokens(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[bool, tuple[int, ...]]] = []

    def recording(model: Decoder, ids: Sequence[int], options: GenerationOptions, **rest: Any) -> Iterator[Any]:
        for event in generate(model, ids, options, **rest):
            if isinstance(event, GenerationFinished):
                made.append((options.use_cache, event.ids))
            yield event

    monkeypatch.setattr(benchmark, "generate", recording)
    model = decoder(variant)
    options = Benchmark(lengths=(3, 9), new_tokens=6, repeats=2, warmup=0)
    result = result_of(list(run_benchmark(model, options, model_name="tiny")))
    assert [arm for arm, _ in made] == [True, False] * 4
    assert len({ids for _, ids in made[:2] + made[4:6]}) == 1
    assert len({ids for _, ids in made[2:4] + made[6:]}) == 1
    config = model.config
    per_token = 2 * config.n_layers * config.n_kv_heads * config.head_dim * 8
    assert [row.kv_cache_bytes for row in result.rows] == [(3 + 6) * per_token, (9 + 6) * per_token]
    for row in result.rows:
        assert 0 < row.prefill_s < row.with_cache_s
        assert row.tpot_s is not None
        assert row.with_cache_min_s <= row.with_cache_s <= row.with_cache_max_s
        assert row.without_cache_min_s <= row.without_cache_s <= row.without_cache_max_s
    assert (result.model, result.repeats, result.warmup) == ("tiny", 2, 0)
    assert not any("forced" in note for note in result.notes)


def test_without_the_cache_every_step_recomputes_all_tokens_for_the_last_logits() -> None:
    """Counts the tokens that go through the model: the sum of all lengths, against prompt + new with the cache."""
    model = decoder()
    seen: list[tuple[int, int]] = []
    forward = model.forward

    def counting(ids: torch.Tensor, cache: Any = None, **options: Any) -> torch.Tensor:
        logits = forward(ids, cache, **options)
        seen.append((ids.shape[1], logits.shape[1]))
        return logits

    model.forward = counting  # type: ignore[method-assign]
    list(run_benchmark(model, Benchmark(lengths=(5,), new_tokens=3, repeats=1, warmup=0)))
    assert seen == [(5, 1), (1, 1), (1, 1), (5, 1), (6, 1), (7, 1)]


def test_a_short_position_table_is_extended_and_said() -> None:
    model = decoder("one-head-learned", max_positions=8)
    result = result_of(list(run_benchmark(model, Benchmark(lengths=(6,), new_tokens=5, repeats=1, warmup=0))))
    assert result.notes == (
        "The sweep needs 11 positions: random rows extend its table of 8. Only the times matter there; the tokens "
        "are meaningless.",
    )
    assert model.config.max_positions == 8
    wide, _ = with_room(model, 11)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(wide.forward(ids), model.forward(ids))


def test_rotary_positions_are_continued_and_said() -> None:
    wide, notes = with_room(decoder(max_positions=8), 9)
    assert wide.config.max_positions == 9
    assert "rotary angles were continued past its 8" in notes[0]
    assert with_room(decoder(max_positions=8), 8)[1] == []


def test_prompts_are_the_same_every_time_and_inside_the_vocabulary() -> None:
    assert make_prompt(50, 29) == make_prompt(50, 29)
    assert make_prompt(10, 29) == make_prompt(50, 29)[:10]
    assert set(make_prompt(2000, 29)) == set(range(29))


# --- progress, stopping -----------------------------------------------------------------------------------


def test_progress_comes_before_every_run_and_rows_as_they_grow() -> None:
    options = Benchmark(lengths=(2, 3), new_tokens=2, repeats=2, warmup=1)
    events = list(run_benchmark(decoder(), options))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(13))
    assert {event.total for event in progress} == {12}
    assert progress[0].remaining_s is None
    assert progress[1].remaining_s is None  # only one arm has run
    assert progress[2].remaining_s is not None  # the longest prompt says how long all of them will take
    assert progress[-1].remaining_s == 0
    assert progress[0].detail == "3 prompt tokens with the cache, warm-up 1 of 1"
    assert progress[7].detail == "2 prompt tokens without the cache, 1 of 2"
    assert progress[12].detail == "all prompts measured"
    assert all(a.elapsed_ns <= b.elapsed_ns for a, b in pairwise(progress))
    rows = [event.row.prompt_tokens for event in events if isinstance(event, BenchmarkRowMeasured)]
    assert rows == [3, 2, 3, 2]
    assert [type(event).__name__ for event in events].index("BenchmarkRowMeasured") == 6


def test_times_that_fall_with_the_length_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longer prompt is run first: 4 and 5 ms, below 7 and 8 of the shorter one; without the cache they overlap."""
    runs = FakeRuns(cached_ms=[4, 8, 5, 7], full_ms=[4, 3, 6, 7])
    monkeypatch.setattr(benchmark, "generate", runs)
    result = result_of(list(run_benchmark(decoder(), Benchmark(lengths=(3, 5), new_tokens=2, repeats=2, warmup=0))))
    assert result.notes == (
        "These times cannot be right: with the cache, every run with 5 prompt tokens was faster (5.00 ms at most) than "
        "every run with 3 (7.00 ms at least), although it is more work. Measure again when the machine is idle.",
    )


def stop_after(calls: int) -> Callable[[], bool]:
    asked = iter(range(calls))
    return lambda: next(asked, None) is None


def test_it_can_be_stopped_within_a_run_and_keeps_the_rows_done() -> None:
    options = Benchmark(lengths=(2, 3), new_tokens=4, repeats=1, warmup=0)
    # Asked before every forward pass, and before each of two layers where a pass is over many tokens.
    one_length = (3 + options.new_tokens - 1) + 3 * options.new_tokens
    for extra in (0, 1, 5):
        *measured, last = run_benchmark(decoder(), options, stop_after(one_length + extra))
        rows = [event.row for event in measured if isinstance(event, BenchmarkRowMeasured)]
        assert [row.prompt_tokens for row in rows] == [3]
        assert last == Cancelled()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lengths": ()}, "at least one prompt length"),
        ({"lengths": (10, 0)}, "lengths must be a whole number from 1 to 1,000,000, not 0"),
        ({"lengths": (10, 5, 10)}, "prompt length 10 is given twice"),
        ({"new_tokens": 0}, "new-tokens must be a whole number from 1"),
        ({"repeats": 0}, "repeats must be"),
        ({"warmup": -1}, "warmup must be a whole number from 0"),
        ({"threads": 0}, "threads must be a whole number from 1 to 1,024, not 0"),
    ],
)
def test_impossible_sweeps_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said) as caught:
        next(run_benchmark(decoder(), Benchmark(**changes)))
    assert caught.value.field in changes


def test_lists_of_lengths_are_read() -> None:
    assert parse_counts("10,50, 100") == (10, 50, 100)
    assert parse_counts("7") == (7,)
    for text, wrong in (("10,x", "'x'"), ("", "''"), ("1,,2", "''"), ("1.5", "'1.5'")):
        with pytest.raises(ValueError, match=f"{wrong} is not a whole number"):
            parse_counts(text)


# --- the time left ----------------------------------------------------------------------------------------


def test_measured_lengths_count_with_their_median() -> None:
    left = RemainingTime(lengths=(10,), runs_per_length=4)
    left.add("with_cache", 10, 1.0)
    assert left.remaining_s() is None
    for seconds in (2.0, 9.0, 4.0):
        left.add("without_cache", 10, seconds)
    assert left.remaining_s() == 3 * 1.0 + 1 * 4.0


def test_one_length_is_extrapolated_linearly_without_the_cache_and_flat_with_it() -> None:
    left = RemainingTime(lengths=(10, 100), runs_per_length=1)
    left.add("with_cache", 10, 0.5)
    left.add("without_cache", 10, 2.0)
    assert left.remaining_s() == pytest.approx(0.5 + 20.0)


@pytest.mark.parametrize(("second_s", "exponent"), [(2.1, 1.0), (2.0 * 10**1.5, 1.5), (2.0 * 10**3, 2.0)])
def test_two_lengths_give_the_exponent_between_linear_and_quadratic(second_s: float, exponent: float) -> None:
    left = RemainingTime(lengths=(10, 100, 1000), runs_per_length=1)
    left.add("without_cache", 10, 2.0)
    left.add("without_cache", 100, second_s)
    assert left.run_s("without_cache", 1000) == pytest.approx(second_s * 10**exponent)


def test_lengths_in_any_order_are_extrapolated_downwards_too() -> None:
    left = RemainingTime(lengths=(1000, 10), runs_per_length=1)
    left.add("without_cache", 1000, 4.0)
    assert left.run_s("without_cache", 10) == pytest.approx(0.04)
    assert left.run_s("with_cache", 10) is None


def test_a_clock_too_coarse_to_see_a_run_does_no_harm() -> None:
    left = RemainingTime(lengths=(1, 2, 3), runs_per_length=1)
    for arm in ("with_cache", "without_cache"):
        left.add(arm, 1, 0.0)  # type: ignore[arg-type]
        left.add(arm, 2, 0.0)  # type: ignore[arg-type]
    assert left.remaining_s() == 0.0


# --- the machine ------------------------------------------------------------------------------------------


def test_machine_facts_are_those_of_the_run() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        facts = machine_facts(decoder(dtype=torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert (facts.threads, facts.device, facts.dtype) == (1, "cpu", "float32")
    assert facts.torch == torch.__version__
    assert facts.cores >= 1
    assert facts.cpu


def test_the_processor_names_itself_or_is_unknown(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Some CPU @ 3 GHz\n")
    assert cpu_name(info) == "Some CPU @ 3 GHz"
    assert cpu_name(tmp_path / "none") != ""


def test_events_of_generate_are_what_the_fake_stands_in_for() -> None:
    """Guards the fake: the real iterator starts, makes tokens, finishes, with increasing times."""
    events = list(generate(decoder(), [1, 2], GenerationOptions(max_new_tokens=2, stop_at_eos=False)))
    assert [type(event) for event in events] == [GenerationStarted, TokenGenerated, TokenGenerated, GenerationFinished]
    last = events[-1]
    assert isinstance(last, GenerationFinished)
    assert last.start_ns < last.token_times_ns[0] < last.token_times_ns[1]
    assert math.isfinite(last.kv_cache_bytes)
