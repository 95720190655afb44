"""One piece of the Benchmark tab's work as the app follows it: events in, rows and words out. No widgets here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from calc.units import format_duration_s
from engine.measure.kinds.batch import Batch, BatchFinished, BatchResult, BatchRow, BatchRowMeasured
from engine.measure.kinds.benchmark import (
    Benchmark,
    BenchmarkFinished,
    BenchmarkResult,
    BenchmarkRow,
    BenchmarkRowMeasured,
)
from engine.measure.kinds.evaluate import CaseEvaluated, CaseResult, Evaluate, EvaluationFinished, EvaluationResult
from engine.measure.kinds.formats import FormatMeasured, FormatRow, Formats, FormatsFinished, FormatsResult
from engine.process.events import Cancelled, EngineExited, Failed, Loaded
from engine.records import Event, ModelInfo, Progress
from tui.live.engine_link import loading_text
from tui.live.measured_tables import verdict
from tui.live.predict import BatchPrediction, predicted_batches

Kind = Literal["evaluate", "kv-evaluate", "benchmark", "formats", "batch"]
JobRequest = Evaluate | Benchmark | Formats | Batch
DEFAULT_LENGTHS = "10,50,100,500,1000"
DEFAULT_BATCHES = "1..32"


@dataclass(slots=True)
class Job:
    """A piece of work and what has come of it. `state` is how it ended, in words; "" while it runs."""

    kind: Kind
    request: JobRequest
    cases: list[CaseResult] = field(default_factory=list)
    rows: list[BenchmarkRow] = field(default_factory=list)
    formats: list[FormatRow] = field(default_factory=list)
    batches: dict[int, BatchRow] = field(default_factory=dict)
    """The latest of each batch, in the order they came."""
    model: ModelInfo | None = None
    """The model that is measured: the one in memory, until another is loaded."""
    predicted: BatchPrediction | None = None
    """What calc says about `batches`."""
    evaluation: EvaluationResult | None = None
    result: BenchmarkResult | FormatsResult | BatchResult | None = None
    progress: Progress | None = None
    state: str = ""
    failed: bool = False

    def feed(self, events: Sequence[Event]) -> None:
        """Take a batch of events."""
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Progress():
                self.progress = event
            case Loaded():
                self.model = event.model
            case CaseEvaluated():
                self.cases.append(event.case)
            case BenchmarkRowMeasured():
                self.rows.append(event.row)
            case FormatMeasured():
                self.formats.append(event.row)
            case BatchRowMeasured():
                self._take_batch(event)
            case EvaluationFinished():
                self.evaluation = event.result
                self.state = verdict(event.result.cases, atol=event.result.atol)
                self.failed = not event.result.passed
            case BenchmarkFinished():
                self.result = event.result
                self.state = f"✓ {len(self.rows)} lengths measured, {_medians(event.result.repeats)}"
            case FormatsFinished():
                self.result = event.result
                self.state = f"✓ {len(self.formats)} formats measured on {self.formats[0].n_tokens} tokens of text"
            case BatchFinished():
                self.result = event.result
                self.state = f"✓ {len(self.batches)} batches measured, {_medians(event.result.repeats, 'rounds')}"
            case Cancelled():
                self.state = "stopped by you; what was measured stays"
            case Failed() | EngineExited():
                self.state, self.failed = f"✗ {event.message}", True
            case _:
                pass

    def _take_batch(self, event: BatchRowMeasured) -> None:
        """The row takes the place of that of the round before; the prediction starts from all there are."""
        self.batches[event.row.batch] = event.row
        if self.model is not None:
            self.predicted = predicted_batches(
                self.model, self.batch_rows, prefill_tokens=event.prefill_tokens, prefill_s=event.prefill_s
            )

    @property
    def batch_rows(self) -> tuple[BatchRow, ...]:
        """The batches measured so far."""
        return tuple(self.batches.values())

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return bool(self.state)

    @property
    def progress_line(self) -> str:
        """``1 of 6 · bfloat16 · 12 s left``; empty before the engine has begun."""
        if self.progress is None:
            return ""
        left = self.progress.remaining_s
        parts = [f"{self.progress.done} of {self.progress.total}", self.progress.detail]
        if self.progress.stage == "load":
            parts = [f"loading {loading_text(self.progress)}"]
        return " · ".join(filter(None, [*parts, "" if left is None else f"{format_duration_s(left)} left"]))

    @property
    def atol(self) -> float | None:
        """The tolerance: the engine's word once it has come."""
        if self.evaluation is not None:
            return self.evaluation.atol
        return self.request.atol if isinstance(self.request, Evaluate) else None


def _medians(repeats: int, what: str = "repeats") -> str:
    return f"medians of {repeats} {what}" if repeats > 1 else "one run each"


def job_options(request: JobRequest) -> list[str]:
    """The command line's options for a request; defaults are left out."""
    given: tuple[tuple[str, object, object], ...]
    match request:
        case Evaluate():
            given = (
                ("--weights", request.weights, None),
                ("--cases", request.cases, None),
                ("--atol", request.atol, None),
                ("--dtype", request.dtype, "float64"),
            )
        case Benchmark():
            given = (
                ("--model", request.model, None),
                ("--lengths", ",".join(map(str, request.lengths)), DEFAULT_LENGTHS),
                ("--new-tokens", request.new_tokens, 40),
                ("--repeats", request.repeats, 5),
                ("--dtype", request.dtype, "auto"),
                ("--tp", request.tp, 1),
                ("--compile", request.compile, "off"),
            )
        case Batch():
            default = Batch()
            given = (
                ("--model", request.model, None),
                ("--batches", ",".join(map(str, request.batches)), ",".join(map(str, default.batches))),
                ("--context", request.context, default.context),
                ("--new-tokens", request.new_tokens, default.new_tokens),
                ("--repeats", request.repeats, default.repeats),
                ("--dtype", request.dtype, default.dtype),
                ("--tp", request.tp, default.tp),
            )
        case Formats():
            given = (("--model", request.model, None),)
    words = [part for flag, value, usual in given if value != usual for part in (flag, f"{value}")]
    return [*words, "--equal"] if isinstance(request, Batch) and not request.ragged else words
