"""The decoder of one rank, the leader that announces each pass, and the loop of the other ranks, which follow it.

Every rank runs the same forward pass on its shard; an all-reduce follows each projection back to the hidden size.
Rank 0 leads: to its caller it is an ordinary `Decoder`, and it announces each pass to the others.
"""

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import OutOfMemory
from engine.model.cache import Cache
from engine.model.cache_choice import make_cache
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.layers import Linear, LinearLike, Weights
from engine.model.shapes import n_parameters
from engine.parallel.group import Group, RankLost
from engine.parallel.shard import Shard, ShardedWeights, shard_config
from engine.records import CacheKind

KINDS: tuple[CacheKind, ...] = get_args(CacheKind)
END, FORWARD, NEW_CACHE = 0, 1, 2
HEADER = 16
_FREED_AT_ONCE = 7
ROW_PARALLEL = ("o_proj", "down_proj")


class RowParallel:
    """A row-parallel linear layer (its inputs are split): partial results are summed, and the bias is added once."""

    __slots__ = ("bias", "group", "weight")

    def __init__(self, linear: Linear, group: Group) -> None:
        self.weight = linear.weight
        self.bias = linear.bias
        self.group = group

    def __call__(self, x: Tensor) -> Tensor:
        y = self.group.all_reduce(F.linear(x, self.weight))
        return y if self.bias is None else y.add_(self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + the result of the layer."""
        return self(x).add_(residual)


class VocabularyHead:
    """The output head split by vocabulary: rank 0 gathers all logits, the others get zeros of that shape."""

    def __init__(self, part: LinearLike, vocab_size: int, group: Group) -> None:
        self.part = part
        self.vocab_size = vocab_size
        self.group = group

    def __call__(self, x: Tensor) -> Tensor:
        parts = self.group.gather(self.part(x))
        if parts is None:
            return x.new_zeros(1).expand(x.size(0), self.vocab_size)
        return torch.cat(list(parts), -1)[:, : self.vocab_size].contiguous()

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + the logits."""
        return self(x).add_(residual)


class RankDecoder(Decoder):
    """A `Decoder` with the shard of one rank. Only rank 0 has complete logits."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], group: Group) -> None:
        self.group = group
        self.local = shard_config(config, group.size)
        shard = ShardedWeights(weights)
        super().__init__(self.local, shard, linear=self._linear)
        self.config = config
        self.n_parameters = n_parameters(config)
        self.head = VocabularyHead(self.head, config.vocab_size, group)
        self._first_row = group.rank * self.local.vocab_size
        self.rank_weight_bytes = shard.n_bytes
        """Bytes of this rank's weights."""

    @property
    def cache_config(self) -> ModelConfig:
        """This rank's share of the heads."""
        return self.local

    def _linear(self, weights: Weights, *names: str) -> LinearLike:
        if names == ("model.embed_tokens",):
            assert isinstance(self.embedding, Tensor)  # ranks have plain embedding tables
            return Linear(self.embedding)
        made = Linear.of(weights, *names)
        return RowParallel(made, self.group) if names[0].endswith(ROW_PARALLEL) else made

    def _lookup(self, ids: Tensor) -> Tensor:
        own = ids - self._first_row
        elsewhere = (own < 0) | (own >= self.local.vocab_size)
        assert isinstance(self.embedding, Tensor)
        x = torch.embedding(self.embedding, own.masked_fill(elsewhere, 0))
        return self.group.all_reduce(x.masked_fill_(elsewhere[..., None], 0))

    def _logits(self, x: Tensor) -> Tensor:
        if self.group.rank == 0:
            return super()._logits(x)
        return self.head(self.norm(x))  # only the shape is used here

    def new_cache(
        self, capacity: int, batch_size: int = 1, *, kind: CacheKind = "full", padding: Sequence[int] | None = None
    ) -> Cache:
        """This rank's share of a cache."""
        return make_cache(
            self.local,
            capacity,
            kind=kind,
            batch_size=batch_size,
            dtype=self.dtype,
            device=self.device,
            padding=padding,
        )


class LeaderDecoder(RankDecoder):
    """Rank 0. To its caller it is an ordinary decoder."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], group: Group, *, end: Callable[[], None]
    ) -> None:
        super().__init__(config, weights, group)
        self._handles: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._freed: list[int] = []
        self._n_caches = 0
        self._end = end
        self.lost = False

    @property
    def communication_ns(self) -> int:
        """Nanoseconds spent in collectives so far."""
        return self.group.communication_ns

    def forward(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        *,
        last_only: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """As `Decoder.forward`. Arguments are checked before they are sent to other ranks.

        ``should_stop`` is not called: the other ranks are already running the same layers.
        """
        n_new = ids.size(1)
        if cache is not None:
            cache.require(ids.size(0), n_new)
        length, whole = (0, 0) if cache is None else (cache.length, cache.seen.whole)
        self._check_positions(length + n_new)
        handle = 0 if cache is None else self._handles[cache]
        try:
            self._announce(
                FORWARD, handle, ids.size(0), n_new, int(last_only), self.config.max_positions, length, whole
            )
            self.group.broadcast(ids.to(self.device).contiguous())
            return super().forward(ids, cache, last_only=last_only)
        except RankLost:
            self.lost = True
            raise

    def new_cache(
        self, capacity: int, batch_size: int = 1, *, kind: CacheKind = "full", padding: Sequence[int] | None = None
    ) -> Cache:
        """A cache on every rank. Raises OutOfMemory if a rank has no memory for it."""
        cache = super().new_cache(capacity, batch_size, kind=kind, padding=padding)
        self._n_caches += 1
        handle = self._n_caches
        rows = torch.tensor(list(padding or [0] * batch_size), dtype=torch.int64, device=self.device)
        try:
            self._announce(NEW_CACHE, handle, batch_size, capacity, KINDS.index(kind))
            self.group.broadcast(rows)
            n_made = int(self.group.all_reduce(torch.ones(1, dtype=torch.int64, device=self.device)))
        except RankLost:
            self.lost = True
            raise
        if n_made < self.group.size:
            self._freed.append(handle)
            raise OutOfMemory(f"a KV cache of {capacity:,} tokens does not fit on every rank")
        self._handles[cache] = handle
        weakref.finalize(cache, self._freed.append, handle)
        return cache

    def close(self) -> None:
        """End all ranks. The decoder cannot be used afterwards."""
        if not self.lost:
            self.lost = True
            with contextlib.suppress(RankLost):
                self._announce(END)
        self._end()

    def _announce(self, *words: int) -> None:
        freed, self._freed[:_FREED_AT_ONCE] = self._freed[:_FREED_AT_ONCE], []
        line = [*words, *[0] * (HEADER - _FREED_AT_ONCE - 1 - len(words)), len(freed), *freed]
        line += [0] * (HEADER - len(line))
        self.group.broadcast(torch.tensor(line, dtype=torch.int64, device=self.device))


def follow(decoder: RankDecoder) -> None:
    """Run the passes that rank 0 announces until it announces the end. Raises RankLost when rank 0 is gone."""
    group, device = decoder.group, decoder.device
    caches: dict[int, Cache] = {}
    sizes: dict[int, Decoder] = {decoder.config.max_positions: decoder}
    while True:
        header = group.broadcast(torch.zeros(HEADER, dtype=torch.int64, device=device)).tolist()
        op, words = header[0], header[1 : HEADER - _FREED_AT_ONCE - 1]
        first_freed = HEADER - _FREED_AT_ONCE
        for handle in header[first_freed : first_freed + header[first_freed - 1]]:
            caches.pop(handle, None)
        if op == END:
            return
        if op == NEW_CACHE:
            _make_cache(decoder, caches, words)
        else:
            _forward(sizes, decoder, caches, words)


def _make_cache(decoder: RankDecoder, caches: dict[int, Cache], words: list[int]) -> None:
    handle, batch_size, capacity, kind = words[:4]
    rows = decoder.group.broadcast(torch.zeros(batch_size, dtype=torch.int64, device=decoder.device))
    made = torch.ones(1, dtype=torch.int64, device=decoder.device)
    try:
        padding = rows.tolist() if bool(rows.any()) else None
        caches[handle] = decoder.new_cache(capacity, batch_size, kind=KINDS[kind], padding=padding)
    except OutOfMemory:
        made.zero_()
    decoder.group.all_reduce(made)


def _forward(sizes: dict[int, Decoder], decoder: RankDecoder, caches: dict[int, Cache], words: list[int]) -> None:
    handle, n_rows, n_new, last_only, max_positions, length, whole = words[:7]
    ids = decoder.group.broadcast(torch.zeros((n_rows, n_new), dtype=torch.int64, device=decoder.device))
    cache = caches.get(handle)
    if cache is not None:
        cache.seen.whole = whole
        if cache.length != length:
            cache.truncate(length)
    if max_positions not in sizes:
        sizes[max_positions] = decoder.with_positions(max_positions)
    sizes[max_positions].forward(ids, cache, last_only=bool(last_only))


def shard_of(group: Group) -> Shard:
    """The shard of this rank."""
    return Shard(group.rank, group.size)
