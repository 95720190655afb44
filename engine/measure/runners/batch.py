"""Decode steps of several rows at once: the time of a step for each batch, and the tokens per second of all rows.

A step reads the weights once for all its rows, so tokens per second rise with the batch until arithmetic binds. What
says where that is, is measured beside: the time of one long prompt. Rows are prompts drawn with a fixed seed, filled
up at the left where they are shorter. A prompt is run once; each round cuts its cache back and decodes anew, so that
batches take turns and a machine that slows down slows all of them.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import OptionError
from engine.machine import available_bytes
from engine.measure.kinds.batch import Batch, BatchFinished, BatchResult, BatchRow, BatchRowMeasured, check
from engine.measure.own import Needs, OwnTimes
from engine.measure.own_timer import OwnTimer, TimerOf
from engine.measure.rates import machine_facts
from engine.measure.runners.benchmark import make_prompt, with_room
from engine.measure.timing import median
from engine.model.cache import Cache
from engine.model.cache_choice import cache_bytes
from engine.model.decoder import Decoder
from engine.records import NS_PER_S, Cancelled, Event, Progress
from engine.text import plural
from engine.weights.formats import read_bytes

if TYPE_CHECKING:
    from engine.process.held import HeldModel


BatchEvent = Progress | BatchRowMeasured | BatchFinished | Cancelled

PREFILL_TOKENS = 256
"""Tokens of the long prompt; fewer if the model has fewer positions."""
_TOKENS_AT_ONCE = 2048
"""Prompt tokens of all rows in one pass, at most: bounds the memory and the time that a stop takes."""


def run(request: Batch, held: "HeldModel", should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Measure the batches with the model that the request names, once its compiled step has been built."""
    model = yield from held.hold(request, should_stop)
    held.wait_for_compiled(should_stop)
    yield from run_batch(model.decoder, request, should_stop, model_name=model.name, timer_of=held.timer_of)


def run_batch(
    decoder: Decoder,
    options: Batch,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    model_name: str = "",
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    timer_of: TimerOf = lambda decoder, needs: None,
) -> Iterator[BatchEvent]:
    """Progress before every measurement, a row after each batch of each round, and last the result or `Cancelled`.

    Raises `OptionError` for batches that cannot be run or do not fit. `should_stop` is asked before every step.
    `timer_of` gives what times the model's own operators, once in each round.
    """
    check(options)
    check_memory(decoder, options)
    wide, notes = with_room(decoder, options.context + options.new_tokens)
    run = _Run(
        decoder=wide,
        options=options,
        should_stop=should_stop,
        clock_ns=clock_ns,
        timer=timer_of(wide, _needs(options)),
    )
    if not (yield from run.rounds()):
        yield Cancelled()
        return
    result = BatchResult(
        model=model_name,
        context=options.context,
        new_tokens=options.new_tokens,
        repeats=options.repeats,
        ragged=options.ragged,
        rows=tuple(run.row(batch) for batch in options.batches),
        prefill_tokens=run.prefill_tokens,
        prefill_s=run.prefill_s,
        machine=machine_facts(decoder),
        notes=(*notes, *_step_notes(wide, options)),
        own=run.own,
    )
    yield BatchFinished(result=result)


