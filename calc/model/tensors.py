"""A tensor of a model, and how tokens attend: the building blocks of a layer's parts."""

from __future__ import annotations

from typing import Any, NamedTuple

from calc.explain.terms import maximum

SPLIT, KV, WHOLE = "split", "kv", "whole"
"""Divided among ranks; divided by KV heads (a rank keeps whole heads, at least one); on every rank."""
LINEAR, ROUTER, NORM, BIAS, OTHER = "linear", "router", "norm", "bias", "other"
"""What a tensor is: a matrix of a linear layer, a router, a norm, a bias, or something smaller (a convolution, a state
matrix, sinks), which is never quantized."""
EMBEDDING, POSITIONS = "embedding", "positions"


class Tensor(NamedTuple):
    """`copies` tensors of rows (out) x columns (in). `name` is the path in a checkpoint, relative to the part or the
    model.

    `active` says how many of the `copies` a token uses (None: all of them); `expert` marks those of routed experts; a
    KV tensor has `kv_heads`. `fused` is the matrix in which servers store and multiply it, together with others of the
    same input. `summed`: ranks hold columns of it and sum their results.
    """

    name: str
    rows: int
    columns: int = 1
    share: str = SPLIT
    role: str = LINEAR
    copies: int = 1
    active: int | None = None
    kv_heads: int = 1
    fused: str = ""
    summed: bool = False

    @property
    def fused_name(self) -> str:
        """The path of the matrix in which servers store it: its own if it is not fused (vLLM packed_modules_mapping).

        >>> Tensor("self_attn.k_proj", 1024, 4096, fused="qkv_proj").fused_name
        'self_attn.qkv_proj'
        """
        prefix, dot, _ = self.name.rpartition(".")
        return f"{prefix}{dot}{self.fused}" if self.fused else self.name

    @property
    def expert(self) -> bool:
        """Whether it belongs to routed experts."""
        return self.active is not None

    @property
    def params(self) -> int:
        """Elements of all copies."""
        return self.rows * self.columns * self.copies

    @property
    def active_params(self) -> int:
        """Elements that a token uses."""
        return self.rows * self.columns * (self.copies if self.active is None else self.active)

    @property
    def multiplied(self) -> bool:
        """Whether a token is multiplied with it: all except norms, biases and lookups."""
        return self.role in (LINEAR, ROUTER, OTHER)


def rank_elements(tensor: Tensor, tp: int) -> int:
    """Elements of `tensor` on a rank of `tp`."""
    if tensor.share == WHOLE:
        return tensor.params
    if tensor.share == KV:
        heads: int = kv_heads_per_rank(n_kv_heads=tensor.kv_heads, tp=tp)
        return tensor.params // tensor.kv_heads * heads
    return tensor.params // tp


class Attended(NamedTuple):
    """How one query token attends: `n_heads` queries of `key_dim`, results of `value_dim` each.

    Per cached token, `kv_heads` x `token_elements` are read, once for all the queries that share them. A query sees the
    last `window` tokens (None: all of them; `chunked`: those of its own chunk), or `chosen` ones that an indexer of
    `index_heads` x `index_dim` selects by keys of `index_element_bytes` (an earlier layer's indexer if it has no
    heads). With a `ratio` above 1, rows of that many tokens replace tokens.
    """

    form: str
    n_heads: int
    key_dim: int
    value_dim: int
    kv_heads: int
    token_elements: int
    window: int | None = None
    chunked: bool = False
    chosen: int | None = None
    index_heads: int = 0
    index_dim: int = 0
    index_element_bytes: int = 1
    ratio: int = 1

    @property
    def most(self) -> int | None:
        """Maximum tokens that a query sees; None: all of them."""
        return min((n for n in (self.window, self.chosen) if n is not None), default=None)


def kv_heads_per_rank(*, n_kv_heads: Any, tp: Any) -> Any:
    """Whole KV heads that a tensor-parallel rank holds; replicated beyond n_kv_heads (vLLM get_num_kv_heads)."""
    return maximum(n_kv_heads // tp, 1)
