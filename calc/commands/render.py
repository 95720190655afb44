"""Tables as plain text, CSV or Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from calc.commands.tables import Table
from calc.plain import one_line

GAP = 2
TEXT_FLOOR = 12
"""A column of words is not narrowed below this: it would be all line breaks."""
SENTENCE_WIDTH = 100
"""Longer lines of prose are hard to follow, however wide the terminal."""


def as_text(table: Table, *, width: int | None = None, styled: bool = False) -> str:
    """The table with a heading and aligned columns; `styled` adds a terminal's bold and dim.

    Where that is wider than `width` columns, cells are wrapped; where they would be too narrow for that, each
    row becomes a block of lines.
    """
    table = _safe(table)
    title = _bold(table.title) if styled else table.title
    widths = [max(len(line[i]) for line in (table.columns, *table.rows)) for i in range(len(table.columns))]
    if width is not None and _total(widths) > width:
        narrowed = None if table.chain else _narrowed(table, widths, width)
        if narrowed is None:
            return "\n".join([title, *(_chained(table, width) if table.chain else _stacked(table, width))])
        widths = narrowed
    rule = (" " * GAP).join("─" * width for width in widths)
    body = [line for i, row in enumerate(table.rows) for line in _struck(table, i, _lines(table, row, widths), styled)]
    return "\n".join([title, *_lines(table, table.columns, widths, low=True), _dim(rule) if styled else rule, *body])


def as_sentences(sentences: Iterable[str], *, width: int | None = None) -> str:
    """Sentences as a list, one a line, or wrapped with a hanging indent."""
    sentences = [one_line(sentence) for sentence in sentences]
    if width is None:
        return "\n".join(f"· {sentence}" for sentence in sentences)
    room = min(width, SENTENCE_WIDTH)
    return "\n".join(line for sentence in sentences for line in _wrap(sentence, room, "· ", "  "))


def _safe(table: Table) -> Table:
    """The table with names that came from outside made safe to show."""
    rows = tuple(tuple(map(one_line, row)) for row in table.rows)
    return replace(table, title=one_line(table.title), rows=rows)


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m"


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m"


def _struck(table: Table, row: int, lines: list[str], styled: bool) -> list[str]:
    return [_dim(line) for line in lines] if styled and row in table.struck else lines


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    if len(first) + len(text) <= width:
        return [first + text]
    import textwrap  # only where a line is too long

    width = max(width, len(rest) + 8 if rest else 1)  # behind an indent some room is always left
    lines = textwrap.wrap(_glued(text), width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in lines]


def _glued(text: str) -> str:
    """`text` with products held together: a formula breaks at its sums first."""
    return text.replace(" · ", "\u00a0·\u00a0")


def _lines(table: Table, cells: Sequence[str], widths: Sequence[int], *, low: bool = False) -> list[str]:
    """The cells side by side; long ones wrapped, short ones at the top (at the bottom where `low`)."""
    columns = [_wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, columns))
    filled = [[""] * (height - len(c)) + c if low else c + [""] * (height - len(c)) for c in columns]

    def line(row: int) -> str:
        padded = (
            column[row].rjust(width) if i in table.numeric else column[row].ljust(width)
            for i, (column, width) in enumerate(zip(filled, widths, strict=True))
        )
        return (" " * GAP).join(padded).rstrip()

    return [line(row) for row in range(height)]


def _narrowed(table: Table, widths: list[int], width: int) -> list[int] | None:
    """Column widths that fit, headings wrapped first, then the widest words; None where words get too narrow."""
    columns = range(len(widths))
    narrowed = list(widths)
    for floors in ([_floor(table, i, widths[i]) for i in columns], [_floor(table, i, TEXT_FLOOR) for i in columns]):
        while _total(narrowed) > width and narrowed != floors:
            above = [i for i in columns if narrowed[i] > floors[i]]
            narrowed[max(above, key=lambda i: narrowed[i])] -= 1
    return narrowed if _total(narrowed) <= width else None


def _floor(table: Table, column: int, at_least: int) -> int:
    """The least width of a column: numbers and words unbroken, and `at_least` for text that is as long."""
    cells = [row[column] for row in table.rows]
    longest = max((len(cell) for cell in cells), default=0)
    words = [len(word) for text in (table.columns[column], *cells) for word in _glued(text).split(" ")]
    return max([longest if column in table.numeric else min(longest, at_least), *words])


def _stacked(table: Table, width: int) -> list[str]:
    """Each row as a block: its first cell, and the others below it behind their headings."""
    margin = max(len(heading) for heading in table.columns[1:]) + 6
    lines = []
    for row in table.rows:
        lines.append(f"  {row[0]}".rstrip())
        for heading, cell in zip(table.columns[1:], row[1:], strict=True):
            if cell:
                lines += _wrap(cell, width, f"    {heading}".ljust(margin), " " * margin)
    return lines


def _chained(table: Table, width: int) -> list[str]:
    """Each row as an equation behind its name: on one line, else a line for each equals sign, else below the name."""
    margin = max((len(row[0]) for row in table.rows), default=0) + 4
    lines = []
    for name, *cells in table.rows:
        whole, lead = " = ".join(cells), f"  {name}".ljust(margin)
        if len(lead) + len(whole) <= width:
            lines.append(lead + whole)
            continue
        beside = margin + 2 + max(map(len, cells)) <= width
        indent = " " * (margin if beside else 6)
        first = [lead + cells[0]] if beside else [f"  {name}", *_wrap(cells[0], width, indent, indent)]
        lines += [*first, *(x for cell in cells[1:] for x in _wrap(cell, width, f"{indent}= ", f"{indent}  "))]
    return [line.rstrip() for line in lines]


_PLAIN: dict[str, str | int | None] = {
    "─": "-", "−": "-", "–": "-", "·": "*", "⌊": "floor(", "⌋": ")", "ᵀ": "^T", "²": "^2", "³": "^3", "→": "->",
}  # fmt: skip


def in_encoding(text: str, encoding: str) -> str:
    """`text` as far as `encoding` can say it: our signs in ASCII where they are missing, other letters as ``?``."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(str.maketrans(_PLAIN)).encode(encoding, "replace").decode(encoding)
    return text


def as_csv(table: Table) -> str:
    """The table as RFC 4180 lines, headings first."""
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.columns, *_safe(table).rows])
    return out.getvalue().rstrip("\n")


def as_markdown(table: Table) -> str:
    """The table for Markdown, numbers to the right, struck rows struck."""

    table = _safe(table)

    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.columns))]
    body = [
        row(f"~~{cell}~~" if cell and i in table.struck else cell for cell in cells)
        for i, cells in enumerate(table.rows)
    ]
    return "\n".join([f"### {table.title}", "", row(table.columns), row(rule), *body])
