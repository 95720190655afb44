"""Lines with their spread as a file: SVG by hand, text by plotext, PNG by cairosvg.

Pure functions of a `Drawing`, without torch. plotext and cairosvg are imported only where they draw.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.sax.saxutils import escape

from engine.errors import OptionError

SUFFIXES = (".svg", ".png", ".txt")
ScaleName = Literal["log", "linear"]

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 92, 24, 62, 92
_LOG_SPAN = 8
"""Values that span more than this factor are drawn on a logarithmic axis unless the drawing says otherwise."""
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A value at x, with the least and the greatest that were seen."""

    x: int
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the plot. Marker and dash differ, so that no line depends on its colour.

    Without a marker it is a plain line: what is calculated, not measured. ``symbol`` stands for the marker in text.
    """

    label: str
    colour: str
    marker: Literal["circle", "cross"] | None
    symbol: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What a plot shows, before it has a format. ``tick`` writes a value of the y axis.

    Scales left out are logarithmic where the values span more than a factor of 8.
    """

    title: str
    x_title: str
    y_title: str
    tick: Callable[[float], str]
    lines: tuple[Line, ...]
    caption: str = ""
    x_scale: ScaleName | None = None
    y_scale: ScaleName | None = None

    @property
    def xs(self) -> list[int]:
        """Every x that has a point, in order. Raises ValueError where there is none."""
        found = sorted({point.x for line in self.lines for point in line.points})
        if not found:
            raise ValueError("there are no points to plot")
        return found


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from low..high (both inside the axis) to pixels start..end, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        """Pixel of `value`."""
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (at - low) / (high - low)


# --- entry points -----------------------------------------------------------------------------------------


def check_plot_path(path: Path) -> None:
    """Raise `OptionError`, before anything is measured, for a plot that could not be written afterwards."""
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError("plot", f"a plot is written as {', '.join(SUFFIXES)}; {path.name} is none of them")
    if path.suffix.lower() == ".png":
        _cairosvg()


def render(path: Path, drawing: Drawing) -> bytes:
    """The plot in the format that the name of the file asks for. Raises OptionError."""
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return f"{as_text(drawing)}\n".encode()
    svg = as_svg(drawing)
    return as_png(svg) if suffix == ".png" else svg.encode()


# --- SVG --------------------------------------------------------------------------------------------------


def as_svg(drawing: Drawing) -> str:
    """A complete SVG document."""
    x = make_scale(drawing.xs, _LEFT + 14, _WIDTH - _RIGHT - 14, drawing.x_scale)
    bounds = [bound for line in drawing.lines for point in line.points for bound in (point.low, point.high)]
    y = make_scale(bounds, _HEIGHT - _BOTTOM, _TOP, drawing.y_scale, widen=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="13" fill="#222">',
        f"<title>{escape(drawing.title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        _text(_LEFT, 26, drawing.title, size=16, anchor="start"),
        *_x_axis(x, drawing),
        *_y_axis(y, drawing),
        *(part for line in drawing.lines for part in _line(line, x, y)),
        *_legend(drawing.lines),
        *_caption(drawing.caption),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def make_scale(
    values: Sequence[float], start: float, end: float, name: ScaleName | None, *, widen: bool = False
) -> Scale:
    """A scale that holds all `values` (> 0); with `widen` it goes on to round ends (zero if linear)."""
    low, high = min(values), max(values)
    log = high > _LOG_SPAN * low if name is None else name == "log"
    if log and widen:
        low, high = _round_down(low), -_round_down(-high)
    elif widen:
        low, high = 0.0, high * 1.05
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 0.5, high + 0.5)
    return Scale(low, high, start, end, log)


def ticks(scale: Scale) -> list[float]:
    """Round values inside the scale: 1, 2, 5 of each decade (1 alone over many decades), or equal steps."""
    if not scale.log:
        rough = (scale.high - scale.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= rough * (1 - 1e-9))
        first = math.ceil(scale.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(scale.high / step + 1e-9) + 1)]
    decades = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    for mantissas in ((1, 2, 5), (1,)):
        values = [m * 10.0**k for k in decades for m in mantissas]
        inside = [v for v in values if scale.low * (1 - 1e-9) <= v <= scale.high * (1 + 1e-9)]
        if len(inside) <= 10:
            break
    return inside


def _round_down(value: float) -> float:
    """The next of 1, 2, 5 x 10^k at or below `value`; for a negative one, away from zero."""
    size = abs(value)
    unit = 10.0 ** math.floor(math.log10(size))
    if value > 0:
        return max(m * unit for m in (1, 2, 5) if m * unit <= size * (1 + 1e-9))
    return -min(m * unit for m in (1, 2, 5, 10) if m * unit >= size * (1 - 1e-9))


