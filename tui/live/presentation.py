"""How the app and the command line present a measurement: inputs, table, chart and texts. Pure.

A `Presentation` adds to an `engine.measure.measurement.Measurement` what needs the calculator: predictions beside the
measured figures, tables and charts. `tui.live.measured` finds one for each measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from calc.commands.tables import Table
from engine.measure.measurement import Document, Measurement
from engine.records import ModelInfo
from engine.text import plural

if TYPE_CHECKING:
    from tui.charts.chart import Chart
    from tui.live.measurement import Job

Side = Literal["evaluation", "model"]
"""The side of the Benchmark pane: checks, or measurements of one model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextField:
    """An input line that sets a field of the request; `read` raises QuantityError with one sentence."""

    name: str
    label: str
    read: Callable[[str], Any]
    text: str = ""
    placeholder: str = ""
    width: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class DialField:
    """A dial that sets a field of the request to `take` of the chosen word."""

    name: str
    label: str
    choices: tuple[str, ...]
    value: str
    help: str
    take: Callable[[str], Any] = str


Line = tuple[TextField | DialField, ...]
"""Inputs side by side."""


class Prediction(Protocol):
    """calc's predictions for the rows of a measurement."""

    @property
    def basis(self) -> str:
        """Its basis, in one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presentation:
    """One measurement as the app offers it."""

    measurement: Measurement
    title: str
    """The command in the palette."""
    hint: str
    """What it does, in a few words."""
    key: str
    button: str
    help: str = ""
    """A paragraph of the pane's help."""
    side: Side = "model"
    place: str = ""
    """The view that shows it, if several measurements share one; else the measurement's own name."""
    form: tuple[Line, ...] = ()
    """Inputs that only this measurement has."""
    table: Callable[[Job], Table]
    data_table: Callable[[Job], Table] | None = None
    """The table for files and the command line, if it differs from the screen's."""
    chart: Callable[[Job | None], Chart] | None = None
    outcome: Callable[[Job], str] = lambda job: f"✓ {plural(len(job.rows), 'row')} measured"
    """How a finished job ended, in words."""
    predict: Callable[[Job, ModelInfo], Prediction | None] | None = None
    """calc's predictions for the rows so far, from the measured model."""
    document: Callable[[Job], Document] = lambda job: job.measurement.document(job.result)
    figure: Callable[[Job], Chart] | None = None
    """The chart that --plot writes to a file; None if there is none."""

    @property
    def name(self) -> str:
        """The measurement's name."""
        return self.measurement.name

    @property
    def view(self) -> str:
        """The view that shows it."""
        return self.place or self.name


def plain_presentation(measurement: Measurement) -> Presentation:
    """A measurement without its own module here: its plain table, once it has ended."""
    return Presentation(
        measurement=measurement,
        title=f"Measure {measurement.name}",
        hint=measurement.summary,
        key="",
        button=measurement.name,
        table=_plain_table,
    )


def _plain_table(job: Job) -> Table:
    rows: Sequence[tuple[str, ...]] = ()
    columns: tuple[str, ...] = ("",)
    if job.result is not None:
        plain = job.measurement.table(job.result)
        columns, rows = plain.header, plain.rows
    return Table(
        title=job.measurement.name, columns=columns, rows=tuple(rows), numeric=frozenset(range(1, len(columns)))
    )
