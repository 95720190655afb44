"""Weights, KV cache and what is free, as one bar of the device's memory."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from calc.commands.headline import of_study
from calc.fit.memory import MemoryReport
from calc.units import format_decimal, rounded_up
from tui.widgets.styling import restyled

WEIGHTS, CACHE, FREE, OVER = "█", "▒", "·", "▚"


def bar_cells(parts: tuple[int, ...], total: int, width: int) -> tuple[int, ...]:
    """Cells of each part in a bar of `width`: they add up exactly, and every nonempty part is visible.

    >>> bar_cells((16, 63, 1), 80, 40), bar_cells((1, 999, 0), 1000, 10)
    ((8, 31, 1), (1, 9, 0))
    """
    edges, position = [0], 0
    for part in parts:
        position += part
        edges.append(round(width * position / total))
    cells = [b - a for a, b in pairwise(edges)]
    for i, part in enumerate(parts):
        if part and not cells[i] and max(cells) > 1:
            cells[cells.index(max(cells))] -= 1
            cells[i] = 1
    return tuple(cells)


def memory_bar(report: MemoryReport, width: int) -> Text:
    """The bar of each device, and its legend on as many lines as needed."""
    capacity, found = report.study.device.memory_bytes, of_study(report)
    weights = capacity - found.room_bytes
    if not found.fits:
        return _overfull(capacity, weights, rounded_up(found.each_bytes), width)
    cache = rounded_up(found.max_batch * found.each_bytes)
    word = "KV and state" if report.state_bytes_per_sequence else "KV"
    free = capacity - weights - cache
    a, b, c = bar_cells((weights, cache, free), capacity, width)
    bar = Text.assemble((WEIGHTS * a, "weights"), (CACHE * b, "cache"), (FREE * c, "free"))
    requests = f" = {found.max_batch:,} × {format_decimal(found.each_bytes)}"
    legend = [
        (WEIGHTS, "weights", f"weights {format_decimal(weights)}"),
        (CACHE, "cache", f"{word} {format_decimal(cache)}{requests}"),
        (FREE, "free", f"free {format_decimal(free)}"),
    ]
    if sum(len(words) + 5 for _, _, words in legend) - 3 > width:
        legend[1] = (CACHE, "cache", f"{word} {format_decimal(cache)}")
    return _with_legend(bar, legend, width)


def _overfull(capacity: int, weights: int, request: int, width: int) -> Text:
    """Weights and one request compared with the device that they exceed."""
    needed = weights + request
    inside, over = bar_cells((min(capacity, weights), needed - min(capacity, weights)), needed, width)
    bar = Text.assemble((WEIGHTS * inside, "weights"), (OVER * over, "over"))
    legend = [
        (WEIGHTS, "weights", f"device {format_decimal(capacity)}"),
        (OVER, "over", f"missing {format_decimal(needed - capacity)} with one request"),
    ]
    return _with_legend(bar, legend, width)


def _with_legend(bar: Text, legend: list[tuple[str, str, str]], width: int) -> Text:
    """The bar and its legend; an entry that does not fit on the line starts the next one."""
    room = 0
    for mark, style, words in legend:
        cells = len(words) + 5
        bar.append("   " if room >= cells else "\n").append(mark, style).append(f" {words}")
        room = (room if room >= cells else width + 3) - cells
    return bar


class MemoryBar(Widget):
    """The bar, over the available width."""

    DEFAULT_CSS = """
    MemoryBar {
        height: auto; min-height: 2;
        & > .bar--weights { color: $primary; }
        & > .bar--cache { color: $accent; }
        & > .bar--free { color: $foreground 70%; }
        & > .bar--over { color: $error; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"bar--weights", "bar--cache", "bar--free", "bar--over"}

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._report: MemoryReport | None = None

    def show(self, report: MemoryReport) -> None:
        """Show `report`; laid out again only if the number of lines changes."""
        lines, self._report = self._lines(), report
        self.refresh(layout=lines != self._lines())

    def _lines(self) -> int:
        return self._text(self.content_size.width).plain.count("\n") + 1

    def _text(self, width: int) -> Text:
        return Text("") if self._report is None else memory_bar(self._report, max(10, width))

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """The lines of bar and legend at `width`."""
        return self._text(width).plain.count("\n") + 1

    def render(self) -> Text:
        return restyled(self._text(self.content_size.width), self, "bar")
