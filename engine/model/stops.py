"""Stop texts, which end a generation: the text shown never contains a part of one."""

from collections.abc import Sequence


class StopTexts:
    """Takes pieces of text and returns what is safe to show. After the first stop text it returns nothing."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """The text that is safe to show: all before a stop text or before a possible beginning of one."""
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
        """The text that was held back as a possible stop text but is none."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """How many characters at the end of the text are the beginning of ``stop``."""
        longest = min(len(text), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
