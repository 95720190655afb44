"""Tables as plain text, CSV or Markdown; documents as JSON; files written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from calc.tables import Table


def as_text(table: Table) -> str:
    """The table with a heading and aligned columns."""
    lines = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]

    def cells(line: Sequence[str]) -> str:
        padded = (
            cell.rjust(width) if i in table.numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([table.title, cells(table.columns), rule, *map(cells, table.rows)])


def as_csv(table: Table) -> str:
    """The table as RFC 4180 lines, headings first."""
    import csv
    import io

    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.columns, *table.rows])
    return out.getvalue().rstrip("\n")


def as_markdown(table: Table) -> str:
    """The table for Markdown, numbers to the right, struck rows struck."""

    def row(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---:" if i in table.numeric else "---" for i in range(len(table.columns))]
    body = [
        row(f"~~{cell}~~" if cell and i in table.struck else cell for cell in cells)
        for i, cells in enumerate(table.rows)
    ]
    return "\n".join([f"### {table.title}", "", row(table.columns), row(rule), *body])


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` by way of a temporary file beside it, so that no half file is ever seen.

    What is no regular file (/dev/stdout, a named pipe) is written into, never replaced. Raises OSError (ValueError
    or RuntimeError for a path that cannot be one); nothing is left behind then.
    """
    import tempfile

    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as stream:
            stream.write(text)
        return
    target = path.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".kvscope-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
