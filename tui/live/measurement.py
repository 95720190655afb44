"""One job of the Benchmark tab as the app follows it: events in, rows and text out. No widgets here."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from calc.commands.tables import Table
from calc.units import format_duration_s
from engine.measure.measurement import Measurement
from engine.measure.registry import measurement_of
from engine.process.events import EngineExited, Failed, Loaded
from engine.records import Cancelled, Event, MeasurementFinished, ModelInfo, Progress, Request, RowMeasured
from tui.live.engine_link import loading_text
from tui.live.measured import PRESENTATIONS
from tui.live.presentation import Prediction, Presentation


class JobState(Enum):
    """The state of a job."""

    RUNNING = auto()
    PASSED = auto()
    STOPPED = auto()
    FAILED = auto()
    """The engine failed, or a check in the measurement did."""


@dataclass(slots=True)
class Job:
    """A running measurement and its results. `outcome` says how it ended, in words."""

    request: Request
    model: ModelInfo | None = None
    """The measured model: the one in memory, until another is loaded."""
    rows_by_key: dict[Hashable, Any] = field(default_factory=dict)
    """The latest row per key, in the order in which the keys came."""
    latest: RowMeasured | None = None
    predicted: Prediction | None = None
    """calc's predictions for the rows."""
    result: Any = None
    progress: Progress | None = None
    state: JobState = JobState.RUNNING
    outcome: str = ""
    measurement: Measurement = field(init=False)

    def __post_init__(self) -> None:
        measurement = measurement_of(self.request)
        if measurement is None:
            raise TypeError(f"{type(self.request).__name__} asks for no measurement")
        self.measurement = measurement

    @classmethod
    def finished(cls, request: Request, event: Event, model: ModelInfo | None) -> Job:
        """The job of a request that was answered by `event`."""
        job = cls(request, model=model)
        job.feed([event])
        return job

    @property
    def presentation(self) -> Presentation:
        """Its presentation."""
        return PRESENTATIONS[self.measurement.name]

    @property
    def name(self) -> str:
        """The measurement's name, as on the command line."""
        return self.measurement.name

    @property
    def rows(self) -> tuple[Any, ...]:
        """The rows measured so far."""
        return tuple(self.rows_by_key.values())

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.state is not JobState.RUNNING

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        return self.state is JobState.FAILED

    @property
    def table(self) -> Table:
        """The rows so far as a table."""
        return self.presentation.table(self)

    @property
    def data_table(self) -> Table:
        """The same for files and the command line."""
        return (self.presentation.data_table or self.presentation.table)(self)

    @property
    def notes(self) -> list[str]:
        """Sentences on the measurements and on the predictions."""
        basis = [self.predicted.basis] if self.predicted is not None else []
        return [*basis, *getattr(self.result, "notes", ())]

    @property
    def progress_line(self) -> str:
        """``1 of 6 · bfloat16 · 12 s left``; empty before the engine starts."""
        if self.progress is None:
            return ""
        left = self.progress.remaining_s
        parts = [f"{self.progress.done} of {self.progress.total}", self.progress.detail]
        if self.progress.stage == "load":
            parts = [f"loading {loading_text(self.progress)}"]
        return " · ".join(filter(None, [*parts, "" if left is None else f"{format_duration_s(left)} left"]))

    def words(self) -> list[str]:
        """The command that measures the same; defaults are left out."""
        return [self.name, *self.measurement.words(self.request)]

    def feed(self, events: Sequence[Event]) -> None:
        """Take a batch of events."""
        for event in events:
            self._take(event)

    def fail(self, message: str) -> None:
        """End the job with what went wrong."""
        self.state, self.outcome = JobState.FAILED, f"✗ {message}"

    def _take(self, event: Event) -> None:
        match event:
            case Progress():
                self.progress = event
            case Loaded():
                self.model = event.model
            case RowMeasured():
                self.latest = event
                self._add(event.row)
                self._predict()
            case MeasurementFinished():
                self._finish(event.result)
            case Cancelled():
                self.state, self.outcome = JobState.STOPPED, "stopped by you; what was measured is kept"
            case Failed() | EngineExited():
                self.fail(event.message)
            case _:
                pass

    def _add(self, row: object) -> None:
        self.rows_by_key[self.measurement.key(row)] = row

    def _finish(self, result: Any) -> None:
        self.result = result
        for row in self.measurement.rows(result):
            self._add(row)
        self._predict()
        self.outcome = self.presentation.outcome(self)
        self.state = JobState.PASSED if self.measurement.passed(result) else JobState.FAILED

    def _predict(self) -> None:
        if self.presentation.predict is not None and self.model is not None:
            self.predicted = self.presentation.predict(self, self.model)
