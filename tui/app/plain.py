"""The last door before the terminal: what an app draws holds no character that a terminal acts upon."""

from __future__ import annotations

import re

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from calc.plain import UNSAFE


class PlainText(LineFilter):
    """Takes unsafe characters out of every line that is drawn, whichever widget it comes from.

    Texts from outside are made safe to read where they come in (`calc.plain.plain`). This is for those that were
    forgotten, and for what is typed. The line keeps its width.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments without unsafe characters; most lines as they are."""
        if all(segment.text.isprintable() for segment in segments):
            return segments
        return [_plain(segment) for segment in segments]


def _plain(segment: Segment) -> Segment:
    if segment.control or segment.text.isprintable():
        return segment
    return Segment(re.sub(UNSAFE, _stand_in, segment.text), segment.style)


def _stand_in(found: re.Match[str]) -> str:
    """What has the same width: nothing, but a sign for half of a surrogate pair."""
    return "\ufffd" if "\ud800" <= found[0] <= "\udfff" else ""
