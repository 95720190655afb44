"""The interface of a KV cache: preallocated memory, the only state that changes during generation.

`cache_kinds` has the storage layouts, `states` adds layers with a state of fixed size, and `cache_choice` picks the
cache for a model.

Shapes: B rows, K KV heads, T new tokens, S tokens in sight, h head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(slots=True)
class SeenText:
    """The text behind a cache, for models whose rotary angles depend on the length of the text.

    ``long``: which rows exceed the original context, or how long their texts are (see `Decoder._beyond`).
    ``whole``: the least number of tokens that the text will have, where that is known in advance.
    """

    ids: Tensor | None = None
    long: tuple[int, ...] = ()
    whole: int = 0


class Cache(Protocol):
    """The interface that the decoder uses. All rows of a batch have one length; `padding` says where each begins."""

    @property
    def seen(self) -> SeenText:
        """The text that the cached keys and values were computed from."""
        ...

    @property
    def batch_size(self) -> int:
        """Rows."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that each row can hold."""
        ...

    @property
    def length(self) -> int:
        """Tokens that each row holds."""
        ...

    @property
    def padding(self) -> Tensor | None:
        """Left padding of each row in tokens (B,), which makes all rows equally long; None: no padding."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ...

    @property
    def used_bytes(self) -> int:
        """Bytes of the tokens held."""
        ...

    def append(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of a layer's new tokens; returns all visible keys and values, each (B, K, S, h)."""
        ...

    def key_positions(self, n_new: int, window: int | None) -> Tensor:
        """Positions (S,) of the keys that `append` of ``n_new`` tokens returns in a layer with that window."""
        ...

    def require(self, n_rows: int, n_new: int) -> None:
        """Raise CacheError unless ``n_new`` more tokens of ``n_rows`` rows fit."""
        ...

    @property
    def rows_at_once(self) -> int:
        """The most tokens of one pass that can be rolled back."""
        ...

    def begin_rows(self, n_new: int) -> None:
        """Like `require`, before a pass that may be rolled back: tokens not counted by the next pass are dropped."""
        ...

    def turn_to(self, length: int) -> None:
        """In a pass whose tokens go through a layer one by one: the next token follows ``length`` tokens."""
        ...

    def advance(self, n_new: int) -> None:
        """Count ``n_new`` tokens that every layer has appended."""
        ...

    def truncate(self, length: int) -> int:
        """Keep only the first ``length`` tokens; returns how many remain (fewer if some were overwritten already)."""
        ...

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        ...


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    n = min(len(held), len(wanted))
    return next((i for i in range(n) if held[i] != wanted[i]), n)


def reuse_prefix(cache: Cache, held: Sequence[int], prompt: Sequence[int]) -> int:
    """Truncate a one-row cache to the prefix it shares with a new prompt; returns how many prompt tokens skip prefill.

    ``held``: the ids whose K and V the cache has (only the first ``cache.length`` count). At least the
    last token of the prompt always runs, because its logits are needed.
    """
    shared = common_prefix(held[: cache.length], prompt[: max(0, len(prompt) - 1)])
    return cache.truncate(shared)
