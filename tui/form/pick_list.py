"""What a picker offers: its lines, their previews, and how they are searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One line of a picker: what is returned, its columns, and how a preview describes it."""

    key: str
    cells: tuple[str, ...]
    preview: Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PickList:
    """What a picker offers. `search` filters; `custom` reads text that no line matches (a path), or refuses it."""

    title: str
    prompt: str
    search: Callable[[str], Sequence[Choice]]
    columns: tuple[int, ...]
    custom: Callable[[str], str | None] = lambda _: None
    empty: str = ""
    """What to do where nothing matches."""
