"""A prompt for a path at the foot of the screen: open a file, export a pane."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import HorizontalGroup, VerticalGroup
from textual.suggester import Suggester
from textual.widget import Widget
from textual.widgets import Input, Static

from calc.errors import SourceError
from calc.files import write_whole
from tui.widgets.work import work

MAX_ENTRIES = 2000
SLOW_S = 0.3
"""A path that takes longer shows a message."""


def split_path(text: str, separators: str = os.sep + (os.altsep or "")) -> tuple[str, str]:
    """The typed folder, including its last separator, and the start of a name in it.

    >>> split_path("models/Lla", "/"), split_path("C:\\models/Lla", "\\/"), split_path("Lla", "/")
    (('models/', 'Lla'), ('C:\\models/', 'Lla'), ('', 'Lla'))
    """
    at = max(text.rfind(separator) for separator in separators) + 1
    return text[:at], text[at:]


def complete_path(text: str) -> str | None:
    """`text` completed to the first file or folder that starts with it (folders end in ``/``), or None."""
    folder_text, start = split_path(text)
    folder = Path(folder_text or ".").expanduser()
    try:
        entries = sorted(p for p, _ in zip(folder.iterdir(), range(MAX_ENTRIES), strict=False))
    except (OSError, RuntimeError, ValueError):
        return None
    for entry in entries:
        hidden = entry.name.startswith(".") and not start.startswith(".")
        if entry.name.startswith(start) and not hidden:
            completed = f"{folder_text}{entry.name}" + ((folder_text[-1:] or "/") if entry.is_dir() else "")
            if completed != text:
                return completed
    return None


class PathSuggester(Suggester):
    """Suggests a completion of the path; → or Tab accepts it."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """The completion of `value`."""
        return await asyncio.to_thread(complete_path, value) if value else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRequest:
    """The purpose of a path. `accept` uses it and returns an error sentence, or None when done.

    It reads and writes in a thread: a file system that does not answer must not block the screen.
    """

    label: str
    value: str
    accept: Callable[[str], Awaitable[str | None]]
    hint: str


class PathInput(Input):
    """The bar's input: Tab completes, Esc leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "complete", "complete"),
        Binding("escape", "leave", "cancel"),
        Binding("enter", "submit", "take"),
    ]

    async def action_complete(self) -> None:
        """Take the completion, if there is one."""
        completed = await asyncio.to_thread(complete_path, self.value)
        if completed is not None:
            self.value = completed
            self.cursor_position = len(completed)

    def action_leave(self) -> None:
        """Close the bar; a waiting path is given up."""
        bar = self.query_ancestor(PathBar)
        bar.workers.cancel_group(bar, "path")
        bar.close()


class PathBar(VerticalGroup):
    """Hidden until `ask`. Stays open, with the reason, if the path is refused."""

    DEFAULT_CSS = """
    PathBar {
        display: none; height: auto; background: $panel; padding: 0 1;
        &.-open { display: block; }
        .label { width: auto; padding: 0 1 0 0; text-style: bold; color: $text-primary; }
        PathInput { width: 1fr; background: $foreground 8%; }
        #path-message { height: auto; color: $text-muted; }
        #path-message.-error { color: $text-error; }
    }
    """

    def __init__(self) -> None:
        super().__init__(id="path-bar")
        self._request: PathRequest | None = None
        self._back: Widget | None = None

    @property
    def is_open(self) -> bool:
        """Whether a path is being asked for."""
        return self._request is not None

    async def ask(self, request: PathRequest) -> None:
        """Open with `request` and take the focus."""
        if not self.children:  # created on first use: the first paint does not wait for it
            path = PathInput(id="path", compact=True, suggester=PathSuggester(), select_on_focus=False)
            await self.mount(HorizontalGroup(Static(classes="label"), path), Static(id="path-message"))
        if self._request is None:
            self._back = self.screen.focused
        self._request = request
        self.query_one(".label", Static).update(request.label)
        self.say(request.hint)
        self.add_class("-open")
        path = self.query_one(PathInput)
        path.value = request.value
        path.cursor_position = len(request.value)
        path.focus()

    def say(self, message: str, *, error: bool = False) -> None:
        """A line under the path."""
        line = self.query_one("#path-message", Static)
        line.set_class(error, "-error")
        line.update(Text(f"✗ {message}" if error else message))

    def close(self) -> None:
        """Hide; the focus goes back to where it was."""
        self._request, back = None, self._back
        self._back = None
        if back is not None and back.is_attached:
            back.focus()
        else:
            self.screen.set_focus(None)
        self.remove_class("-open")

    @on(Input.Changed, "#path")
    def _edited(self) -> None:
        if self._request is not None:
            self.say(self._request.hint)

    @on(Input.Submitted, "#path")
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if self._request is not None:
            self.run_worker(work(self._use, self._request, event.value.strip()), group="path", exclusive=True)

    async def _use(self, request: PathRequest, path: str) -> None:
        waiting = self.set_timer(SLOW_S, lambda: self.say(f"waiting for {path} · Esc to give up"))
        refusal = await request.accept(path)
        waiting.stop()
        if self._request is not request:  # it was given up
            return
        if refusal is None:
            self.close()
        else:
            self.say(refusal, error=True)


class FileWriter:
    """Writes a document to the given path. An existing file needs a second Enter on the same path."""

    def __init__(self, text: str, *, done: Callable[[Path], None]) -> None:
        self.text, self._done = text, done
        self._asked: Path | None = None

    async def __call__(self, typed: str) -> str | None:
        """Write; returns a sentence if that fails, else None."""
        if not typed:
            return "Type a file name."
        refusal = await asyncio.to_thread(self._write, typed)
        if refusal is None:
            self._done(Path(typed).expanduser())
        return refusal

    def _write(self, typed: str) -> str | None:
        try:
            path = Path(typed).expanduser()
            if path.is_dir():
                return f"{typed} is a folder. Type the name of a file in it."
            if path.exists() and not path.is_file():
                return f"{typed} is not a regular file. Type another name."
            if path.exists() and path != self._asked:
                self._asked = path
                return f"{typed} exists. Press Enter again to replace it, or type another name."
            write_whole(path, self.text)
        except SourceError as error:
            return f"{error}."
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            return f"cannot write {typed}: {reason}."
        return None
