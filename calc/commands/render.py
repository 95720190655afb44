"""Tables as plain text, CSV or Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from calc.commands.tables import KEPT, Table
from calc.plain import one_line
from calc.units import Interval, Quantity

GAP = 2
TEXT_FLOOR = 12
"""A column of words is never narrower than this."""
SENTENCE_WIDTH = 100
"""Longer lines of prose are hard to follow, however wide the terminal."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A table at some width: the drawn columns (indexes) with their widths, and those that do not fit."""

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    left_out: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        """Characters of a line."""
        return _total(self.widths)


def laid_out(table: Table, width: int | None, *, wrap: bool = True) -> Layout | None:
    """How `table` is drawn in `width` characters; None if not even its KEPT columns fit side by side.

    Empty columns are not drawn. Headings are wrapped first, then (with `wrap`) long cells; then the columns with the
    lowest priority are left out, one after another.
    """
    shown = [i for i, column in enumerate(table.columns) if column.priority == KEPT or _filled(table, i)]
    left_out: list[int] = []
    while (widths := _widths(table, shown, width, wrap=wrap)) is None:
        spare = [i for i in shown if table.columns[i].priority < KEPT]
        if not spare:
            return None
        left_out.append(min(spare, key=lambda i: (table.columns[i].priority, -i)))
        shown.remove(left_out[-1])
    return Layout(tuple(shown), widths, tuple(sorted(left_out)))


def cut_to(table: Table, width: int, *, wrap: bool = True) -> Layout:
    """How `table` is drawn in `width` characters; if even its KEPT columns do not fit, only those, to be cut."""
    found = laid_out(table, width, wrap=wrap)
    if found is not None:
        return found
    kept = tuple(i for i, column in enumerate(table.columns) if column.priority == KEPT)
    left_out = tuple(i for i in range(len(table.columns)) if i not in kept and _filled(table, i))
    return Layout(kept, _widths(table, kept, None, wrap=False) or (), left_out)


def _filled(table: Table, column: int) -> bool:
    return any(row[column] for row in table.rows)


def as_text(table: Table, *, width: int | None = None, styled: bool = False) -> str:
    """The table with a heading and aligned columns; `styled` adds a terminal's bold and dim.

    If it does not fit into `width` columns, it is narrowed, and columns that were left out are named; if even that does
    not fit, each row becomes a block of lines.
    """
    table = _safe(table)
    heading = [table.title] if width is None else _wrap(table.title, width)
    title = "\n".join(_bold(line) if styled else line for line in heading)
    layout = laid_out(table, None if table.chain else width)
    if table.chain and width is not None and layout is not None and layout.total > width:
        return "\n".join([title, *_chained(table, width)])
    if layout is None:
        return "\n".join([title, *_stacked(table, width or 0)])
    lines = [_styled(text, style) if styled else text for text, style in table_lines(table, layout)]
    return "\n".join([title, *lines, *_left_out(table, layout, width)])


def _styled(text: str, style: str) -> str:
    return _dim(text) if style in ("rule", "struck") else text


def _left_out(table: Table, layout: Layout, width: int | None) -> list[str]:
    """Names the columns that did not fit."""
    if not layout.left_out or width is None:
        return []
    names = ", ".join(table.columns[i].heading for i in layout.left_out)
    return _wrap(f"No room for: {names}. --format csv has every column.", width)


def table_lines(table: Table, layout: Layout, *, rule: bool = True) -> list[tuple[str, str]]:
    """The lines of a table, each with its style: "head", "rule", "struck", "strong" or ""."""
    lines = [(line, "head") for line in _heading_lines(table, layout)]
    if rule:
        lines.append(((" " * GAP).join("─" * width for width in layout.widths), "rule"))
    for row in table.rows:
        style = "struck" if row.struck else "strong" if row.strong else ""
        lines += [(line, style) for line in _lines(table, [row[i] for i in layout.columns], layout)]
    return lines


def _heading_lines(table: Table, layout: Layout) -> list[str]:
    """Names of the columns, with the names of their groups in a line above."""
    columns = [table.columns[i] for i in layout.columns]
    names = _lines(table, [column.name for column in columns], layout, low=True)
    if not any(column.group for column in columns):
        return names
    parts = []
    for group, run in groupby(zip(columns, layout.widths, strict=True), key=lambda pair: pair[0].group):
        span = _total([width for _, width in run])
        parts.append(f"{group} ".ljust(span, "─")[:span] if group else " " * span)
    return [(" " * GAP).join(parts).rstrip(), *names]