def _x_axis(x: Scale, drawing: Drawing) -> list[str]:
    """The axis with a tick at every measured x; labels that would touch the one before are left out."""
    bottom = _HEIGHT - _BOTTOM
    parts = [_segment(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "#222")]
    last = -math.inf
    for value in drawing.xs:
        at, label = x(value), f"{value:,}"
        parts.append(_segment(at, bottom, at, bottom + 5, "#222"))
        if at - last > 4 + 8 * len(label):
            parts.append(_text(at, bottom + 20, label))
            last = at
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 42, _axis_title(drawing.x_title, x)))
    return parts


def _y_axis(y: Scale, drawing: Drawing) -> list[str]:
    parts = [_segment(_LEFT, _TOP, _LEFT, _HEIGHT - _BOTTOM, "#222")]
    for value in ticks(y):
        parts.append(_segment(_LEFT, y(value), _WIDTH - _RIGHT, y(value), "#e4e4e4"))
        parts.append(_text(_LEFT - 8, y(value) + 4, drawing.tick(value), anchor="end"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    title = _axis_title(drawing.y_title, y)
    parts.append(f'<text transform="translate(20 {middle:.1f}) rotate(-90)" text-anchor="middle">{title}</text>')
    return parts


def _axis_title(title: str, scale: Scale) -> str:
    return f"{title}, logarithmic" if scale.log else title


def _line(line: Line, x: Scale, y: Scale) -> list[str]:
    """The line through the values; a bar from least to greatest and a marker at each that was measured."""
    points = sorted(line.points, key=lambda point: point.x)
    path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in points)
    dash = ' stroke-dasharray="6 4"' if line.marker == "cross" else ""
    parts = [f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>']
    for point in points if line.marker else []:
        at = x(point.x)
        parts.append(_segment(at, y(point.low), at, y(point.high), line.colour))
        parts.append(_marker(line, at, y(point.y)))
    return parts


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        at = _LEFT + 14 + 170 * number
        parts.append(_marker(line, at, 46))
        parts.append(_text(at + 12, 50, line.label, anchor="start"))
    return parts


def _caption(caption: str) -> list[str]:
    lines = caption.splitlines()
    return [
        _text(_LEFT, _HEIGHT - 14 - 15 * (len(lines) - 1 - number), line, size=11, anchor="start")
        for number, line in enumerate(lines)
    ]


def _marker(line: Line, x: float, y: float) -> str:
    if line.marker is None:
        return _segment(x - 8, y, x + 8, y, line.colour)
    if line.marker == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{line.colour}"/>'
    d = f"M{x - 4.5:.1f} {y - 4.5:.1f}l9 9m0 -9l-9 9"
    return f'<path d="{d}" fill="none" stroke="{line.colour}" stroke-width="2"/>'


def _segment(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, *, size: int = 13, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


# --- PNG --------------------------------------------------------------------------------------------------


def as_png(svg: str) -> bytes:
    """The SVG as a picture at twice its size. Raises OptionError without cairosvg."""
    png: bytes = _cairosvg()(bytestring=svg.encode(), scale=2)
    return png


def _cairosvg() -> Callable[..., bytes]:
    try:
        from cairosvg import svg2png
    except (ImportError, OSError):  # OSError: the package is there, the cairo library of the system is not
        raise OptionError(
            "plot", "a .png plot needs cairosvg: pip install 'kvscope[png]', or write .svg or .txt"
        ) from None
    convert: Callable[..., bytes] = svg2png
    return convert


# --- text -------------------------------------------------------------------------------------------------


def as_text(drawing: Drawing, *, width: int = 78, height: int = 22) -> str:
    """The plot in plain characters; no colour codes."""
    from plotext._figure import _figure_class  # a figure of our own: plotext's functions share a global one

    x = make_scale(drawing.xs, 0, 1, drawing.x_scale)
    values = [point.y for line in drawing.lines for point in line.points]
    y = make_scale(values, 0, 1, drawing.y_scale, widen=True)
    figure = _figure_class()
    figure._limit_size(False, False)
    figure.plot_size(width, height)
    figure.theme("clear")
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    figure.xlim(0, 1)
    figure.ylim(0, 1)
    figure.xticks([x(value) for value in drawing.xs], [f"{value:,}" for value in drawing.xs])
    figure.yticks([y(value) for value in ticks(y)], [drawing.tick(value) for value in ticks(y)])
    figure.xlabel(_axis_title(drawing.x_title, x))
    for marker in (".", None):  # lines first, symbols over them
        for line in drawing.lines:
            points = sorted(line.points, key=lambda point: point.x)
            draw = figure.plot if marker else figure.scatter
            draw([x(p.x) for p in points], [y(p.y) for p in points], marker=marker or line.symbol)
    legend = "   ".join(f"{line.symbol} {line.label}" for line in drawing.lines)
    head = f"{drawing.title}{', logarithmic' if y.log else ''}\n{legend}\n"
    body = _ESCAPE.sub("", str(figure.build()))
    return head + "\n".join(line.rstrip() for line in body.rstrip("\n").split("\n"))
