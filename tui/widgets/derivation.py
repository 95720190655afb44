"""The calculation behind a number: formula, substituted numbers and result, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.geometry import Size
from textual.widget import Widget

from calc.commands.tables import term_value
from calc.explain.terms import SYMBOLS, Expr, Term
from tui.widgets.styling import restyled

INDENT = 2


def symbols_of(expression: Expr) -> list[str]:
    """Argument names in an expression, in the order of their first appearance."""
    if expression.op == "sym":
        return [str(expression.args[0])]
    found: dict[str, None] = {}
    for arg in expression.args:
        if isinstance(arg, Expr):
            found.update(dict.fromkeys(symbols_of(arg)))
    return list(found)


def legend(terms: Iterable[Term]) -> str:
    """What the symbols of `terms` mean: ``L layers · d head dimension``."""
    names: dict[str, None] = {}
    for term in terms:
        names.update(dict.fromkeys(symbols_of(term.expression)))
    return " · ".join(dict.fromkeys(f"{SYMBOLS[name].text} {SYMBOLS[name].meaning}" for name in names))


def wrap(text: str, width: int, *, hang: int = 0) -> list[str]:
    """`text` wrapped at spaces into lines of at most `width`, later ones indented by `hang`."""
    lines: list[str] = []
    current = ""
    for word in text.split(" "):
        candidate = f"{current} {word}" if current else word
        if len(candidate) > width - (hang if lines else 0) and current:
            lines.append(current)
            current = word
        else:
            current = candidate
    lines.append(current)
    return [line if i == 0 else " " * hang + line for i, line in enumerate(lines)]


def step_lines(term: Term, width: int, *, named: bool = True) -> Text:
    """One step: its name, then formula = numbers = result, on one line if it fits."""
    text = Text()
    if named:
        text.append("\n".join(wrap(term.name, width)), "name").append("\n")
    parts = [(term.formula, "formula"), (term.substituted, ""), (term_value(term), "value")]
    if term.formula == term.substituted:
        del parts[1]
    whole = " = ".join(part for part, _ in parts)
    room = width - INDENT
    if len(whole) <= room:
        text.append(" " * INDENT)
        for i, (part, style) in enumerate(parts):
            text.append(" = " if i else "").append(part, style)
        return text
    for i, (part, style) in enumerate(parts):
        lead = "= " if i else "  "
        for j, line in enumerate(wrap(part, max(12, room - 2), hang=0)):
            text.append("\n" if i or j else "")
            text.append(" " * INDENT + (lead if j == 0 else "  ")).append(line, style)
    return text


def derivation_text(title: str, terms: Sequence[Term], width: int, *, remark: str = "", note: str = "") -> Text:
    """All steps under a title, then what the symbols mean."""
    text = Text()
    if title:
        text.append("\n".join(wrap(title, width)), "title").append("\n")
    for words, style in ((remark, "remark"), (note, "")):
        if words:
            text.append("\n".join(wrap(words, width)), style).append("\n\n")
    for i, term in enumerate(terms):
        named = i > 0 or term.name != title or bool(remark or note)
        text.append_text(step_lines(term, width, named=named)).append("\n\n")
    meanings = legend(terms)
    if meanings:
        text.append("\n".join(wrap(meanings, width)), "legend")
    return text


class Derivation(Widget):
    """Shows the steps of a number, wrapped to the width there is."""

    DEFAULT_CSS = """
    Derivation {
        height: auto;
        & > .d--title { text-style: bold; color: $text-primary; }
        & > .d--name { color: $foreground 70%; }
        & > .d--formula { color: $text-accent; }
        & > .d--value { text-style: bold; }
        & > .d--legend { color: $foreground 70%; }
        & > .d--remark { color: $text-warning; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"d--title", "d--name", "d--formula", "d--value", "d--legend", "d--remark"}

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.title = ""
        self.terms: tuple[Term, ...] = ()
        self.remark = self.note = ""

    def show(self, title: str, terms: Sequence[Term], *, remark: str = "", note: str = "") -> None:
        """Show `terms` under `title`, with a remark if something is impossible, or a note on the source."""
        shown = (title, tuple(terms), remark, note)
        if shown != (self.title, self.terms, self.remark, self.note):
            self.title, self.terms, self.remark, self.note = shown
            self.refresh(layout=True)

    def _text(self, width: int) -> Text:
        return derivation_text(self.title, self.terms, width, remark=self.remark, note=self.note)

    def plain(self) -> str:
        """The text as shown on the screen."""
        return self._text(self.content_size.width or 80).plain

    def render(self) -> Text:
        text = self._text(max(24, self.content_size.width))
        return restyled(text, self, "d")

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        text = self._text(max(24, width))
        return text.plain.rstrip("\n").count("\n") + 1