def column_labels(table: Table, layout: Layout) -> list[str]:
    """The headings of the drawn columns, all with the same number of lines; a group's name is above its first
    column."""
    columns = [table.columns[i] for i in layout.columns]
    labels = [_wrap(column.name, width) for column, width in zip(columns, layout.widths, strict=True)]
    height = max(map(len, labels), default=0)
    labels = [[""] * (height - len(label)) + label for label in labels]
    if any(column.group for column in columns):
        groups = [column.group for column in columns]
        first = [group if group != before else "" for group, before in zip(groups, ("", *groups), strict=False)]
        labels = [[group, *label] for group, label in zip(first, labels, strict=True)]
    return ["\n".join(label) for label in labels]


def as_heading(heading: str, *, width: int | None = None) -> str:
    """A heading, wrapped if it is too long for `width`."""
    heading = one_line(heading)
    return heading if width is None else "\n".join(_wrap(heading, width))


def as_sentences(sentences: Iterable[str], *, width: int | None = None) -> str:
    """Sentences as a list, one per line, or wrapped with a hanging indent."""
    sentences = [one_line(sentence) for sentence in sentences]
    if width is None:
        return "\n".join(f"· {sentence}" for sentence in sentences)
    room = min(width, SENTENCE_WIDTH)
    return "\n".join(line for sentence in sentences for line in _wrap(sentence, room, "· ", "  "))


def _safe(table: Table) -> Table:
    """The table with names from outside made safe to show."""
    rows = tuple(replace(row, cells=tuple(map(_safe_cell, row))) for row in table.rows)
    return replace(table, title=one_line(table.title), rows=rows)


