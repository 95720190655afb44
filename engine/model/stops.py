"""Texts that end a generation: what is shown never holds a part of one."""

from collections.abc import Sequence


class StopTexts:
    """Pieces of text in, what is certain to be wanted out. After the first stop text nothing more comes."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What can be shown: all before a stop text, or before what may become one."""
        if self.found:
            return ""
        text = self._held + piece
        places = [at for stop in self._texts if (at := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = max((self._overlap(text, stop) for stop in self._texts), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back and has become none."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """How many of the last characters are the first of ``stop``."""
        longest = min(len(text), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
