"""What a run says of itself: that it has begun, each token, how it ended. Without torch."""

from typing import Literal

from engine.records import CacheKind, Event, LastEvent
from engine.speculation import Drafted

StopReason = Literal["eos", "length", "positions", "cache", "cancelled", "stop"]


class GenerationStarted(Event, frozen=True, kw_only=True):
    """The prompt is encoded, the cache allocated, the clock (`start_ns`) runs; the prefill comes next."""

    prompt_ids: tuple[int, ...]
    start_ns: int
    kv_cache_bytes: int
    kv_bytes_per_token: int
    prompt_text: str | None = None
    reused_tokens: int = 0
    """Tokens of the prompt whose keys and values the cache had already."""
    kv_capacity: int = 0
    """Tokens the cache has room for."""


class TokenGenerated(Event, frozen=True, kw_only=True):
    """One new token, `index` from 0. `text` is what it adds; it may be empty until a character is whole."""

    index: int
    token_id: int
    text: str
    time_ns: int
    kv_tokens: int
    kv_used_bytes: int
    drafted: bool = False
    """It had been drafted, so that no pass of its own was needed."""


class GenerationFinished(LastEvent, frozen=True, kw_only=True):
    """The whole run. `ids` and `text` hold the new tokens only; `text` is None without a tokenizer.

    A cancelled run ends like this too, with the tokens made so far and the reason "cancelled".
    `kv_cache_bytes` is the cache allocated for the run, 0 without one; with tensor parallelism it is one rank's.
    `communication_ns` is what rank 0 spent waiting for and adding up with the others, None on a single rank.
    """

    reason: StopReason
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str | None
    start_ns: int
    token_times_ns: tuple[int, ...]
    kv_cache_bytes: int
    communication_ns: int | None = None
    kv_capacity: int = 0
    cache: CacheKind = "full"
    drafted: Drafted | None = None
    """What came of drafting; None where nothing was to be drafted."""
