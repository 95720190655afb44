"""A thin wrapper over ``tokenizers``, with incremental detokenisation for streams. STUB."""

from collections.abc import Sequence
from pathlib import Path


class Tokenizer:
    """Text to ids and back, from one tokenizer.json."""

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError
