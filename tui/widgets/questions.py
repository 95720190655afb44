"""The inverse questions over the pane: set a batch and a TP, with all answers below."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import HorizontalGroup, VerticalGroup, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from calc.errors import CalcError
from tui.views.questions import whole_answer
from tui.views.rule import Rule
from tui.views.table_text import table_text
from tui.widgets.derivation import wrap
from tui.widgets.dial import Dial, NumberDial

LEAST_CELLS = 30


def answer_text(rule: Rule, *, batch: int, tp: int, width: int) -> Text:
    """All questions and answers for `width` cells."""
    text = Text()
    for title, sentences, table in whole_answer(rule, batch=batch, tp=tp):
        text.append(f"{title}\n", "bold")
        for sentence in sentences:
            text.append("\n".join(wrap(f"· {sentence}", max(LEAST_CELLS, width), hang=2))).append("\n")
        if table is not None:
            text.append_text(table_text(table, max(LEAST_CELLS, width))).append("\n")
        text.append("\n")
    return text


class Questions(ModalScreen[None]):
    """↑ ↓ scroll; Tab moves to batch and TP; ← → or digits change them; Esc closes."""

    DEFAULT_CSS = """
    Questions {
        align: center top; background: $background 60%;
        & > VerticalGroup {
            width: 96; max-width: 100%; height: 1fr; margin: 1 1; padding: 0 1; background: $surface;
            border: round $primary; border-title-color: $text-primary; border-subtitle-color: $text-muted;
        }
        #answers { height: 1fr; scrollbar-size-vertical: 1; margin: 1 0 0 0; }
        #dials { height: 1; }
        #answer-text { height: auto; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+f", "leave", "back"),
        Binding("ctrl+q", "app.quit", "quit", priority=True),
    ]
    AUTO_FOCUS = "#answers"

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule

    def compose(self) -> ComposeResult:
        study = self._rule.study
        with VerticalGroup() as box:
            asked = f"{study.model.title} on {study.device.name}, {study.context:,} tokens"
            box.border_title = f"What fits where · {asked}, {self._rule.name}"
            box.border_subtitle = "Tab: batch, TP · ←→ change · ↑↓ scroll · Esc closes"
            with HorizontalGroup(id="dials"):
                yield NumberDial("batch", 1, maximum=10**6, unit="requests", id="question-batch")
                yield NumberDial("TP", self._rule.tp, maximum=1024, unit="devices", id="question-tp")
            with VerticalScroll(id="answers"):
                yield Static(id="answer-text", markup=False)

    def on_mount(self) -> None:
        """Answer as soon as the width is known."""
        self.call_after_refresh(self._answer)

    def on_resize(self) -> None:
        """Sentences keep to the width."""
        self.call_after_refresh(self._answer)

    @on(Dial.Changed)
    def _turned(self, event: Dial.Changed) -> None:
        event.stop()
        self._answer()

    def _answer(self) -> None:
        if not self.is_mounted:
            return
        batch, tp = (self.query_one(f"#question-{name}", NumberDial).value for name in ("batch", "tp"))
        place = self.query_one("#answer-text", Static)
        try:
            place.update(answer_text(self._rule, batch=batch, tp=tp, width=place.content_size.width or 76))
        except CalcError as error:
            place.update(f"✗ {error}")

    def action_leave(self) -> None:
        """Back to the pane."""
        self.dismiss(None)
