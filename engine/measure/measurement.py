"""The definition of a measurement: the contract between `engine.measure.kinds` and everything that offers measurements.

A module of `kinds` declares one `Measurement` for each name on the command line. Its request, rows and result are
records of the protocol; its options make the request from words, and words from the request. The module of
`engine.measure.runners` with the same name carries it out; it imports torch, so it is loaded when it is needed.
"""

import textwrap
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from engine.measure.options import Option
from engine.records import Event, Machine, MeasurementFinished, Request, RowMeasured
from engine.text import plural, table

if TYPE_CHECKING:
    from engine.process.held import HeldModel

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainTable:
    """A result for people as data: a title, columns of text, and whole sentences after them."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    after: tuple[str, ...] = ()

    def text(self, width: int | None = None) -> str:
        """The lines; within `width` sentences are wrapped, and rows that are too long become a line for each cell."""
        lines = table(self.header, self.rows)
        if width is not None and max(map(len, lines)) > width:
            lines = [line for row in self.rows for line in (*map(": ".join, zip(self.header, row, strict=True)), "")]
        sentences = (self.title, *self.after)
        title, *after = sentences if width is None else (textwrap.fill(each, width) for each in sentences)
        return "\n".join([title, *lines, *after])


def plain_document(record: msgspec.Struct) -> Document:
    """A record as a JSON reader gets it: lists, not tuples."""
    document: Document = msgspec.json.decode(msgspec.json.encode(record))
    return document


def machine_line(machine: Machine) -> str:
    """Where something was measured, in a line."""
    return (
        f"{machine.cpu}, {plural(machine.cores, 'core')}, {plural(machine.threads, 'thread')}, {machine.dtype}, "
        f"torch {machine.torch}, Python {machine.python}, {machine.system}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement as every interface offers it. `order` is its place among the others."""

    name: str
    """The word on the command line, such as "kv-evaluate"; `--mode` takes it with underscores too."""
    order: int
    summary: str
    """What it does, in a few words, for lists of commands."""
    description: str
    """The same in a sentence, for its own help."""
    doing: Literal["evaluating", "benchmarking"]
    """What the engine is doing meanwhile."""
    request: type[Request]
    row: type[RowMeasured]
    finished: type[MeasurementFinished]
    options: tuple[Option, ...]
    check: Callable[[Any], None]
    """Raises `OptionError` for a request that cannot be run."""
    key: Callable[[Any], Hashable]
    """What a row is of: a later row with the same key replaces the earlier one."""
    document: Callable[[Any], Document]
    """The JSON document of a result; scripts rely on its keys."""
    table: Callable[[Any], PlainTable]
    """A result for people."""
    fixed: Mapping[str, object] = field(default_factory=dict)
    """Fields of the request that the name itself decides."""
    refusals: Mapping[str, str] = field(default_factory=dict)
    """Why it does not accept an option that others accept, by the option's name."""
    rows: Callable[[Any], Sequence[Any]] = lambda result: tuple(result.rows)
    """The rows of a result."""
    borrows: bool = False
    """Whether its model is loaded in addition to the held one."""
    passed: Callable[[Any], bool] = lambda result: True
    """Whether a result is a success; False makes the exit code 1."""
    known: Callable[[Any], MeasurementFinished | None] = lambda request: None
    """The answer if it is known without a run; checked before an engine is started."""
    plots: bool = False
    """Whether its result can be drawn (`--plot`)."""

    @property
    def module(self) -> str:
        """The name of its modules, here and wherever else one belongs to it."""
        return self.request.__module__.rpartition(".")[2]

    @property
    def mode(self) -> str:
        """The name as `--mode` writes it."""
        return self.name.replace("-", "_")

    def made_by(self, request: Request) -> bool:
        """Whether `request` asks for this measurement."""
        return type(request) is self.request and all(getattr(request, k) == v for k, v in self.fixed.items())

    def make(self, values: Mapping[str, Any]) -> Request:
        """The checked request of option values by name; None stands for the default. Raises OptionError."""
        given = {o.field: values[o.name] for o in self.options if values.get(o.name) is not None}
        request = self.request(**{**given, **self.fixed})
        self.check(request)
        return request

    def words(self, request: Request) -> list[str]:
        """The options of the command line that stand for `request`; defaults are left out."""
        usual = self.request()
        values = [(option, getattr(request, option.field), getattr(usual, option.field)) for option in self.options]
        return [word for option, value, default in values if value != default for word in option.words(value)]

    def run(self, request: Request, held: "HeldModel", should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Carry `request` out: progress and rows, then the result or `Cancelled`. Raises EngineError and Stopped."""
        runner = import_module(f"engine.measure.runners.{self.module}")
        events: Iterator[Event] = runner.run(request, held, should_stop)
        return events
