"""The two lines at the top: the question in short, and its answer. All panes share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual.widget import Widget

from calc.commands.headline import Headline, of_study
from calc.fit.memory import MemoryReport
from calc.units import format_binary, format_bytes_exact, format_decimal
from tui.form.draft import device_short_name
from tui.form.state import AppState
from tui.widgets.styling import restyled

if TYPE_CHECKING:
    from tui.form.server import ServerAnswer

Piece = tuple[str, str]
"""Words and the name of their style."""


def question(state: AppState, n_devices: int) -> list[list[Piece]]:
    """The first line in several lengths, the longest first: model · formats · context ▏ devices ▏ rule."""
    study = state.study
    device = device_short_name(study.device)
    name, kv = study.model.title, study.kv_format.name
    weights = _in_short(study.weight_format.name)
    tokens = f"{study.context:,} tokens"
    rule = state.policy.replace("-", " ")
    formats = f"{weights} weights · {kv} KV"
    devices = f" ▏ {device} × {n_devices:,}"
    short = devices if n_devices > 1 else f" ▏ {device}"
    return [
        [(name, "name"), (f" · {formats} · {tokens}", ""), (devices, ""), (f" ▏ {rule}", "")],
        [(name, "name"), (f" · {weights}/{kv} · {tokens}", ""), (devices, ""), (f" ▏ {rule}", "")],
        [(name, "name"), (f" · {weights}/{kv} · {tokens}", ""), (short, "")],
        [(name, "name"), (f" · {study.context:,}", ""), (short, "")],
        [(name, "name"), (short, "")],
        [(name, "name")],
    ]


def _in_short(weights: str) -> str:
    """``fp8, blocks of 128 x 128`` without its details; of a file's formats that of most bytes: ``file (Q4_K …)``."""
    first, comma, _ = weights.partition(",")
    return f"{first} …)" if comma and "(" in first else first


def _batch(found: Headline) -> Piece:
    return (f"MAX BATCH {found.max_batch:,}", "good") if found.fits else ("MAX BATCH 0: does not fit", "bad")


def _served(server: ServerAnswer) -> Piece:
    """Full-length requests that the server holds."""
    if server.report is None:
        return ("server: no result", "bad")
    name, held = server.report.options.engine, server.report.max_concurrency
    return (f"{name} HOLDS {held:,.1f}", "good") if server.report.fits else (f"{name}: does not fit", "bad")


def _largest(report: MemoryReport, server: ServerAnswer | None) -> Piece:
    return _batch(of_study(report)) if server is None else _served(server)


def _n_devices(state: AppState, report: MemoryReport) -> int:
    """The number of devices of the answer."""
    options = state.server
    return of_study(report).devices if options is None else len(options.devices) or options.tp * options.pp


NO_DEVICE = ("estimate: pick a device",)
"""Shown instead of an estimate if the device's bandwidth and peak are unknown."""


def answer(report: MemoryReport, server: ServerAnswer | None = None, estimate: Sequence[str] = ()) -> list[list[Piece]]:
    """The second line in several lengths: weights, KV per token and per request, the largest batch, the estimate.

    `estimate` comes in several lengths, longest first. Until it is available, the ridge is shown.
    """
    weights, kv = report.weight_bytes, report.kv_bytes_per_request
    token = format_bytes_exact(report.kv_bytes_per_token)
    ridge = report.study.device.ridge()
    longest, *shorter = (estimate or [f"ridge {ridge:,.0f} FLOP/B"]) if ridge else NO_DEVICE
    batch = _largest(report, server)
    state = report.state_bytes_per_sequence
    held = f" + {format_decimal(state)} state" if state else ""
    long_weights = (f"weights {format_decimal(weights)} ({format_binary(weights)})", "")
    long_kv = (f"KV {token}/token · {format_decimal(kv)}{held}/request", "")
    short = [
        (f"weights {format_decimal(weights)}", ""),
        (f"KV {token}/tok · {format_decimal(kv)}{held}/req", ""),
        batch,
    ]
    return [
        *([long_weights, long_kv, batch, (words, ""), (f"ridge {ridge:,.0f}", "")] for words in estimate if ridge),
        *([long_weights, long_kv, batch, (words, "")] for words in (longest, *shorter)),
        *([*short, (words, "")] for words in (longest, *shorter)),
        *([[(f"W {format_decimal(weights)}", ""), *short[1:], (shorter[-1], "")]] if shorter else []),
        short,
        [(f"W {format_decimal(weights)}", ""), (f"KV {format_decimal(kv)}", ""), batch],
        [batch],
    ]