def _safe_cell(cell: str) -> str:
    return cell if isinstance(cell, Quantity | Interval) else one_line(cell)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m"


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m"


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    if len(first) + len(text) <= width:
        return [first + text]
    import textwrap  # only if a line is too long

    width = max(width, len(rest) + 8 if rest else 1)  # always leave some room after the indent
    lines = textwrap.wrap(_glued(text), width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def _glued(text: str) -> str:
    """`text` with products kept together: a formula breaks at its sums first."""
    return text.replace(" · ", "\u00a0·\u00a0")


def _lines(table: Table, cells: Sequence[str], layout: Layout, *, low: bool = False) -> list[str]:
    """The drawn cells side by side; long ones wrapped, short ones at the top (with `low`, at the bottom)."""
    columns = [_wrap(cell, width) for cell, width in zip(cells, layout.widths, strict=True)]
    height = max(map(len, columns))
    filled = [[""] * (height - len(c)) + c if low else c + [""] * (height - len(c)) for c in columns]
    return [
        (" " * GAP)
        .join(
            _padded(column[line], width, right=table.columns[i].numeric)
            for i, column, width in zip(layout.columns, filled, layout.widths, strict=True)
        )
        .rstrip()
        for line in range(height)
    ]


def _padded(text: str, width: int, *, right: bool) -> str:
    fill = " " * (width - _cells(text))
    return fill + text if right else text + fill


def _cells(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _widths(table: Table, shown: Sequence[int], width: int | None, *, wrap: bool) -> tuple[int, ...] | None:
    """Widths of the columns `shown` within `width`, with headings wrapped first, then words; None if they do not
    fit."""
    widths = _grouped(table, shown, [_floor(table, i, None, heading=True) for i in shown])
    if width is None:
        return tuple(widths)
    levels = [[_floor(table, i, None) for i in shown]]
    if wrap:
        levels.append([_floor(table, i, TEXT_FLOOR) for i in shown])
    for level in levels:
        floors = _grouped(table, shown, level)
        while _total(widths) > width and (wide := [i for i, floor in enumerate(floors) if widths[i] > floor]):
            widths[max(wide, key=lambda i: widths[i])] -= 1
    return tuple(widths) if _total(widths) <= width else None


def _floor(table: Table, column: int, at_least: int | None, *, heading: bool = False) -> int:
    """The minimum width of a column: numbers and words stay whole, longer text gets `at_least` (None: its full length).

    With `heading`, the heading stays on one line.
    """
    head, cells = table.columns[column], [row[column] for row in table.rows]
    longest = max(map(_cells, cells), default=0)
    text = longest if head.numeric or at_least is None else min(longest, at_least)
    words = [head.name] if heading else _glued(head.name).split(" ")
    if not head.numeric and at_least is not None:
        words += [word for cell in cells for word in _glued(cell).split(" ")]
    return max([text, *map(_cells, words)])


def _grouped(table: Table, shown: Sequence[int], widths: list[int]) -> list[int]:
    """`widths` with the first column of a group as wide as the group's name."""
    for (place, i), before in zip(enumerate(shown), (None, *shown), strict=False):
        group = table.columns[i].group
        if group and (before is None or table.columns[before].group != group):
            widths[place] = max(widths[place], len(group))
    return widths


def _stacked(table: Table, width: int) -> list[str]:
    """Each row as a block: its first cell, and below it the others after their headings."""
    _, *headings = table.headings
    margin = max(map(len, headings), default=0) + 6
    lines = []
    for row in table.rows:
        lines += _wrap(row[0], width, "  ", "  ")
        for heading, cell in zip(headings, row[1:], strict=True):
            if cell:
                lines += _wrap(cell, width, f"    {heading}".ljust(margin), " " * margin)
    return [line.rstrip() for line in lines]


def _chained(table: Table, width: int) -> list[str]:
    """Each row as an equation after its name: on one line, else one line per equals sign, else below the name."""
    margin = max((len(row[0]) for row in table.rows), default=0) + 4
    lines = []
    for name, *cells in table.rows:
        whole, lead = " = ".join(cells), f"  {name}".ljust(margin)
        if len(lead) + len(whole) <= width:
            lines.append(lead + whole)
            continue
        beside = margin + 2 + max(map(len, cells)) <= width
        indent = " " * (margin if beside else 6)
        below = [*_wrap(name, width, "  ", "  "), *_wrap(cells[0], width, indent, indent)]
        first = [lead + cells[0]] if beside else below
        lines += [*first, *(x for cell in cells[1:] for x in _wrap(cell, width, f"{indent}= ", f"{indent}  "))]
    return [line.rstrip() for line in lines]


_PLAIN: dict[str, str | int | None] = {
    "─": "-", "−": "-", "–": "-", "·": "*", "⌊": "floor(", "⌋": ")", "ᵀ": "^T", "²": "^2", "³": "^3", "→": "->",
}  # fmt: skip


def in_encoding(text: str, encoding: str) -> str:
    """`text` in `encoding`: characters that it lacks become ASCII if they are our own signs, else ``?``."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(str.maketrans(_PLAIN)).encode(encoding, "replace").decode(encoding)
    return text


def as_csv(table: Table) -> str:
    """The table as RFC 4180 lines, headings first. Quantities are plain numbers with their unit in the heading.

    A column with several units is followed by a column that names them; a column that repeats another in other units is
    left out.
    """
    import csv
    import io

    table = _safe(table)
    columns = [lines for i, column in enumerate(table.columns) if not column.repeats for lines in _csv(table, i)]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(zip(*columns, strict=True))
    return out.getvalue().rstrip("\n")


def _csv(table: Table, column: int) -> list[list[str]]:
    """A column with its heading, and a second one for the units if they differ. An interval becomes two columns."""
    cells = [row[column] for row in table.rows]
    if any(isinstance(cell, Interval) for cell in cells):
        name = table.columns[column].heading.removesuffix(", low to high")
        lows = [cell.low if isinstance(cell, Interval) else cell for cell in cells]
        highs = [cell.high if isinstance(cell, Interval) else cell for cell in cells]
        return [*_numbers(f"{name} low", lows), *_numbers(f"{name} high", highs)]
    return _numbers(table.columns[column].heading, cells)


def _numbers(heading: str, cells: list[str]) -> list[list[str]]:
    """Cells as plain numbers under a heading with their unit."""
    units = dict.fromkeys(cell.unit for cell in cells if isinstance(cell, Quantity))
    if len(units) > 1:
        named = [cell.unit if isinstance(cell, Quantity) else "" for cell in cells]
        return [[heading, *map(_plain, cells)], ["Unit", *named]]
    unit = next(iter(units), "")
    return [[f"{heading} ({unit})" if unit else heading, *map(_plain, cells)]]


def _plain(cell: str) -> str:
    """A quantity as a number that any CSV reader accepts; a dash becomes an empty cell."""
    if not isinstance(cell, Quantity):
        return "" if cell == "–" else str(cell)
    if isinstance(cell.value, float) and not cell.value.is_integer():
        return repr(cell.value)
    return str(int(cell.value)) if cell.value == int(cell.value) else repr(float(cell.value))


def as_markdown(table: Table) -> str:
    """The table as Markdown, with numbers right-aligned and struck rows struck through."""

    table = _safe(table)

    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---:" if column.numeric else "---" for column in table.columns]
    body = [row(f"~~{cell}~~" if cell and one.struck else cell for cell in one) for one in table.rows]
    return "\n".join([f"### {table.title}", "", row(table.headings), row(rule), *body])
