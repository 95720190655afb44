"""The content of a picker: its lines, their previews, and how they are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

GAP = 2
"""Cells between two columns."""
LEAST = 8
"""Cells below which a column is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One line of a picker: the returned value, its columns, and its preview."""

    key: str
    cells: tuple[str, ...]
    preview: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PickList:
    """The content of a picker. `search` filters; `custom` reads text that no line matches (a path), or refuses it."""

    title: str
    prompt: str
    search: Callable[[str], Sequence[Choice]]
    right: frozenset[int] = frozenset()
    """Columns that are aligned at the right."""
    custom: Callable[[str], str | None] = lambda _: None
    empty: str = ""
    """The hint if nothing matches."""


def column_widths(choices: Sequence[Choice], right: frozenset[int], room: int) -> list[int]:
    """The cells of each column in a line of `room`: as wide as their texts; if that is too much, the last columns of
    words give way first. 0: a column that is left out.
    """
    widths = [max(map(len, column)) for column in zip(*(choice.cells for choice in choices), strict=True)]
    for i in reversed([i for i in range(len(widths)) if i not in right]):
        if (over := _together(widths) - room) > 0:
            left = widths[i] - over
            widths[i] = left if left >= LEAST else LEAST if i == 0 else 0
    return widths


def _together(widths: Sequence[int]) -> int:
    shown = [width for width in widths if width]
    return sum(shown) + GAP * max(0, len(shown) - 1)


def line(choice: Choice, widths: Sequence[int], right: frozenset[int]) -> str:
    """The cells of a choice in columns of `widths`."""
    columns = enumerate(zip(choice.cells, widths, strict=True))
    return (" " * GAP).join(_cell(cell, width, right=i in right) for i, (cell, width) in columns if width).rstrip()


def _cell(text: str, width: int, *, right: bool) -> str:
    shown = text if len(text) <= width else f"{text[: width - 1]}…"
    return shown.rjust(width) if right else shown.ljust(width)
