"""The decoder: token ids in, logits out; config and weights are read-only, the cache is passed in.

B rows, T new tokens, N = B x T, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import PromptError, Stopped
from engine.model.block import make_block
from engine.model.cache import Cache
from engine.model.cache_choice import make_cache
from engine.model.cache_kinds import KeysValues, WindowCache
from engine.model.config import LayerKind, ModelConfig
from engine.model.layers import ForwardContext, KindContext, Linear, LinearLike, LinearMaker, Norm, Table
from engine.model.rotary import DynamicRotary, Rotary, make_rotary
from engine.model.shapes import n_parameters
from engine.records import CacheKind

MANY_ROWS = 32
"""The most tokens of one `Decoder.forward_rows` call without a compiled step, which has its own limit."""


class DecodeStep(Protocol):
    """One decode step in one call: ids (B, T) -> logits (B, T, V), for B x T up to ``max_rows``, one of them 1.

    T tokens of one row give exactly the logits (bit for bit) of T separate steps. New keys and values are written to
    the cache's memory; its token count is not changed.
    """

    max_rows: int

    def __call__(self, ids: Tensor, cache: KeysValues) -> Tensor: ...


class Decoder:
    """A decoder-only transformer; its config says whether it is the assignment's model, a Llama or another family.

    ``weights``: every name of `parameter_shapes`, in one dtype on one device. Projections that read the
    same input (q, k, v; gate, up) are concatenated, so that each group is one matrix product.
    ``linear`` builds the linear layers in their format (`engine.model.layers.LinearMaker`); ``table`` is the embedding
    table when it is not among the weights.
    ``decode_step``, if set, runs the steps of one new token instead of the layers here.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        *,
        linear: LinearMaker = Linear.of,
        table: Table | None = None,
    ) -> None:
        embedding = weights["model.embed_tokens.weight"] if table is None else table
        self.config = config
        self.dtype = embedding.dtype
        self.device = embedding.device
        self.n_parameters = n_parameters(config)
        self.embedding = embedding
        # Scaled as the family does it: by the factor rounded to this dtype.
        self.embed_scale = torch.tensor(config.embed_scale, dtype=self.dtype).item()
        self.position_embedding = weights.get("model.embed_positions.weight")
        kinds = [_seeing(config.layer(layer)) for layer in range(config.n_layers)]
        self.kinds = tuple(dict.fromkeys(kinds))  # the distinct pairs of window and positions
        self.rotaries = self._make_rotaries()
        self.original_context = next((r.original_context for r in self.rotaries if r and r.original_context), None)
        self.base_grows = any(isinstance(rotary, DynamicRotary) for rotary in self.rotaries)
        self.blocks = [
            make_block(config, weights, layer, kind=self.kinds.index(kind), linear=linear)
            for layer, kind in enumerate(kinds)
        ]
        self.norm = Norm.of(weights, "model.norm", config)
        self.embed_norm = Norm.of(weights, "model.embed_norm", config) if config.embed_norm else None
        self.head = self._make_head(weights, linear)
        self.decode_step: DecodeStep | None = None

    def _make_head(self, weights: Mapping[str, Tensor], linear: LinearMaker) -> LinearLike:
        plain = self.embedding if isinstance(self.embedding, Tensor) else None
        if self.config.tied and plain is not None and (self.config.head_bias or linear == Linear.of):
            return Linear(plain, weights.get("lm_head.bias"))
        if self.config.tied:  # the embedding itself, not a second copy that the loader would make
            return linear({} if plain is None else {"model.embed_tokens.weight": plain}, "model.embed_tokens")
        return linear(weights, "lm_head")

    def _make_rotaries(self) -> tuple[Rotary | None, ...]:
        """One table per layer kind; kinds with equal positions share it."""
        ropes = {kind.rope: None for kind in self.kinds}
        made = {rope: make_rotary(rope, dtype=self.dtype, device=self.device) for rope in ropes if rope is not None}
        return tuple(made[kind.rope] if kind.rope is not None else None for kind in self.kinds)

    @property
    def cache_config(self) -> ModelConfig:
        """The config that caches are made for: under tensor parallelism, this rank's share."""
        return self.config

    @property
    def communication_ns(self) -> int | None:
        """Time spent on communication with other ranks so far; None with a single rank."""
        return None

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters in this dtype."""
        return self.n_parameters * self.dtype.itemsize

    def new_cache(
        self, capacity: int, batch_size: int = 1, *, kind: CacheKind = "full", padding: Sequence[int] | None = None
    ) -> Cache:
        """An empty cache for ``capacity`` tokens per row, in the model's dtype, on its device.

        ``padding``: left padding of each row in tokens, included in the capacity.
        """
        return make_cache(
            self.config,
            capacity,
            kind=kind,
            batch_size=batch_size,
            dtype=self.dtype,
            device=self.device,
            padding=padding,
        )

    def forward(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        *,
        last_only: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """ids (B, T) int64 -> logits (B, T, V), or (B, 1, V) of the last position with ``last_only``.

        With a cache, the T tokens follow the cached ones and are added to it. Rows of different lengths are padded at
        the left (the cache knows by how much): padding is masked out, and its logits are meaningless. Raises
        PromptError past the last position, CacheError when the cache is full. `check_ids` checks the ids, not this
        method. ``should_stop`` is called before every layer: on True, Stopped is raised and the cache keeps its old
        length (in a `WindowCache` new tokens may have overwritten old ones: reset it).
        """
        with torch.inference_mode():
            n_asked = ids.size(1)
            long = self._beyond(n_asked, cache)
            if cache is not None and long:
                ids = _seen_anew(ids, cache, long)
            batch_size, n_new = ids.shape
            past = 0 if cache is None else cache.length
            if cache is not None:
                cache.require(batch_size, n_new)
            self._check_positions(past + n_new)
            if n_new == 1 and isinstance(cache, KeysValues) and (at_once := self._step_for(cache)) is not None:
                logits = at_once(ids, cache)
                cache.advance(1)
                return logits
            context = self.context(batch_size, n_new, cache, long)
            x = self._embed(ids, past, cache)
            for block in self.blocks:
                if should_stop is not None and should_stop():
                    raise Stopped
                x = block.forward(x, context, cache)
            if cache is not None:
                cache.advance(n_new)
            n_wanted = 1 if last_only else n_asked
            if n_wanted < n_new:
                x = x.view(batch_size, n_new, -1)[:, n_new - n_wanted :].flatten(0, 1)
            return self._logits(x).view(batch_size, -1, self.config.vocab_size)

    def rows_left(self, cache: Cache) -> int:
        """How many tokens `forward_rows` accepts now; at least 1 if there is room for any."""
        room = min(cache.capacity, self.config.max_positions) - cache.length
        if self.original_context is not None:
            if cache.seen.long != self._beyond(1, cache):
                return min(room, 1)  # the rotary angles change, and the text is run again
            if cache.length < self.original_context:
                room = min(room, self.original_context - cache.length)
        most = MANY_ROWS if self.decode_step is None else self.decode_step.max_rows
        return min(room, cache.rows_at_once, most)

    def forward_rows(self, ids: Tensor, cache: Cache, *, should_stop: Callable[[], bool] | None = None) -> Tensor:
        """ids (1, T), T up to `rows_left` -> logits (1, T, V): bit for bit those of T passes of one token each.

        The compiled step does so in one call. Without it, each layer processes the tokens one by one, which gains only
        that its weights stay in the processor's cache. The KV cache counts none of the tokens: before the next pass the
        caller counts the accepted ones (``cache.advance(1)`` each, in order); the others are rolled back. Raises as
        `forward` does.
        """
        with torch.inference_mode():
            past, n_new = cache.length, ids.size(1)
            cache.begin_rows(n_new)
            self._check_positions(past + n_new)
            long = self._beyond(n_new, cache)
            if long:
                _seen_anew(ids, cache, long)
            if isinstance(cache, KeysValues) and (at_once := self._step_for(cache, n_new)) is not None:
                return at_once(ids, cache)
            try:
                return self._one_by_one(ids, cache, long, should_stop)
            finally:
                cache.turn_to(past)

    def _one_by_one(
        self, ids: Tensor, cache: Cache, long: tuple[int, ...], should_stop: Callable[[], bool] | None
    ) -> Tensor:
        """`forward_rows` without a compiled step; it leaves the cache at another length (`Cache.turn_to`)."""
        past, rows, contexts = cache.length, [], []
        for at, token in enumerate(torch.split(ids, 1, dim=1), past):
            cache.turn_to(at)
            rows.append(self._embed(token, at, cache))
            contexts.append(self.context(1, 1, cache, long))
        for block in self.blocks:
            if should_stop is not None and should_stop():
                raise Stopped
            for t, (x, context) in enumerate(zip(rows, contexts, strict=True)):
                cache.turn_to(past + t)
                rows[t] = block.forward(x, context, cache)
        return torch.cat([self._logits(x) for x in rows])[None]

    def _beyond(self, n_new: int, cache: Cache | None) -> tuple[int, ...]:
        """The text length of each row beyond the original context, else 0; empty if the model does not depend on it.

        LongRoPE needs only whether it does: 1. A dynamic base needs the announced length, or that of the first pass.
        """
        if self.original_context is None:
            return ()
        if cache is None:
            whole, padding = n_new, [0]
        else:
            whole = max(cache.length + n_new, cache.seen.whole)
            padding = [0] * cache.batch_size if cache.padding is None else cache.padding.tolist()
        if not self.base_grows:
            return tuple(int(whole - before > self.original_context) for before in padding)
        if cache is not None and cache.length:
            if not cache.seen.whole:
                return cache.seen.long
            whole = cache.seen.whole
        return tuple(whole - before if whole - before > self.original_context else 0 for before in padding)

    def _step_for(self, cache: KeysValues, n_new: int = 1) -> DecodeStep | None:
        """The compiled step that can run on this cache, if there is one."""
        step = self.decode_step
        if self.original_context is not None and cache.seen.whole > cache.length + 1:
            return None  # the step uses the cached length, but the text is known to be longer
        if self.base_grows and cache.length + n_new > (self.original_context or 0):
            return None  # the step has one set of frequencies
        growth = self.config.query_growth
        if growth is not None and cache.length + n_new > growth.every:
            return None  # the step does not scale queries by position
        in_a_ring = cache.padding is not None and isinstance(cache, WindowCache)  # padded rows begin at different slots
        return None if step is None or in_a_ring or cache.batch_size > step.max_rows else step

    def _embed(self, ids: Tensor, past: int, cache: Cache | None) -> Tensor:
        """Token embeddings, plus learned positions where the model has them: (N, D), a fresh tensor."""
        x = self._lookup(ids)
        if self.embed_scale != 1.0:
            x.mul_(self.embed_scale)
        if self.position_embedding is not None:
            if cache is None or cache.padding is None:
                x.add_(self.position_embedding[past : past + ids.size(1)])
            else:
                x.add_(self.position_embedding[_row_positions(past, ids.size(1), cache.padding)])
        x = x.view(-1, self.config.hidden_size)
        return x if self.embed_norm is None else self.embed_norm(x)

    def _lookup(self, ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, D), a fresh tensor."""
        table = self.embedding
        return torch.embedding(table, ids) if isinstance(table, Tensor) else table.rows(ids)

    def _logits(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, V)."""
        logits = self.head(self.norm(x))
        if self.config.logit_scale != 1.0:
            logits.mul_(self.config.logit_scale)
        cap = self.config.logit_softcap
        return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)

    def context(self, batch_size: int, n_new: int, cache: Cache | None, long: tuple[int, ...] = ()) -> ForwardContext:
        """The data that all layers share in a pass over ``n_new`` tokens after the cached ones.

        ``long``: the text length of each row that exceeds the original context, else 0 (see `_beyond`).
        """
        past, padding = (0, None) if cache is None else (cache.length, cache.padding)
        kinds = []
        for kind, rotary in zip(self.kinds, self.rotaries, strict=True):
            cos = sin = None
            if rotary is not None:
                if padding is None:
                    turns = rotary.rows(past, past + n_new, long=max(long, default=0))
                else:
                    turns = rotary.rows_at(_row_positions(past, n_new, padding), past + n_new, long=long)
                cos, sin = map(self._for_all_heads, turns)
                if (growth := self._growth(past, n_new, padding)) is not None:
                    for turn in (cos, sin):  # these have a row per query head, then per key head
                        turn[..., : self.cache_config.n_heads, :].mul_(growth)
            if n_new == 1 and padding is None:
                kinds.append(KindContext(None, False, cos, sin))
            elif past == 0 and padding is None and self._is_triangle(n_new, kind.window):
                kinds.append(KindContext(None, True, cos, sin))
            else:
                kinds.append(KindContext(self._mask(n_new, cache, kind.window), False, cos, sin))
        return ForwardContext(batch_size, n_new, tuple(kinds))

    def _for_all_heads(self, turn: Tensor) -> Tensor:
        """(.., 1, r) repeated for each rotated head: products without broadcasting are many times faster."""
        config = self.cache_config
        if config.latent is not None:
            return turn
        return turn.expand(*turn.shape[:-2], config.n_heads + config.n_kv_heads, -1).contiguous()

    def _growth(self, past: int, n_new: int, padding: Tensor | None) -> Tensor | None:
        """The factor on queries at their positions, (T, 1, 1) or (B, T, 1, 1); None if it is 1 everywhere."""
        growth = self.config.query_growth
        if growth is None or past + n_new <= growth.every:
            return None
        at = torch.arange(past, past + n_new) if padding is None else _row_positions(past, n_new, padding.cpu())
        steps = (at // growth.every).double()
        return (1 + growth.beta * steps.log1p())[..., None, None].to(self.device, self.dtype)

    def _is_triangle(self, n_new: int, window: int | None) -> bool:
        """Whether the kernel's own causal mask is enough for a pass over the first tokens."""
        return (window is None or n_new <= window) and not self.config.scores_by_hand

    def _mask(self, n_new: int, cache: Cache | None, window: int | None) -> Tensor:
        past = 0 if cache is None else cache.length
        queries = torch.arange(past, past + n_new, device=self.device)
        keys = queries if cache is None else cache.key_positions(n_new, window)
        return attention_mask(queries, keys, window=window, padding=None if cache is None else cache.padding)

    def _check_positions(self, n_tokens: int) -> None:
        if n_tokens > self.config.max_positions:
            raise PromptError(f"{n_tokens:,} tokens do not fit in the model's {self.config.max_positions:,} positions")

    def with_positions(self, max_positions: int, *, seed: int = 0) -> "Decoder":
        """The same weights with room for ``max_positions`` (self when there is room already).

        New rows of a learned table are random, with the spread of the existing ones: for timing, not for text.
        """
        if max_positions <= self.config.max_positions:
            return self
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.config = replace(self.config, max_positions=max_positions)
        if self.position_embedding is not None:
            table = _extend(self.position_embedding, max_positions, seed)
            other.position_embedding = table
            other.decode_step = None  # it reads the table it was made with
        other.n_parameters = n_parameters(other.config)
        return other


