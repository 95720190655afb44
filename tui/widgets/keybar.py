"""The foot of the screen: the active keys, as many as fit. Each can be clicked.

Under a list or the help, these are the keys of the app that work there; the list says its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rich.style import Style
from rich.text import Text
from textual import events
from textual.binding import ActiveBinding
from textual.widget import Widget

from tui.widgets.styling import component_style

if TYPE_CHECKING:
    from textual.screen import Screen

PANES = "F2–F8,F12"
RANK = ("help", "quit", "go", "command_palette", "questions", "export", "copy_command", "open", "copy_table")
"""The app's keys, most important first: the last ones are left out if there is no room."""
ORDER = ("help", "go", "questions", "command_palette", "open", "copy_command", "copy_table", "export", "quit")

SHORTER = {"copy command": "command", "copy table": "table", PANES: "F2–F8"}
"""Shorter key texts, used if not everything fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHint:
    """A key in the bar. `rank` says how early it is left out (0: never)."""

    key: str
    shown: str
    words: str
    rank: int

    @property
    def width(self) -> int:
        """Its width in cells, including the gap after it."""
        return len(self.shown) + 1 + len(self.words) + 2


def hints(active: Sequence[ActiveBinding]) -> list[KeyHint]:
    """The bar's content: F1 and the panes, the keys of what has the focus, then the app's."""
    ours: dict[str, KeyHint] = {}
    others: list[KeyHint] = []
    for entry in active:
        binding = entry.binding
        action = binding.action.partition("(")[0].removeprefix("app.")
        if not entry.enabled or not (binding.show or action == "command_palette") or action in ours:
            continue
        if action in RANK:
            shown = PANES if action == "go" else _shown(binding.key)
            words = {"go": "panes", "command_palette": "commands"}.get(action, binding.description)
            ours[action] = KeyHint(key=binding.key, shown=shown, words=words, rank=RANK.index(action))
        else:
            others.append(
                KeyHint(
                    key=binding.key, shown=_shown(binding.key), words=binding.description, rank=RANK.index("questions")
                )
            )
    first = [ours[name] for name in ORDER[:2] if name in ours]
    return [*first, *others, *(ours[name] for name in ORDER[2:] if name in ours)]


def _shown(key: str) -> str:
    return key_name(key).replace("ctrl+", "^")


def key_name(key: str) -> str:
    """A key as on keyboards: ``ctrl+p``, ``F1``, ``↑``."""
    if key[:1] == "f" and key[1:].isdigit():
        return key.upper()
    return _KEY_NAMES.get(key, key)


_KEY_NAMES = {
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "escape": "Esc",
    "enter": "Enter",
    "space": "Space",
    "tab": "Tab",
    "home": "Home",
    "end": "End",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "ctrl+underscore": "ctrl+_",
    "ctrl+slash": "ctrl+/",
}


def fitting_hints(all_hints: Sequence[KeyHint], width: int) -> list[KeyHint]:
    """`all_hints` without the least important ones, so that the rest fits into `width`."""
    kept = list(all_hints)
    while sum(hint.width for hint in kept) > width + 2 and len(kept) > 1:
        worst = max(range(len(kept)), key=lambda i: (kept[i].rank, i))
        del kept[worst]
    return kept


class KeyBar(Widget):
    """One line of keys, redrawn when they change."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    KeyBar {
        dock: bottom; height: 1; padding: 0 1; background: $panel; color: $text-muted;
        & > .keybar--key { color: $text-accent; text-style: bold; }
        & > .keybar--hover { background: $primary 20%; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"keybar--key", "keybar--hover"}

    def __init__(self) -> None:
        super().__init__(id="keybar")
        self._hints: list[KeyHint] = []

    def on_mount(self) -> None:
        """Follow the screen's bindings."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, screen: Screen[object]) -> None:
        if screen is self.screen and self.is_attached:
            covered = self.app.screen is not screen
            active = screen.active_bindings.values()
            found = hints([entry for entry in active if not covered or entry.node is self.app])
            if found != self._hints:
                self._hints = found
                self.refresh()

    @property
    def shown(self) -> list[KeyHint]:
        """What fits now."""
        width = self.content_size.width
        if sum(hint.width for hint in self._hints) <= width + 2:
            return self._hints
        short = [
            replace(h, shown=SHORTER.get(h.shown, h.shown), words=SHORTER.get(h.words, h.words)) for h in self._hints
        ]
        return fitting_hints(short, width)

    def render(self) -> Text:
        look = component_style(self, "keybar--key")
        text = Text(no_wrap=True)
        for hint in self.shown:
            click = Style(meta={"press": hint.key})
            text.append(hint.shown, look + click).append(f" {hint.words}", click).append("  ")
        return text

    def on_click(self, event: events.Click) -> None:
        """A click presses the key."""
        key = event.style.meta.get("press")
        if key is not None:
            self.app.simulate_key(key)
