"""Latency with and without the KV cache, over prompt lengths.

Both arms process the same ids at the same positions: the prompt is drawn from the vocabulary with a fixed
seed, the first run (with the cache, greedy) says which tokens follow, and every other run must make the same
ones. Where rounding makes an argmax differ, the recorded tokens are forced on both arms and a note says so.
Without the cache every token is a full recompute of all tokens so far, with logits for the last one only.
The arms take turns and so do the lengths, in rounds, so that a machine that slows down slows all of them.
"""

import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.generation_events import GenerationFinished
from engine.measure.eta import ARMS, Arm, RemainingTime
from engine.measure.kinds.benchmark import (
    Benchmark,
    BenchmarkFinished,
    BenchmarkResult,
    BenchmarkRow,
    BenchmarkRowMeasured,
    check,
    falling_notes,
)
from engine.measure.own import Needs, OwnTimes
from engine.measure.own_timer import OwnTimer, TimerOf
from engine.measure.rates import machine_facts
from engine.measure.timing import latencies_s, median, percentile, timing
from engine.model.decoder import Decoder
from engine.model.generate import GenerationOptions, generate
from engine.records import NS_PER_S, Cancelled, Event, Progress
from engine.text import plural

if TYPE_CHECKING:
    from engine.process.held import HeldModel


BenchmarkEvent = Progress | BenchmarkRowMeasured | BenchmarkFinished | Cancelled

