"""The base of every tab: a container that shows the analysis and can be copied, exported and asked for help."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import ClassVar, TypeVar

from textual.containers import Container
from textual.message import Message
from textual.widgets import Static

from calc.commands.tables import Table
from tui.form.state import Analysis, AppState

T = TypeVar("T")


class StateEdited(Message):
    """`origin` proposes a new state; the app analyses it, answers `origin` and shows the state elsewhere."""

    def __init__(self, state: AppState, origin: Pane) -> None:
        super().__init__()
        self.state, self.origin = state, origin


class Pane(Container):
    """Base of the tabs. The app calls these methods; subclasses override those that apply."""

    TITLE: ClassVar[str]
    HELP: ClassVar[str] = ""
    OF_STATE: ClassVar[bool] = True
    """Whether it shows the app's state, and so is affected by an invalid form in another pane."""

    def show(self, state: AppState, analysis: Analysis) -> None:
        """Show `state`: called on start and after every edit, and never while the pane is not mounted."""

    def answer(self, state: AppState, analysis: Analysis) -> None:
        """Show the results of `state`, which this pane proposed. Its fields may already hold a later edit."""
        self.show(state, analysis)

    def tables(self) -> tuple[Table, ...]:
        """Tables for copying and export; the first is the one that has the cursor."""
        return ()

    def export_markdown(self) -> str:
        """The pane as a document, for export."""
        raise NotImplementedError

    def problem(self) -> str:
        """What is wrong with a form outside the state, without a full stop; "" if nothing is."""
        return ""

    def show_problem(self, line: str, problem: str) -> None:
        """Show the error in the typed text in the `line` of that name, which is otherwise hidden."""
        place = self.query_one(line, Static)
        place.update(f"✗ {problem}" if problem else "")
        place.display = bool(problem)

    def command_line(self) -> str:
        """The ``kvscope …`` command that prints what the pane shows."""
        raise NotImplementedError


async def collected(items: Iterator[T]) -> list[T]:
    """All items, each computed between other messages: a key never waits for more than one item."""
    found = []
    for item in items:
        found.append(item)
        await asyncio.sleep(0)
    return found