def unread(title: str, problem: str, batch: Piece) -> list[list[Piece]]:
    """The second line while a form is invalid: the error, and the answer for the last valid input."""
    whole, short = (f"✗ {title}: {problem}", "bad"), (f"✗ {title}: not valid", "bad")
    return [[whole, ("last valid input:", ""), batch], [short, ("last valid input:", ""), batch], [short, batch]]


def fitting(choices: Sequence[list[Piece]], width: int, gap: str) -> list[Piece]:
    """The first of `choices` that fits into `width` with `gap` between its pieces; else the last."""
    for pieces in choices:
        if sum(cell_len(words) for words, _ in pieces) + len(gap) * (len(pieces) - 1) <= width:
            return list(pieces)
    return list(choices[-1])


class StatusStrip(Widget):
    """Two lines: the question with the engine's state on the right, and the answer."""

    DEFAULT_CSS = """
    StatusStrip {
        height: 2; padding: 0 1; background: $panel; color: $foreground;
        & > .strip--title { text-style: bold; color: $text-primary; }
        & > .strip--name { text-style: bold; }
        & > .strip--good { text-style: bold; color: $text-success; }
        & > .strip--bad { text-style: bold; color: $text-error; }
        & > .strip--engine { color: $foreground 70%; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {f"strip--{name}" for name in ("title", "name", "good", "bad", "engine")}

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._state: AppState | None = None
        self._report: MemoryReport | None = None
        self._server: ServerAnswer | None = None
        self._estimate: tuple[str, ...] = ()
        self._engine = "○ off"
        self._problem = ("", "")

    def show(self, state: AppState, report: MemoryReport, server: ServerAnswer | None = None) -> None:
        """Show `state` and its answer, a server's where there is one."""
        self._state, self._report, self._server = state, report, server
        self.refresh()

    def show_estimate(self, words: Sequence[str]) -> None:
        """Show the estimate of the state, in several lengths."""
        if tuple(words) != self._estimate:
            self._estimate = tuple(words)
            self.refresh()

    def show_engine(self, line: str) -> None:
        """Show what the engine is doing."""
        if line != self._engine:
            self._engine = line
            self.refresh()

    def show_problem(self, title: str, problem: str) -> None:
        """Say what is wrong with the form of the pane `title`; "" for nothing."""
        if (title, problem) != self._problem:
            self._problem = (title, problem)
            self.refresh()

    def plain(self, width: int) -> list[str]:
        """Both lines as text for `width` cells."""
        return self._text(width).plain.split("\n")

    def render(self) -> Text:
        return restyled(self._text(self.content_size.width), self, "strip")

    def _text(self, width: int) -> Text:
        if self._state is None or self._report is None:
            return Text("\n")
        engine = f"engine {self._engine}" if self._engine else ""
        room = width // 3 if width < 100 else width // 4
        if len(engine) > room:
            engine = f"{self._engine[: room - 1]}…" if len(self._engine) > room else self._engine
        title = "kvscope   " if width >= 100 else "kvscope "
        asked = question(self._state, _n_devices(self._state, self._report))
        first = _line(fitting(asked, width - len(title) - len(engine) - 2, ""), "")
        line = Text(no_wrap=True)
        line.append(title, "title")
        line.append_text(first)
        if engine:
            line.append(" " * max(2, width - line.cell_len - len(engine)))
            line.append(engine, "engine")
        second = _line(fitting(self._answer(), width, "   "), "   ")
        return line.append("\n").append_text(second)

    def _answer(self) -> list[list[Piece]]:
        assert self._report is not None
        title, problem = self._problem
        if problem:
            return unread(title, problem, _largest(self._report, self._server))
        return answer(self._report, self._server, self._estimate)


def _line(pieces: list[Piece], gap: str) -> Text:
    text = Text(no_wrap=True)
    for i, (words, style) in enumerate(pieces):
        text.append(gap if i else "").append(words, style or None)
    return text
