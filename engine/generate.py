"""Prefill and decode as an iterator of events with raw timestamps; rates are computed elsewhere.

STUB: the signatures are final, the body follows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from engine.model import Decoder
from engine.tokenizer import Tokenizer

FinishReason = Literal["eos", "length", "positions", "cache", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How to generate. ``temperature`` 0 is greedy; ``top_k``, ``top_p`` None are off."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    use_cache: bool = True
    stop_at_eos: bool = True
    prefill_chunk: int | None = None
    cache_capacity: int | None = None
    forced_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStarted:
    """The cache is allocated, nothing has run. ``start_ns``: time.perf_counter_ns before prefill."""

    prompt_ids: tuple[int, ...]
    start_ns: int
    kv_capacity_tokens: int
    kv_cache_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenGenerated:
    """One token. ``text`` is what it adds to the text (may be "" while a character is incomplete)."""

    index: int
    token_id: int
    text: str
    time_ns: int
    kv_tokens: int
    kv_used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFinished:
    """Why it stopped, and the whole record. ``text`` is None without a tokenizer."""

    reason: FinishReason
    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]
    text: str | None
    start_ns: int
    token_times_ns: tuple[int, ...]
    kv_cache_bytes: int


GenerationEvent = GenerationStarted | TokenGenerated | GenerationFinished


def generate(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    options: GenerationOptions | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[GenerationEvent]:
    """Started, then one event a token, then Finished. Refusals (PromptError) raise at the call."""
    raise NotImplementedError
