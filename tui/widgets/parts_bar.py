"""The parts of a device's memory under a server, as one stacked bar; the table below it is its legend."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.widget import Widget

from calc.servers.records import ServerReport
from tui.views.server import device_bytes, parts
from tui.widgets.bar import bar_cells
from tui.widgets.styling import restyled


def parts_text(report: ServerReport, width: int) -> Text:
    """The bar for `width` cells. If the parts exceed the device, the excess is marked at its end."""
    found, total = parts(report), device_bytes(report)
    held = [part for part in found if part.size > 0]
    cells = bar_cells(tuple(part.size for part in held), max(total, sum(part.size for part in held)), width)
    text = Text(no_wrap=True)
    for part, n in zip(held, cells, strict=True):
        text.append(part.mark * n, part.style)
    over = sum(part.size for part in held) - total
    if over > 0:
        n = min(width, max(1, round(width * over / (total + over))))
        text = text[: width - n]
        text.append("✗" * n, "over")
    return text


class PartsBar(Widget):
    """The bar, as wide as there is room."""

    DEFAULT_CSS = """
    PartsBar {
        height: 1; margin: 0 1 0 1;
        & > .parts--weights { color: $primary; }
        & > .parts--activations { color: $success; }
        & > .parts--runtime { color: $secondary; }
        & > .parts--graphs { color: $warning; }
        & > .parts--cache { color: $accent; }
        & > .parts--free { color: $foreground 70%; }
        & > .parts--over { color: $error; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"parts--{name}" for name in ("weights", "activations", "runtime", "graphs", "cache", "free", "over")
    }

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._report: ServerReport | None = None

    def show(self, report: ServerReport | None) -> None:
        """Show `report`, or nothing."""
        self._report = report
        self.refresh()

    def render(self) -> Text:
        if self._report is None:
            return Text("")
        return restyled(parts_text(self._report, max(10, self.content_size.width)), self, "parts")