PROMPT_SEED = 20_241_107
_ARM_WORDS: dict[Arm, str] = {"with_cache": "with the cache", "without_cache": "without the cache"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One timed generation."""

    ids: tuple[int, ...]
    total_s: float
    ttft_s: float
    tpot_s: float | None
    kv_cache_bytes: int
    latencies_s: tuple[float, ...] = ()


def run(request: Benchmark, held: "HeldModel", should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Measure all lengths with the model that the request names; it is loaded if necessary."""
    model = yield from held.hold(request, should_stop)
    yield from run_benchmark(
        model.decoder,
        request,
        should_stop,
        model_name=model.name,
        prefill_chunk=held.prefill_chunk,
        timer_of=held.timer_of,
    )


def run_benchmark(
    decoder: Decoder,
    options: Benchmark,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    model_name: str = "",
    prefill_chunk: int | None = None,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    timer_of: TimerOf = lambda decoder, needs: None,
) -> Iterator[BenchmarkEvent]:
    """Progress after every run, a row after each length, and last the result or `Cancelled`.

    Raises `OptionError` for an impossible sweep. `should_stop` is asked before every token, and before every layer of
    a prompt. `prefill_chunk`: see `engine.model.generate.GenerationOptions`. `timer_of` gives what times the model's
    own operators, once in each round.
    """
    check(options)
    wide, notes = with_room(decoder, max(options.lengths) + options.new_tokens)
    sweep = _Sweep(
        decoder=wide,
        options=options,
        should_stop=should_stop,
        clock_ns=clock_ns,
        notes=notes,
        prefill_chunk=prefill_chunk,
        timer=timer_of(wide, _needs(options)),
    )
    finished = yield from sweep.measure()
    if not finished:
        yield Cancelled()
        return
    rows = tuple(sweep.row(length) for length in options.lengths)
    result = BenchmarkResult(
        model=model_name,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
        warmup=options.warmup,
        rows=rows,
        machine=machine_facts(decoder),
        notes=(*sweep.notes, *falling_notes(rows)),
        own=sweep.own,
    )
    yield BenchmarkFinished(result=result)


def _needs(options: Benchmark) -> Needs:
    """How far the model's own times have to reach: single steps, and prompts as long as the whole text."""
    longest = max(options.lengths) + options.new_tokens
    return Needs(rows=1, context=longest, prompt=longest)


def with_room(decoder: Decoder, n_tokens: int) -> tuple[Decoder, list[str]]:
    """The decoder with at least `n_tokens` positions, and a note if positions had to be added."""
    have = decoder.config.max_positions
    if n_tokens <= have:
        return decoder, []
    if decoder.config.positions == "learned":
        how = f"random rows extend its table of {have:,}"
    else:
        how = f"the rotary angles were continued past its {have:,}"
    note = f"The sweep needs {n_tokens:,} positions: {how}. Only the times matter there; the tokens are meaningless."
    return decoder.with_positions(n_tokens), [note]


def make_prompt(length: int, vocab_size: int) -> tuple[int, ...]:
    """`length` ids of the vocabulary, the same every time; a shorter prompt is the beginning of a longer one."""
    draw = random.Random(PROMPT_SEED)
    return tuple(draw.randrange(vocab_size) for _ in range(length))


def make_row(length: int, runs: dict[Arm, list[Run]], *, warmup: int) -> BenchmarkRow:
    """Medians, minima and maxima of the runs of each arm, without its first `warmup` runs."""
    cached = runs["with_cache"][warmup:]
    with_s = [run.total_s for run in cached]
    without_s = [run.total_s for run in runs["without_cache"][warmup:]]
    tpots_s = [run.tpot_s for run in cached if run.tpot_s is not None]
    later_s = [value for run in cached for value in run.latencies_s]
    return BenchmarkRow(
        prompt_tokens=length,
        with_cache_s=median(with_s),
        without_cache_s=median(without_s),
        with_cache_min_s=min(with_s),
        with_cache_max_s=max(with_s),
        without_cache_min_s=min(without_s),
        without_cache_max_s=max(without_s),
        speedup=median(without_s) / median(with_s),
        prefill_s=median([run.ttft_s for run in cached]),
        tpot_s=median(tpots_s) if tpots_s else None,
        kv_cache_bytes=cached[0].kv_cache_bytes,
        tpot_p50_s=percentile(later_s, 50),
        tpot_p95_s=percentile(later_s, 95),
    )


@dataclass(slots=True, kw_only=True)
class _Prompt:
    """A prompt length: its ids, the tokens that must follow, and its runs so far. `forced`: tokens made to follow."""

    ids: tuple[int, ...]
    runs: dict[Arm, list[Run]] = field(default_factory=lambda: {arm: [] for arm in ARMS})
    recorded: tuple[int, ...] | None = None
    forced: tuple[int, ...] | None = None


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """The runs of one benchmark in their order, and the results so far."""

    decoder: Decoder
    options: Benchmark
    should_stop: Callable[[], bool]
    clock_ns: Callable[[], int]
    notes: list[str]
    prefill_chunk: int | None
    timer: OwnTimer | None = None
    done: int = 0
    start_ns: int = field(init=False)
    remaining: RemainingTime = field(init=False)
    prompts: dict[int, _Prompt] = field(init=False)

    def __post_init__(self) -> None:
        self.start_ns = self.clock_ns()
        self.remaining = RemainingTime(lengths=self.options.lengths, runs_per_length=self._runs_per_arm)
        vocab_size = self.decoder.config.vocab_size
        self.prompts = {length: _Prompt(ids=make_prompt(length, vocab_size)) for length in self.options.lengths}

    @property
    def _runs_per_arm(self) -> int:
        return self.options.warmup + self.options.repeats

    def row(self, length: int) -> BenchmarkRow:
        """The figures of one prompt length so far."""
        return make_row(length, self.prompts[length].runs, warmup=self.options.warmup)

    @property
    def own(self) -> OwnTimes | None:
        """What the model's own operators have taken so far."""
        return None if self.timer is None else self.timer.times()

    def measure(self) -> Generator[Progress | BenchmarkRowMeasured, None, bool]:
        """All runs, each announced before it starts, and a row whenever a length has one more. False when stopped.

        In rounds over the lengths, so that a machine that grows slower slows all of them alike; the longest first,
        so that the time left is known after its first runs.
        """
        for number in range(self._runs_per_arm):
            if self.timer is not None:
                self.timer.round(self.should_stop)
            for length in sorted(self.prompts, reverse=True):
                for arm in ARMS:
                    yield self._progress(self._detail(length, arm, number))
                    run = self._same_tokens(length, arm)
                    if run is None:
                        return False
                    self.prompts[length].runs[arm].append(run)
                    self.remaining.add(arm, length, run.total_s)
                    self.done += 1
                if number >= self.options.warmup:
                    yield BenchmarkRowMeasured(row=self.row(length), own=self.own)
        yield self._progress("all prompts measured")
        return True

    def _same_tokens(self, length: int, arm: Arm) -> Run | None:
        """A run that produces the recorded tokens; the first run of a prompt records them."""
        prompt = self.prompts[length]
        run = self._run(prompt, arm)
        if run is None:
            return None
        if prompt.recorded is None:
            prompt.recorded = run.ids
        elif run.ids != prompt.recorded:
            self.notes.append(_forcing_note(length, run.ids, prompt.recorded))
            prompt.forced = prompt.recorded
            return self._run(prompt, arm)
        return run

    def _run(self, prompt: _Prompt, arm: Arm) -> Run | None:
        options = GenerationOptions(
            max_new_tokens=self.options.new_tokens,
            use_cache=arm == "with_cache",
            stop_at_eos=False,
            prefill_chunk=self.prefill_chunk,
            forced_ids=prompt.forced,
        )
        for event in generate(self.decoder, prompt.ids, options, should_stop=self.should_stop):
            if isinstance(event, GenerationFinished) and event.reason != "cancelled":
                return _to_run(event)
        return None

    def _progress(self, detail: str) -> Progress:
        return Progress(
            stage="benchmark",
            done=self.done,
            total=len(self.options.lengths) * len(ARMS) * self._runs_per_arm,
            elapsed_ns=self.clock_ns() - self.start_ns,
            remaining_s=self.remaining.remaining_s(),
            detail=detail,
        )

    def _detail(self, length: int, arm: Arm, number: int) -> str:
        what = f"{plural(length, 'prompt token')} {_ARM_WORDS[arm]}"
        if number < self.options.warmup:
            return f"{what}, warm-up {number + 1} of {self.options.warmup}"
        return f"{what}, {number - self.options.warmup + 1} of {self.options.repeats}"


def _to_run(finished: GenerationFinished) -> Run:
    rates = timing(finished.start_ns, finished.token_times_ns)
    assert rates.ttft_s is not None  # a run that was not cancelled has a token
    return Run(
        ids=finished.ids,
        total_s=(finished.token_times_ns[-1] - finished.start_ns) / NS_PER_S,
        ttft_s=rates.ttft_s,
        tpot_s=rates.tpot_s,
        kv_cache_bytes=finished.kv_cache_bytes,
        latencies_s=tuple(latencies_s(finished.token_times_ns)),
    )


def _forcing_note(length: int, ids: tuple[int, ...], recorded: tuple[int, ...]) -> str:
    at = next(i for i, (a, b) in enumerate(zip(ids, recorded, strict=True)) if a != b)
    return (
        f"At {length:,} prompt tokens, rounding changed the most likely token {at + 1} without the cache; the tokens "
        "generated with the cache were used in both runs, so both did the same work."
    )
