"""The last filter before the terminal: removes every character that a terminal would interpret."""

from __future__ import annotations

import re

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from calc.plain import UNSAFE


class PlainText(LineFilter):
    """Removes unsafe characters from every drawn line, whichever widget it comes from.

    Text from outside is sanitized where it comes in (`calc.plain.plain`). This filter is for text that was missed, and
    for typed text. The line keeps its width.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments without unsafe characters; most lines are unchanged."""
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [_plain(segment) for segment in segments]


def _plain(segment: Segment) -> Segment:
    if segment.control or segment.text.isprintable():
        return segment
    return Segment(re.sub(UNSAFE, _stand_in, segment.text), segment.style)


def _stand_in(found: re.Match[str]) -> str:
    """A replacement of the same width: nothing, except a sign for half of a surrogate pair."""
    return "\ufffd" if "\ud800" <= found[0] <= "\udfff" else ""
