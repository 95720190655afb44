"""Text from outside, made safe to show: the only place that knows what a terminal would interpret.

A model's answer, a file name or an error may contain escape sequences (window title, clear screen, clipboard) or
characters that reverse the reading direction. They are shown as in JSON (``\\u001b``), never sent. Each character is
handled separately, so it does not matter where a stream is cut. `engine.plain` does the same.
"""

from __future__ import annotations

import re

UNSAFE = r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
"""Control characters except tab and newline (C0, DEL, C1), line separators, bidirectional controls, surrogates.

Compiled on first use (re caches it).
"""


def plain(text: str) -> str:
    """`text` with unsafe characters as ``\\uXXXX``; tabs and line breaks stay. JSON text stays the same document.

    >>> plain("a\\x1b]0;title\\x07b")
    'a\\\\u001b]0;title\\\\u0007b'
    """
    if text.isprintable():
        return text
    return re.sub(UNSAFE, lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """`plain` for a name or a sentence: tabs and line breaks are shown as well.

    >>> one_line("two\\nlines")
    'two\\\\nlines'
    """
    if text.isprintable():
        return text
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")
