"""Latent attention (MLA), with or without an indexer. Source: DeepSeek-V2 2024, section 2.1; DeepSeek-V3.2 2025."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from calc.explain.terms import Term, derive
from calc.model.parts import PARAMS, check_sizes, heads_problem
from calc.model.tensors import BIAS, NORM, OTHER, WHOLE, Attended, Tensor, kv_heads_per_rank


def latent_attention_params(
    *,
    hidden_size: Any,
    n_heads: Any,
    kv_lora_rank: Any,
    nope_dim: Any,
    rope_dim: Any,
    value_dim: Any,
    q_lora_rank: Any = 0,
    extra_params: Any = 0,
    bias: bool = False,
    gated: bool = False,
) -> Any:
    """Latent attention: K and V from a latent of kv_lora_rank, Q from one of q_lora_rank or directly; their norms.

    >>> latent_attention_params(hidden_size=7168, n_heads=128, kv_lora_rank=512, nope_dim=128, rope_dim=64,
    ...                         value_dim=128, q_lora_rank=1536)
    187107328
    """
    queries = n_heads * (nope_dim + rope_dim)
    down = kv_lora_rank + rope_dim
    query_side = hidden_size * queries if is_zero(q_lora_rank) else q_lora_rank * (hidden_size + queries + 1)
    key_side = hidden_size * down + kv_lora_rank + kv_lora_rank * n_heads * (nope_dim + value_dim)
    total = query_side + key_side + n_heads * value_dim * hidden_size * (2 if gated else 1)
    if bias:
        total = total + down + hidden_size
        total = total if is_zero(q_lora_rank) else total + q_lora_rank
    return total + extra_params


def indexer_params(*, hidden_size: Any, query_dim: Any, index_heads: Any, index_dim: Any) -> Any:
    """The indexer of sparse latent attention: queries, one key with its LayerNorm, weights per head."""
    return query_dim * index_heads * index_dim + hidden_size * (index_dim + index_heads) + 2 * index_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Latent attention (MLA): one row of kv_lora_rank + rope_dim per token serves all heads, on every rank.

    `gated`: its output is multiplied by a projection of the input of the same width. `index_topk` > 0: sparse
    attention, whose queries attend to that many tokens. Its indexer (`index_heads`; an earlier layer's if there are
    none) keeps `index_elements` more per token (usually in fp8). These are not part of `cache_elements`, as in
    transformers and the servers' logs. No `window`: every token is kept.
    """

    kind: ClassVar[str] = "latent"
    prefix: ClassVar[str] = "self_attn."
    state_elements: ClassVar[int] = 0
    state_flops: ClassVar[int] = 0
    n_heads: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_lora_rank: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    bias: bool = False
    gated: bool = False
    extra_params: int = 0
    window: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def label(self) -> str:
        """What it is, in words."""
        kind = "sparse latent attention" if self.index_heads or self.index_topk else "latent attention"
        return kind if self.window is None else f"{kind}, window {self.window:,}"

    @property
    def cache_elements(self) -> int:
        """Elements per cached token: the latent and the rotary key."""
        return self.kv_lora_rank + self.rope_dim

    @property
    def index_elements(self) -> int:
        """Elements per token that the indexer keeps."""
        return self.index_dim if self.index_heads else 0

    @property
    def rope_width(self) -> int:
        """Columns of its rotary position table."""
        return self.rope_dim

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads and head dimension, for the flat view of a model."""
        return self.n_heads, self.n_heads, self.nope_dim + self.rope_dim

    def attended(self, *, absorbed: bool = True) -> Attended:
        """How a token attends.

        In the absorbed form, every head reads the latent itself and K and V are never built (decoding, and the local
        engine). In the expanded form, K and V are built for every head (prefill). Sparse attention is absorbed in both
        phases, because it selects different tokens for each query (DeepSeek-V3.2, section 2.1).
        """
        absorbed = absorbed or bool(self.index_heads or self.index_topk)
        read = self._absorbed() if absorbed else self._expanded()
        label = f"{self.label}, {'absorbed' if absorbed else 'expanded'}"
        return read._replace(
            form=label,
            window=self.window,
            chosen=self.index_topk or None,
            index_heads=self.index_heads,
            index_dim=self.index_dim,
        )

    def _absorbed(self) -> Attended:
        key_dim = self.kv_lora_rank + self.rope_dim
        return Attended("", self.n_heads, key_dim, self.kv_lora_rank, kv_heads=1, token_elements=key_dim)

    def _expanded(self) -> Attended:
        key_dim, value_dim = self.nope_dim + self.rope_dim, self.value_dim
        each = key_dim + value_dim
        return Attended("", self.n_heads, key_dim, value_dim, kv_heads=self.n_heads, token_elements=each)

    def rank_cache_elements(self, tp: int) -> int:
        """Cache elements per token on a rank of `tp`: all of them, because the latent serves all heads."""
        return self.cache_elements

    def rank_state_elements(self, tp: int) -> int:
        """None: its memory is the cache."""
        return 0

    def problem(self, tp: int) -> str | None:
        """Why `tp` ranks cannot share it in whole heads; None if they can."""
        return heads_problem(self.n_heads, tp)

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors: projections into a latent are on every rank; projections out of it are divided by heads."""
        rank, queries = self.kv_lora_rank, self.n_heads * (self.nope_dim + self.rope_dim)
        if self.q_lora_rank:
            yield Tensor("q_a_proj", self.q_lora_rank, hidden_size, WHOLE, fused="qkv_a_proj")
        yield Tensor("kv_a_proj_with_mqa", rank + self.rope_dim, hidden_size, WHOLE, fused="qkv_a_proj")
        if self.q_lora_rank:
            yield Tensor("q_a_layernorm", self.q_lora_rank, share=WHOLE, role=NORM)
            yield Tensor("q_b_proj", queries, self.q_lora_rank)
        else:
            yield Tensor("q_proj", queries, hidden_size)
        yield Tensor("kv_a_layernorm", rank, share=WHOLE, role=NORM)
        yield Tensor("kv_b_proj", self.n_heads * (self.nope_dim + self.value_dim), rank)
        if self.gated:
            yield Tensor("g_proj", self.n_heads * self.value_dim, hidden_size)
        yield Tensor("o_proj", hidden_size, self.n_heads * self.value_dim, summed=True)
        yield from self._biases(hidden_size)
        if self.index_heads:
            yield from self._indexer(hidden_size)
        if self.extra_params:
            yield Tensor("extra", self.extra_params, share=WHOLE, role=OTHER)

    def absorbed_tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """`tensors` as used in absorbed attention: each head's K part multiplies its query, its V part the result."""
        for tensor in self.tensors(hidden_size):
            if tensor.name == "kv_b_proj":
                yield Tensor("kv_b_proj.k", self.kv_lora_rank, self.nope_dim, copies=self.n_heads)
                yield Tensor("kv_b_proj.v", self.value_dim, self.kv_lora_rank, copies=self.n_heads)
            else:
                yield tensor

    def _biases(self, hidden_size: int) -> Iterator[Tensor]:
        if self.bias:
            if self.q_lora_rank:
                yield Tensor("q_a_proj.bias", self.q_lora_rank, share=WHOLE, role=BIAS)
            yield Tensor("kv_a_proj_with_mqa.bias", self.kv_lora_rank + self.rope_dim, share=WHOLE, role=BIAS)
            yield Tensor("o_proj.bias", hidden_size, share=WHOLE, role=BIAS)

    def _indexer(self, hidden_size: int) -> Iterator[Tensor]:
        yield Tensor("indexer.wq_b", self.index_heads * self.index_dim, self.q_lora_rank or hidden_size, WHOLE)
        yield Tensor("indexer.wk", self.index_dim, hidden_size, WHOLE)
        yield Tensor("indexer.weights_proj", self.index_heads, hidden_size, WHOLE, OTHER)
        yield Tensor("indexer.k_norm", 2 * self.index_dim, share=WHOLE, role=NORM)

    def _indexer_params(self, hidden_size: int) -> int:
        """Parameters of the indexer; 0 if there is none."""
        if not self.index_heads:
            return 0
        sizes = {"query_dim": self.q_lora_rank or hidden_size, "index_dim": self.index_dim}
        return int(indexer_params(hidden_size=hidden_size, index_heads=self.index_heads, **sizes))

    def term(self, hidden_size: int) -> Term:
        """Its parameters, including the indexer's."""
        sizes = {n: getattr(self, n) for n in ("n_heads", "kv_lora_rank", "nope_dim", "rope_dim", "value_dim")}
        extra = self.extra_params + self._indexer_params(hidden_size)
        optional = {n: v for n, v in (("q_lora_rank", self.q_lora_rank), ("extra_params", extra)) if v}
        name = f"{self.label.capitalize()} (per layer)"
        sizes = {"hidden_size": hidden_size, **sizes, **optional}
        return derive(name, latent_attention_params, unit=PARAMS, bias=self.bias, gated=self.gated, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpandedLatent(Latent):
    """Latent attention that keeps K and V of every head (llama.cpp with files of before April 2025, and MiniCPM 3)."""

    kind: ClassVar[str] = "expanded_latent"

    @property
    def label(self) -> str:
        """What it is, in words."""
        return "latent attention, K and V of all heads cached"

    @property
    def cache_elements(self) -> int:
        """Elements per cached token."""
        return self.n_heads * (self.nope_dim + self.rope_dim + self.value_dim)

    def attended(self, *, absorbed: bool = True) -> Attended:
        """How a token attends: to the cached K and V."""
        return self._expanded()._replace(form=self.label)

    def rank_cache_elements(self, tp: int) -> int:
        """Cache elements per token on a rank of `tp`: those of its own heads."""
        heads: int = kv_heads_per_rank(n_kv_heads=self.n_heads, tp=tp)
        return self.cache_elements // self.n_heads * heads


def is_zero(value: Any) -> bool:
    """Whether a size is the number 0, not a symbol."""
    return isinstance(value, int) and value == 0
