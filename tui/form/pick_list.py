"""The content of a picker: its lines, their previews, and how they are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


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
    columns: tuple[int, ...]
    custom: Callable[[str], str | None] = lambda _: None
    empty: str = ""
    """The hint if nothing matches."""