def row_lengths(batch: int, context: int, *, ragged: bool) -> tuple[int, ...]:
    """Tokens of each row: evenly spread from half of `context` to all of it. A single row has all of it.

    >>> row_lengths(3, 64, ragged=True), row_lengths(1, 64, ragged=True), row_lengths(2, 64, ragged=False)
    ((32, 48, 64), (64,), (64, 64))
    """
    if not ragged or batch == 1:
        return (context,) * batch
    least = (context + 1) // 2
    return tuple(least + (context - least) * row // (batch - 1) for row in range(batch))


def check_memory(decoder: Decoder, options: Batch, free: int | None = None) -> None:
    """Raise `OptionError` unless the caches of all batches fit in `free` bytes (None: all free memory)."""
    capacity = options.context + options.new_tokens
    needed = cache_bytes(decoder.config, capacity, batch_size=sum(options.batches), dtype=decoder.dtype)
    available = available_bytes() if free is None else free
    if available is not None and needed > available:
        raise OptionError(
            "batches",
            f"the caches of these batches need {needed:,} bytes, but only {available:,} are free; use smaller batches "
            "or a shorter context",
        )


def _needs(options: Batch) -> Needs:
    """How far the model's own times have to reach: no prompts."""
    return Needs(rows=max(options.batches), context=options.context + options.new_tokens, prompt=0)


def _step_notes(decoder: Decoder, options: Batch) -> list[str]:
    step = decoder.decode_step
    if step is None:
        return ["There is no compiled step: the layers ran one by one."]
    if max(options.batches) > step.max_rows:
        return [f"Batches of more than {step.max_rows} rows ran layer by layer, the others as the compiled step."]
    return []


@dataclass(slots=True, kw_only=True)
class Rows:
    """One batch after its prompts: the cache that holds them, and the token (B, 1) that follows each."""

    lengths: tuple[int, ...]
    cache: Cache
    following: Tensor
    steps_s: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Run:
    """The batches with their prompts, and the measurements so far."""

    decoder: Decoder
    options: Batch
    should_stop: Callable[[], bool]
    clock_ns: Callable[[], int]
    timer: OwnTimer | None = None
    batches: dict[int, Rows] = field(default_factory=dict)
    prefills_s: list[float] = field(default_factory=list)
    last_s: list[float] = field(default_factory=list)
    """The seconds of each measurement so far, in order."""
    start_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.start_ns = self.clock_ns()

    @property
    def prefill_tokens(self) -> int:
        """Tokens of the long prompt."""
        return min(PREFILL_TOKENS, self.decoder.config.max_positions)

    @property
    def prefill_s(self) -> float:
        """The median time of the long prompt so far."""
        return median(self.prefills_s)

    @property
    def own(self) -> OwnTimes | None:
        """What the model's own operators have taken so far."""
        return None if self.timer is None else self.timer.times()

    def rounds(self) -> Generator[Progress | BatchRowMeasured, None, bool]:
        """Run the warm-up and all rounds. False when stopped."""
        for number in range(1 + self.options.repeats):
            yield self._progress(number, "a long prompt")
            if self.should_stop():
                return False
            self._prefill(counts=number > 0)
            if self.timer is not None:
                self.timer.round(self.should_stop)
            for batch in self.options.batches:
                yield self._progress(number, plural(batch, "row"))
                if not self._decode(batch, counts=number > 0):
                    return False
                if number:
                    yield BatchRowMeasured(
                        row=self.row(batch),
                        prefill_tokens=self.prefill_tokens,
                        prefill_s=self.prefill_s,
                        own=self.own,
                    )
        return True

    def row(self, batch: int) -> BatchRow:
        """The row of a batch, from the measurements so far."""
        rows = self.batches[batch]
        step_s = median(rows.steps_s)
        return BatchRow(
            batch=batch,
            context_tokens=sum(rows.lengths) / batch + self.options.new_tokens / 2,
            step_p50_s=step_s,
            step_min_s=min(rows.steps_s),
            step_max_s=max(rows.steps_s),
            tokens_per_s=batch / step_s,
            kv_cache_bytes=rows.cache.nbytes,
            weight_bytes=read_bytes(self.decoder),
        )

    def _prefill(self, *, counts: bool) -> None:
        ids = torch.tensor([make_prompt(self.prefill_tokens, self.decoder.config.vocab_size)])
        cache = self.decoder.new_cache(self.prefill_tokens)
        start_ns = self.clock_ns()
        self.decoder.forward(ids.to(self.decoder.device), cache, last_only=True).argmax(-1).tolist()
        self.last_s.append((self.clock_ns() - start_ns) / NS_PER_S)
        self.prefills_s += self.last_s[-1:] if counts else []

    def _decode(self, batch: int, *, counts: bool) -> bool:
        """Time the steps of one batch; the first time its prompts are run before. False when stopped."""
        if batch not in self.batches:
            rows = self._begin(batch)
            if rows is None:
                return False
            self.batches[batch] = rows
        steps_s = decode(self.decoder, self.batches[batch], self.options, self.should_stop, self.clock_ns)
        if steps_s is None:
            return False
        self.last_s.append(sum(steps_s))
        self.batches[batch].steps_s += steps_s if counts else []
        return True

    def _begin(self, batch: int) -> Rows | None:
        lengths = row_lengths(batch, self.options.context, ragged=self.options.ragged)
        return begin(self.decoder, lengths, self.options, self.should_stop)

    def _progress(self, number: int, what: str) -> Progress:
        repeats = self.options.repeats
        return Progress(
            stage="batch",
            done=len(self.last_s),
            total=(1 + repeats) * (1 + len(self.options.batches)),
            elapsed_ns=self.clock_ns() - self.start_ns,
            remaining_s=self._remaining_s(),
            detail=f"{what}, {f'round {number} of {repeats}' if number else 'warm-up'}",
        )

    def _remaining_s(self) -> float | None:
        """The seconds left at the pace of the last whole round; None before the first round has ended."""
        a_round = 1 + len(self.options.batches)
        if len(self.last_s) < a_round:
            return None
        done = len(self.last_s) % a_round
        rounds_left = self.options.repeats - len(self.last_s) // a_round
        return sum(self.last_s[-a_round:]) * rounds_left + sum(self.last_s[-a_round : len(self.last_s) - done])


def begin(decoder: Decoder, lengths: tuple[int, ...], options: Batch, should_stop: Callable[[], bool]) -> Rows | None:
    """Run the prompts of a batch, some columns at a time. None when stopped."""
    batch, context = len(lengths), options.context
    padding = [context - length for length in lengths]
    cache = decoder.new_cache(context + options.new_tokens, batch, padding=padding)
    drawn = iter(make_prompt(sum(lengths), decoder.config.vocab_size))
    rows = [[0] * pad + [next(drawn) for _ in range(length)] for pad, length in zip(padding, lengths, strict=True)]
    ids = torch.tensor(rows).to(decoder.device)
    logits = None
    for part in torch.split(ids, max(1, _TOKENS_AT_ONCE // batch), 1):
        if should_stop():
            return None
        logits = decoder.forward(part, cache, last_only=True)
    assert logits is not None  # a context has at least one token
    return Rows(lengths=lengths, cache=cache, following=logits.argmax(-1))


def decode(
    decoder: Decoder, rows: Rows, options: Batch, should_stop: Callable[[], bool], clock_ns: Callable[[], int]
) -> list[float] | None:
    """The seconds of each step after the prompts, until its tokens are known. None when stopped."""
    rows.cache.truncate(options.context)
    ids = rows.following
    steps_s: list[float] = []
    for _ in range(options.new_tokens):
        if should_stop():
            return None
        start_ns = clock_ns()
        ids = decoder.forward(ids, rows.cache, last_only=True).argmax(-1)
        ids.tolist()  # tokens that are known: on a GPU this waits for the step's end
        steps_s.append((clock_ns() - start_ns) / NS_PER_S)
    return steps_s
