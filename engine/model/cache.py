"""What a decoder needs of a KV cache, preallocated memory: the only thing that changes while generating.

`cache_kinds` has the ways to keep what tokens leave, `states` adds layers with a state of fixed size, `cache_choice`
says which one a model gets. Shapes: B rows, K KV heads, T new tokens, S tokens in sight, h head_dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(slots=True)
class SeenText:
    """The text that a cache was made from, which models keep whose positions turn by the length of the text.

    ``long``: which rows are beyond the original context, or how long their texts are (see `Decoder._beyond`).
    ``whole``: tokens that the text will have at least, where that is known beforehand.
    """

    ids: Tensor | None = None
    long: tuple[int, ...] = ()
    whole: int = 0


class Cache(Protocol):
    """What the decoder needs of a cache. Rows of a batch share one length; `padding` tells where they begin."""

    @property
    def seen(self) -> SeenText:
        """What it was made from."""
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
        """Tokens at the left of each row (B,) that are only there to make rows equally long; None: none."""
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
        """Keep what a layer's new tokens leave; all keys and values now in sight, each (B, K, S, h)."""
        ...

    def key_positions(self, n_new: int, window: int | None) -> Tensor:
        """Positions (S,) of the keys that `append` of ``n_new`` tokens returns in a layer with that window."""
        ...

    def require(self, n_rows: int, n_new: int) -> None:
        """Raise CacheError unless ``n_new`` more tokens of ``n_rows`` rows fit."""
        ...

    @property
    def rows_at_once(self) -> int:
        """Tokens of one pass that may be taken back again."""
        ...

    def begin_rows(self, n_new: int) -> None:
        """As `require`, before a pass of which those tokens are taken back that nobody counts before the next one."""
        ...

    def turn_to(self, length: int) -> None:
        """The next token comes after ``length`` tokens: within a pass whose tokens go through a layer one by one."""
        ...

    def advance(self, n_new: int) -> None:
        """Count ``n_new`` tokens that every layer has appended."""
        ...

    def truncate(self, length: int) -> int:
        """Forget all but the first ``length`` tokens; how many are left (fewer, when they are gone already)."""
        ...

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        ...


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many leading ids two sequences share."""
    n = min(len(held), len(wanted))
    return next((i for i in range(n) if held[i] != wanted[i]), n)


def reuse_prefix(cache: Cache, held: Sequence[int], prompt: Sequence[int]) -> int:
    """Keep in a one-row cache what it shares with a new prompt; how many prompt tokens need no prefill.

    ``held``: the ids whose K and V the cache has (its first ``cache.length`` are looked at). At least the
    prompt's last token is left to run, because its logits are wanted.
    """
    shared = common_prefix(held[: cache.length], prompt[: max(0, len(prompt) - 1)])
    return cache.truncate(shared)
