"""A thin wrapper over ``tokenizers``, with incremental detokenisation for streams."""

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from engine.errors import TokenizerError

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for the first bytes of a longer character
_MAX_CHARACTER_BYTES = 4  # of UTF-8; a token that so many later ones did not complete never will be


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer.json. Raises TokenizerError."""
        try:
            text = path.read_text(encoding="utf-8")
            return cls(tokenizers.Tokenizer.from_str(text))
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # the library raises bare Exception for any fault of the file
            raise TokenizerError(f"{path} is not a tokenizer.json: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Tokens known, the added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of a text, with the special tokens the tokenizer itself adds (such as a first BOS).

        Without ``add_special`` only those in the text: for a chat template, which writes them itself.
        """
        return self._backend.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> "TextStream":
        """A fresh incremental decoder."""
        return TextStream(self)


class TextStream:
    """Ids one at a time to pieces of text whose sum is the text: characters are never cut.

    A token can hold some bytes of a character; `push` then gives "" until the rest has come. Each call
    decodes only a short window of ids, begun early enough that spaces between words come out right.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._n_told = 0  # ids of the window whose text has been given out

    def push(self, token_id: int) -> str:
        """The text this token completes."""
        self._window.append(token_id)
        told, text = self._texts()
        if len(text) <= len(told):
            return ""
        if text.endswith(_UNFINISHED):
            return self._give_up_one(told)
        self._window = self._window[self._n_told :]
        self._n_told = len(self._window)
        return text[len(told) :]

    def _give_up_one(self, told: str) -> str:
        """Hold all back; but once a character would be too long, its first token is garbage: tell that."""
        if len(self._window) - self._n_told < _MAX_CHARACTER_BYTES:
            return ""
        text = self._tokenizer.decode(self._window[: self._n_told + 1])
        self._window = self._window[self._n_told :]
        self._n_told = 1
        return text[len(told) :]

    def finish(self) -> str:
        """What is still held back (a character that never became whole)."""
        told, text = self._texts()
        self._n_told = len(self._window)
        return text[len(told) :]

    def _texts(self) -> tuple[str, str]:
        told = self._tokenizer.decode(self._window[: self._n_told])
        return told, self._tokenizer.decode(self._window)
