"""A thin wrapper over ``tokenizers``, with incremental detokenisation for streams."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import tokenizers

from engine.errors import TokenizerError
from engine.weights.pointers import NOT_FETCHED, is_pointer

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows for the first bytes of a longer character
_MAX_HELD = 3  # bytes of a character that has not come to its end, each of which may be shown so


@contextmanager
def faults_told(say: Callable[[str], str]) -> Iterator[None]:
    """Any fault of the library becomes a TokenizerError with the sentence that ``say`` makes of its words.

    The library raises bare Exception for a file that contradicts itself, and for some the PanicException of its Rust
    code, which is no Exception and would end the process.
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
    """Text to ids and back. What its file left out may only show at a text: then TokenizerError is raised."""

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
            backend.no_padding()  # settings of whoever saved it; a prompt is taken as it is
            backend.no_truncation()
        return cls(backend)

    @property
    def vocab_size(self) -> int:
        """Tokens known, the added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of each token but the added ones, of which models of one family have different ones."""
        return self._backend.get_vocab(with_added_tokens=False)

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of a text, with the special tokens the tokenizer itself adds (such as a first BOS).

        Without ``add_special`` only those in the text: for a chat template, which writes them itself.
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
    """Ids one at a time to pieces of text whose sum is the text: characters are never cut.

    A token can hold some bytes of a character; they are held back until the rest has come. Each call decodes only a
    short window of ids, begun early enough that spaces between words come out right.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._n_told = 0  # ids of the window whose text has been given out as a whole
        self._given = ""  # text of the window that has been given out

    def push(self, token_id: int) -> str:
        """The text that is certain with this token."""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        ready = _without_unfinished(text)
        if not ready.startswith(self._given):
            return ""  # bytes of a next character made those before it unreadable, for the moment
        piece, self._given = ready[len(self._given) :], ready
        if piece and ready == text:
            self._window = self._window[self._n_told :]
            self._n_told = len(self._window)
            self._given = self._tokenizer.decode(self._window)
        return piece

    def finish(self) -> str:
        """What is still held back (a character that never became whole)."""
        text = self._tokenizer.decode(self._window)
        piece, self._given = text[len(self._given) :], text
        return piece


def _without_unfinished(text: str) -> str:
    """Without what may be the first bytes of a character."""
    held = len(text) - len(text.rstrip(_UNFINISHED))
    return text[: len(text) - min(held, _MAX_HELD)]