def attention_mask(queries: Tensor, keys: Tensor, *, window: int | None, padding: Tensor | None = None) -> Tensor:
    """True where a query at position (T,) may look at a key at position (S,): (T, S), padded (B, 1, T, S).

    A query attends to itself and to the window - 1 tokens before it, but not to its row's ``padding`` (B,).
    A padding token attends to itself, because a softmax over nothing is NaN.
    """
    at = queries[:, None]
    mask = keys <= at
    if window is not None:
        mask &= keys > at - window
    if padding is None:
        return mask
    mask = mask & (keys >= padding[:, None, None]) | (keys == at)
    return mask[:, None]


def _seen_anew(ids: Tensor, cache: Cache, long: tuple[int, ...]) -> Tensor:
    """The ids to run: only the new ones, or all if the rotary angles have changed since the cache was filled."""
    seen = cache.seen
    before = ids[:, :0] if seen.ids is None else seen.ids[:, : cache.length]
    every = torch.cat((before, ids), 1)
    if cache.length and seen.long != long:
        cache.reset()
        ids = every
    seen.ids, seen.long = every, long
    return ids


def _row_positions(past: int, n_new: int, padding: Tensor) -> Tensor:
    """Positions (B, T) counted from each row's first real token; 0 in the padding."""
    return (torch.arange(past, past + n_new, device=padding.device) - padding[:, None]).clamp_min_(0)


def _seeing(kind: LayerKind) -> LayerKind:
    """The parts of a layer's kind that its attention depends on."""
    return replace(kind, experts=False, recurrent=False)


def _extend(table: Tensor, n_rows: int, seed: int) -> Tensor:
    rows = torch.empty(n_rows - table.size(0), table.size(1), dtype=torch.float64)
    rows.normal_(generator=torch.Generator().manual_seed(seed))
    spread = table.double().std().item()
    return torch.cat((table, (rows * spread).to(table)))


def check_ids(ids: Tensor, config: ModelConfig) -> None:
    """Raise PromptError if ids (B, T) are empty or any of them is outside the vocabulary."""
    if ids.numel() == 0:
        raise PromptError("the prompt is empty; the model needs at least one token")
    low, high = ids.aminmax()
    for value in (int(low), int(high)):
        if not 0 <= value < config.vocab_size:
            raise PromptError(f"token id {value} is outside the vocabulary; ids run from 0 to {config.vocab_size - 1}")
