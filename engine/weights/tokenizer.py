"""A thin wrapper over ``tokenizers``, with incremental detokenization for streams."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import tokenizers

from engine.errors import TokenizerError
from engine.weights.pointers import NOT_FETCHED, is_pointer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # shown by a decoder for an incomplete character
_MAX_HELD = 3  # most bytes of an incomplete character, each of which may be shown so


@contextmanager
def faults_told(say: Callable[[str], str]) -> Iterator[None]:
    """Turn any error of the library into a TokenizerError; ``say`` builds its message from the library's.

    For an inconsistent file the library raises a bare Exception or the PanicException of its Rust code, which is not
    an Exception and would end the process.
    """
    try:
        yield
    except Exception as error:
        raise TokenizerError(say(str(error))) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(say(str(error))) from None


class Tokenizer:
    """Text to ids and back. Gaps in its file may show only when a text is encoded: then TokenizerError is raised."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Read a tokenizer.json. Raises TokenizerError."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TokenizerError(f"{path} cannot be read: {error.strerror or error}") from None
        if is_pointer(data):
            raise TokenizerError(f"{path} is not a tokenizer.json: {NOT_FETCHED}")
        with faults_told(lambda fault: f"{path} is not a tokenizer.json: {fault}"):
            backend = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            backend.no_padding()  # settings left by the person who saved it; prompts are not cut or padded
            backend.no_truncation()
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token except the added ones, which differ between models of one family."""
        return self._backend.get_vocab(with_added_tokens=False)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of a text, with the special tokens that the tokenizer adds (such as BOS).

        Without ``add_special``, only the special tokens in the text: for chat templates, which write them themselves.
        """
        with faults_told(lambda fault: f"the model's tokenizer fails at this text: {fault}"):
            return self._backend.encode(text, add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out."""
        with faults_told(lambda fault: f"the model's tokenizer fails at these tokens: {fault}"):
            return self._backend.decode(list(ids), skip_special_tokens=True)

    def stream(self) -> "TextStream":
        """A fresh incremental decoder."""
        return TextStream(self)


class TextStream:
    """Decodes ids one at a time; the pieces add up to the whole text, and characters are never split.

    A token can contain part of a character's bytes; they are held back until the character is complete. Each call
    decodes only a short window of ids, long enough for the spaces between words to be right.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._n_told = 0  # ids of the window whose text has been fully returned
        self._given = ""  # text of the window that has been returned

    def push(self, token_id: int) -> str:
        """The text that is final after this token."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        ready = _without_unfinished(text)
        if not ready.startswith(self._given):
            return ""  # bytes of the next character have made earlier ones unreadable for now
        piece, self._given = ready[len(self._given) :], ready
        if piece and ready == text:
            self._window = self._window[self._n_told :]
            self._n_told = len(self._window)
            self._given = self._tokenizer.decode(self._window)
        return piece

    def finish(self) -> str:
        """The text still held back (an incomplete character)."""
        text = self._tokenizer.decode(self._window)
        piece, self._given = text[len(self._given) :], text
        return piece


def _without_unfinished(text: str) -> str:
    """The text without a possibly incomplete character at its end."""
    held = len(text) - len(text.rstrip(_UNFINISHED))
    return text[: len(text) - min(held, _MAX_HELD)]
