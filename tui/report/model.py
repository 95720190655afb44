"""A report as data: blocks in order, without any LaTeX or Markdown in the text.

Formulas are `Math`, made from the calculated expressions, so the two output formats cannot differ from each other or
from the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from calc.commands.tables import Table
from calc.explain.terms import SYMBOLS, Expr, Term, to_latex, to_text
from tui.charts.chart import Chart


@dataclass(frozen=True, slots=True)
class Math:
    """A formula: in one line of plain text, and in LaTeX maths."""

    text: str
    latex: str


Inline: TypeAlias = str | Math
Text: TypeAlias = tuple[Inline, ...]


def formula(expression: Expr) -> Math:
    """A calculated expression."""
    return Math(to_text(expression), to_latex(expression))


def symbol_math(name: str) -> Math:
    """The symbol of an argument name in `calc.explain.terms.SYMBOLS`."""
    known = SYMBOLS[name]
    return Math(known.text, known.latex)


@dataclass(frozen=True, slots=True)
class Heading:
    """`level` 1 is a section, 2 a part of one."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Running text with formulas in it."""

    text: Text


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list; `numbered` counts the items from 1."""

    items: tuple[Text, ...]
    numbered: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table. `numeric` columns are right-aligned; `struck` rows are shown as impossible.

    `summed` says that the last row is a total.
    """

    title: str
    columns: tuple[Text, ...]
    rows: tuple[tuple[Text, ...], ...]
    numeric: frozenset[int] = field(default_factory=frozenset)
    struck: frozenset[int] = field(default_factory=frozenset)
    summed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A derived number: its name, its symbol for later use (if any), and its term.

    `shown` replaces the formula if its symbols need their own mark (one GPU's share of W).
    """

    name: str
    symbol: Math | None
    term: Term
    shown: Math | None = None

    @property
    def formula(self) -> Math:
        """The formula as it is written."""
        return self.shown or Math(self.term.formula, self.term.latex)


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """Steps of a calculation: formula, substituted numbers, result with its unit."""

    title: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A plot, drawn from its data in either format."""

    chart: Chart
    caption: Text


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Text with its characters and line breaks kept: a model's output."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Lines of this program's source code."""

    text: str


Block: TypeAlias = Heading | Paragraph | Bullets | Grid | Derivation | Figure | Verbatim | Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole document. `passed` is the result of its evaluations, None if there are none."""

    title: str
    subtitle: str
    blocks: tuple[Block, ...]
    passed: bool | None = None

    def terms(self) -> Iterator[Term]:
        """Every derived number of the document, in order."""
        for block in self.blocks:
            if isinstance(block, Derivation):
                yield from (step.term for step in block.steps)


def paragraph(*inlines: Inline) -> Paragraph:
    """A paragraph of its pieces."""
    return Paragraph(inlines)


def plain_items(sentences: Sequence[str]) -> Bullets:
    """Sentences as a list."""
    return Bullets(tuple((sentence,) for sentence in sentences))


def cells(*values: Inline | Text) -> tuple[Text, ...]:
    """A row of a grid: a bare string or formula becomes one cell."""
    return tuple(value if isinstance(value, tuple) else (value,) for value in values)


def grid_of(table: Table, *, title: str | None = None, summed: bool = False) -> Grid:
    """A table of calc, under its own title or another one."""
    return Grid(
        title=table.title if title is None else title,
        columns=cells(*table.headings),
        rows=tuple(cells(*row) for row in table.rows),
        numeric=frozenset(i for i, column in enumerate(table.columns) if column.numeric),
        struck=frozenset(i for i, row in enumerate(table.rows) if row.struck),
        summed=summed,
    )
