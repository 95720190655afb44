"""Weight and cache formats side by side: memory, speed, and the error of the logits against float32.

The reference reads a text first and leaves nothing but its logits, so that one model at a time is in memory.
"""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from engine.compiled.attach import attach
from engine.errors import EngineError, TokenizerError
from engine.measure.format_loss import Reading, format_loss, loss_ids, read_along
from engine.measure.kinds.formats import (
    FormatChoice,
    FormatMeasured,
    FormatRow,
    Formats,
    FormatsFinished,
    FormatsResult,
    check,
)
from engine.measure.rates import machine_facts
from engine.measure.timing import median, percentile
from engine.model.cache_choice import cache_bytes
from engine.model.devices import pick_device
from engine.records import Cancelled, CompileMode, DType, Event, Load, Machine, Progress
from engine.weights.checkpoint import LoadedModel

if TYPE_CHECKING:
    from engine.process.held import HeldModel


FormatsEvent = Progress | FormatMeasured | FormatsFinished | Cancelled
LoadDType = Callable[[DType], Generator[Progress, None, LoadedModel]]
"""Loads the model in a dtype and reports progress. Raises Stopped."""
REFERENCE = FormatChoice(dtype="float32")


def choice_name(dtype: str, cache: str) -> str:
    """A choice in words: "int8", "float32, int8 cache"."""
    return dtype if cache == "full" else f"{dtype}, {cache} cache"


def run(request: Formats, held: "HeldModel", should_stop: Callable[[], bool]) -> Iterator[Event]:
    """Run the comparison. The model measured last stays loaded, so that a prompt in that format starts at once."""
    pick_device(request.device)

    def load(dtype: DType) -> Generator[Progress, None, LoadedModel]:
        asked = Load(model=request.model, dtype=dtype, device=request.device, threads=request.threads)
        return (yield from held.replace(asked, should_stop))  # one model at a time

    finished = False
    try:
        for event in run_formats(request, load, should_stop):
            if isinstance(event, FormatsFinished):
                yield from held.announce()
                finished = True
            yield event
    finally:
        if not finished:  # nobody was told what is held
            held.release()


def run_formats(
    request: Formats,
    load: LoadDType,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Iterator[FormatsEvent]:
    """Progress and a row for each choice, and last the result or `Cancelled`.

    A choice that this model does not have is noted, not fatal; the reference must run. Raises EngineError.
    """
    check(request)
    comparison = _Comparison(request, load, should_stop, clock_ns)
    choices = [REFERENCE, *(choice for choice in request.choices if choice != REFERENCE)]
    for number, choice in enumerate(choices):
        yield comparison.progress(number, len(choices), choice)
        try:
            row = yield from comparison.measure(choice)
        except EngineError as error:
            if choice == REFERENCE:
                raise
            comparison.notes.append(f"{choice_name(choice.dtype, choice.cache)} was left out: {error.message}.")
            continue
        if row is None:
            yield Cancelled()
            return
        yield FormatMeasured(row=row)
    yield FormatsFinished(result=comparison.result())


@dataclass(slots=True)
class _Comparison:
    """The choices measured so far, and the logits of the reference."""

    request: Formats
    load: LoadDType
    should_stop: Callable[[], bool]
    clock_ns: Callable[[], int]
    rows: list[FormatRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ids: tuple[int, ...] = ()
    expected: Tensor | None = None
    name: str = ""
    machine: Machine | None = None
    start_ns: int = field(init=False)

    def __post_init__(self) -> None:
        self.start_ns = self.clock_ns()

    def measure(self, choice: FormatChoice) -> Generator[Progress, None, FormatRow | None]:
        """Load a choice, read the text and compare. None when stopped. The first choice becomes the reference."""
        start_ns = self.clock_ns()
        model = yield from self.load(choice.dtype)
        load_s = (self.clock_ns() - start_ns) / 1e9
        compiled = _use_compiled(model, self.request.compile, self.should_stop)
        if self.expected is None:
            self._begin(model)
        # One step before the clock runs: pages are touched and threads started for the first time then.
        if read_along(model.decoder, self.ids[:2], cache=choice.cache) is None:
            return None
        reading = read_along(model.decoder, self.ids, cache=choice.cache, should_stop=self.should_stop)
        if reading is None:
            return None
        if self.expected is None:
            self.expected = reading.logits
        self.rows.append(self._row(choice, model, reading, load_s=load_s, compiled=compiled))
        return self.rows[-1]

    def _begin(self, model: LoadedModel) -> None:
        if model.tokenizer is None:
            raise TokenizerError(f"the model {model.name} has no tokenizer, but formats are measured on text")
        limit = min(self.request.n_tokens, model.config.max_positions)
        self.ids = loss_ids(model.tokenizer, limit=limit)
        self.name, self.machine = model.name, machine_facts(model.decoder)

    def _row(
        self, choice: FormatChoice, model: LoadedModel, reading: Reading, *, load_s: float, compiled: bool
    ) -> FormatRow:
        assert self.expected is not None
        loss = format_loss(self.expected, reading.logits, self.ids)
        times_s = sorted(reading.times_s)
        return FormatRow(
            dtype=model.dtype_name,
            cache=choice.cache,
            weight_bytes=model.weight_bytes,
            kv_bytes_per_token=cache_bytes(model.config, 1, dtype=model.decoder.dtype, kind=choice.cache),
            load_s=load_s,
            tpot_p50_s=percentile(times_s, 50) or 0.0,
            tpot_p95_s=percentile(times_s, 95) or 0.0,
            tokens_per_s=1 / median(times_s),
            n_tokens=loss.n_tokens,
            n_same=round(loss.agreement * loss.n_tokens),
            mean_error=loss.mean_error,
            max_error=loss.max_error,
            perplexity=loss.perplexity,
            compiled=compiled,
        )

    def progress(self, number: int, total: int, choice: FormatChoice) -> Progress:
        """Progress: what comes next, and the seconds left at the pace so far."""
        elapsed_ns = self.clock_ns() - self.start_ns
        return Progress(
            stage="formats",
            done=number,
            total=total,
            elapsed_ns=elapsed_ns,
            remaining_s=elapsed_ns / 1e9 / number * (total - number) if number else None,
            detail=choice_name(choice.dtype, choice.cache),
        )

    def result(self) -> FormatsResult:
        """All rows."""
        assert self.machine is not None
        return FormatsResult(model=self.name, rows=tuple(self.rows), machine=self.machine, notes=tuple(self.notes))


def _use_compiled(model: LoadedModel, mode: CompileMode, should_stop: Callable[[], bool]) -> bool:
    """Wait for the model's compiled step to be built; whether it has one. Raises Stopped."""
    attach(model.decoder, mode).wait_unless(should_stop)
    return model.decoder.decode_step is not None
