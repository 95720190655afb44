"""The parts of a layer, each as a list of its tensors: the single description of a model.

A model is a stack of layers. A layer has mixers (attention over a cache, or a recurrence with a state), feed-forwards
(dense or experts) and norms. A part lists its tensors: name as in a checkpoint, rows, columns, number of copies, how
tensor parallelism divides them, and their role. Stored bytes, shares of a rank, FLOPs and activations are sums over
that list. The parameter count also has a formula (`term`), because its derivation is shown; tests compare the two.

This module has the parts of the common decoder. Others are in `calc.model.latent`, `calc.model.experts` and
`calc.model.recurrent` (with `delta`), which are imported only for models that have them.

Sources: Vaswani et al. 2017 and Ainslie et al. 2023 (attention), Touvron et al. 2023 (the gated feed-forward).
Which projections a published model has: transformers 5.23, ``modeling_*.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from calc.explain.terms import Term, derive
from calc.model.checks import check_count, check_heads
from calc.model.tensors import BIAS, KV, NORM, OTHER, SPLIT, WHOLE, Attended, Tensor, kv_heads_per_rank
from calc.units import MAX_COUNT

if TYPE_CHECKING:
    from calc.model.layers import FeedForward, Mixer

T = TypeVar("T")
PARAMS = "parameters"


class Mlp(StrEnum):
    """The feed-forward block: GATED has gate, up and down (SwiGLU); PLAIN has up and down (ReLU, GELU)."""

    GATED = "gated"
    PLAIN = "plain"


class Norm(StrEnum):
    """RMS has one weight vector, LAYER a weight and a bias."""

    RMS = "rms"
    LAYER = "layer"


# Formulas


def attention_params(
    *, hidden_size: Any, n_heads: Any, n_kv_heads: Any, head_dim: Any, qkv_bias: bool = False, o_bias: bool = False
) -> Any:
    """Q, K, V and output projections of a layer.

    >>> attention_params(hidden_size=4096, n_heads=32, n_kv_heads=8, head_dim=128)
    41943040
    """
    total = 2 * hidden_size * n_heads * head_dim + 2 * hidden_size * n_kv_heads * head_dim
    if qkv_bias:
        total = total + (n_heads + 2 * n_kv_heads) * head_dim
    return total + hidden_size if o_bias else total


def mixed_attention_params(
    *,
    hidden_size: Any,
    n_heads: Any,
    n_kv_heads: Any,
    head_dim: Any,
    value_dim: Any,
    extra_params: Any = 0,
    qkv_bias: bool = False,
    o_bias: bool = False,
    gated: bool = False,
    keys: bool = True,
    values: bool = True,
) -> Any:
    """Projections of an attention layer whose V may differ in width from K, or not be projected at all.

    >>> mixed_attention_params(hidden_size=4096, n_heads=32, n_kv_heads=8, head_dim=128, value_dim=128)
    41943040
    """
    rows = n_heads * head_dim * (2 if gated else 1)
    if keys:
        rows = rows + n_kv_heads * head_dim
    if values:
        rows = rows + n_kv_heads * value_dim
    total = hidden_size * rows + n_heads * value_dim * hidden_size
    if qkv_bias:
        total = total + rows
    if o_bias:
        total = total + hidden_size
    return total + extra_params


def feed_forward_params(*, hidden_size: Any, intermediate_size: Any, mlp: Mlp = Mlp.GATED, bias: bool = False) -> Any:
    """Feed-forward block of a layer: three matrices if gated, two if plain.

    >>> feed_forward_params(hidden_size=4096, intermediate_size=14_336)
    176160768
    """
    matrices, inner = (3, 2) if mlp is Mlp.GATED else (2, 1)
    total = matrices * hidden_size * intermediate_size
    return total + inner * intermediate_size + hidden_size if bias else total


def layer_norm_params(*, hidden_size: Any, head_dim: Any, norm: Norm = Norm.RMS, qk_norm: bool = False) -> Any:
    """The two norms of a layer, and the norms of Q and K if the model has them (Qwen3)."""
    total = (2 if norm is Norm.RMS else 4) * hidden_size
    return total + 2 * head_dim if qk_norm else total


def stated_params(*, params: Any) -> Any:
    """Parameters of a part that is given only by its count."""
    return params


def derived(part: Any, name: str, formula: Any, hidden_size: int) -> Term:
    """The parameters of `part` by `formula`, whose arguments are its fields."""
    sizes = {f.name: getattr(part, f.name) for f in fields(part) if f.name != "split"}
    if not sizes.get("extra_params", 1):
        del sizes["extra_params"]
    return derive(name, formula, unit=PARAMS, hidden_size=hidden_size, **sizes)


def feed_forward_tensors(
    prefix: str, width: int, inner: int, mlp: Mlp, *, bias: bool, copies: int = 1, active: int | None = None
) -> Iterator[Tensor]:
    """A feed-forward block from and to `width`, or `copies` of it. The output bias is on every rank."""
    for name in ("gate_proj", "up_proj") if mlp is Mlp.GATED else ("up_proj",):
        yield Tensor(f"{prefix}{name}", inner, width, copies=copies, active=active, fused="gate_up_proj")
        if bias:
            yield Tensor(f"{prefix}{name}.bias", inner, role=BIAS, copies=copies, active=active)
    yield Tensor(f"{prefix}down_proj", width, inner, copies=copies, active=active, summed=True)
    if bias:
        yield Tensor(f"{prefix}down_proj.bias", width, share=WHOLE, role=BIAS, copies=copies, active=active)


# Parts

MAY_BE_ZERO = frozenset(
    (
        "extra_params",
        "router_params",
        "q_lora_rank",
        "index_heads",
        "index_dim",
        "index_topk",
        "read_heads",
        "gate_rank",
        "rope_dim",
        "params",
        "state_elements",
        "top_k",
        "conv_channels",
    )
)


def check_sizes(part: Any) -> None:
    """Raise SpecError, naming the field, unless every size of `part` is a count."""
    for f in fields(part):
        value = getattr(part, f.name)
        if not (isinstance(value, bool | str) or value is None):
            check_count(f.name, value, minimum=0 if f.name in MAY_BE_ZERO else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention with a cache of K and V. No `window`: every token is kept. `chunked`: the window restarts.

    `keys` and `values` false: not projected here (V is K, or both come from another layer; then nothing is cached).
    `shared`: its matrices belong to an earlier layer and are counted there. `extra_params`: sinks, gates, inner norms.
    `index_heads`, `index_dim`: an indexer that selects `index_topk` tokens in blocks; its key is kept in addition to
    the cache.
    """

    kind: ClassVar[str] = "attention"
    prefix: ClassVar[str] = "self_attn."
    state_elements: ClassVar[int] = 0
    state_flops: ClassVar[int] = 0
    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_dim: int
    window: int | None = None
    chunked: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    gated: bool = False
    keys: bool = True
    values: bool = True
    shared: bool = False
    extra_params: int = 0
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)
        check_heads(self.n_heads, self.n_kv_heads)

    @property
    def label(self) -> str:
        """What it is, in words."""
        if not self.keys:
            return "attention over another layer's cache"
        if self.index_topk:
            return f"sparse attention over {self.index_topk:,} tokens"
        if self.window is None:
            return "full attention"
        kind, what = ("chunked", "chunk") if self.chunked else ("sliding", "window")
        return f"{kind} attention, {what} {self.window:,}"

    @property
    def cache_elements(self) -> int:
        """Elements per cached token."""
        return self.n_kv_heads * (self.head_dim + self.value_dim) if self.keys else 0

    @property
    def index_elements(self) -> int:
        """Elements per token that an indexer keeps."""
        return self.index_dim

    @property
    def rope_width(self) -> int:
        """Columns of its rotary position table."""
        return self.head_dim

    def heads(self, hidden_size: int) -> tuple[int, int, int]:
        """Query heads, KV heads and head dimension, for the flat view of a model."""
        return self.n_heads, self.n_kv_heads, self.head_dim

    def attended(self, *, absorbed: bool = True) -> Attended:
        """How a token attends; the cache may be another layer's."""
        return Attended(
            self.label,
            self.n_heads,
            self.head_dim,
            self.value_dim,
            kv_heads=self.n_kv_heads,
            token_elements=self.head_dim + self.value_dim,
            window=self.window,
            chunked=self.chunked,
            chosen=self.index_topk or None,
            index_heads=self.index_heads,
            index_dim=self.index_dim,
            index_element_bytes=2,
        )

    def rank_cache_elements(self, tp: int) -> int:
        """Cache elements per token on a rank of `tp`: those of its own KV heads."""
        heads: int = kv_heads_per_rank(n_kv_heads=self.n_kv_heads, tp=tp)
        return self.cache_elements // self.n_kv_heads * heads

    def rank_state_elements(self, tp: int) -> int:
        """None: its memory is the cache."""
        return 0

    def problem(self, tp: int) -> str | None:
        """Why `tp` ranks cannot share it in whole heads; None if they can."""
        if (text := heads_problem(self.n_heads, tp)) is not None:
            return text
        if self.n_kv_heads % tp and tp % self.n_kv_heads:
            return f"{self.n_kv_heads:,} KV heads are not divisible by {tp:,} and do not repeat evenly on {tp:,} GPUs"
        return None

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors; if `shared`, only those it has in addition."""
        if not self.shared:
            queries, values = self.n_heads * self.head_dim * (2 if self.gated else 1), self.n_heads * self.value_dim
            yield from self._projection("q_proj", queries, hidden_size, SPLIT)
            if self.keys:
                yield from self._projection("k_proj", self.n_kv_heads * self.head_dim, hidden_size, KV)
            if self.values:
                yield from self._projection("v_proj", self.n_kv_heads * self.value_dim, hidden_size, KV)
            yield Tensor("o_proj", hidden_size, values, summed=True)
            if self.o_bias:
                yield Tensor("o_proj.bias", hidden_size, share=WHOLE, role=BIAS)
        if self.extra_params:
            yield Tensor("extra", self.extra_params, role=OTHER)

    def _projection(self, name: str, rows: int, columns: int, share: str) -> Iterator[Tensor]:
        heads = self.n_kv_heads if share == KV else 1
        yield Tensor(name, rows, columns, share, kv_heads=heads, fused="qkv_proj")
        if self.qkv_bias:
            yield Tensor(f"{name}.bias", rows, share=share, role=BIAS, kv_heads=heads)

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        name = f"{self.label[0].upper()}{self.label[1:]} (per layer)"
        if self.shared:
            return derive(f"{name[:-1]}, shared)", stated_params, unit=PARAMS, params=self.extra_params)
        sizes: dict[str, Any] = {n: getattr(self, n) for n in ("n_heads", "n_kv_heads", "head_dim")}
        sizes |= {"hidden_size": hidden_size, "qkv_bias": self.qkv_bias, "o_bias": self.o_bias}
        if self._is_plain:
            return derive(name, attention_params, unit=PARAMS, **sizes)
        sizes |= {n: getattr(self, n) for n in ("value_dim", "gated", "keys", "values")}
        if self.extra_params:
            sizes["extra_params"] = self.extra_params
        return derive(name, mixed_attention_params, unit=PARAMS, **sizes)

    @property
    def _is_plain(self) -> bool:
        unusual = self.gated or self.extra_params or not (self.keys and self.values)
        return self.value_dim == self.head_dim and not unusual


def heads_problem(n_heads: int, tp: int) -> str | None:
    """Why query heads cannot be divided evenly among `tp` ranks; None if they can."""
    if n_heads % tp:
        heads = f"{n_heads:,} query heads are" if n_heads > 1 else "1 query head is"
        return f"{heads} not divisible by {tp:,}"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A feed-forward that every token uses. `extra_params`: parameters in addition to its matrices.

    `shared`: its matrices belong to an earlier layer and are counted there.
    """

    kind: ClassVar[str] = "dense"
    intermediate_size: int
    mlp: Mlp = Mlp.GATED
    bias: bool = False
    shared: bool = False
    extra_params: int = 0

    def __post_init__(self) -> None:
        check_sizes(self)

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"{self.mlp} MLP of {self.intermediate_size:,}"

    @property
    def inner(self) -> int:
        """The inner dimension."""
        return self.intermediate_size

    def problem(self, tp: int) -> str | None:
        """Why `tp` ranks cannot share it; None if they can."""
        if self.intermediate_size % tp:
            return f"the inner dimension {self.intermediate_size:,} is not divisible by {tp:,}"
        return None

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors; if `shared`, only those it has in addition."""
        if not self.shared:
            yield from feed_forward_tensors("", hidden_size, self.intermediate_size, self.mlp, bias=self.bias)
        if self.extra_params:
            yield Tensor("extra", self.extra_params, share=WHOLE, role=OTHER)

    def term(self, hidden_size: int) -> Term:
        """Its parameters without `extra_params`."""
        sizes: dict[str, Any] = {"hidden_size": hidden_size, "intermediate_size": self.intermediate_size}
        name = f"Feed-forward of {self.intermediate_size:,} (per layer)"
        if self.shared:
            return derive(f"{name[:-1]}, shared)", stated_params, gives="feed_forward", unit=PARAMS, params=0)
        return derive(
            name, feed_forward_params, gives="feed_forward", unit=PARAMS, mlp=self.mlp, bias=self.bias, **sizes
        )


# Layers


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer. `norm_params` counts all its norms, including those of Q and K. Raises SpecError."""

    hidden_size: int
    mixers: tuple[Mixer, ...]
    feed_forwards: tuple[FeedForward, ...]
    norm_params: int
    norm: Norm = Norm.RMS

    def __post_init__(self) -> None:
        check_count("hidden_size", self.hidden_size)
        check_count("norm_params", self.norm_params, minimum=0, maximum=100 * MAX_COUNT)

    @property
    def label(self) -> str:
        """What it consists of, in words."""
        return " + ".join(part.label for part in (*self.mixers, *self.feed_forwards)) or "only a norm"

    def tensors(self) -> Iterator[Tensor]:
        """All its tensors, named below the layer (``self_attn.q_proj``)."""
        for mixer in self.mixers:
            for tensor in mixer.tensors(self.hidden_size):
                yield tensor._replace(name=mixer.prefix + tensor.name)
        yield from self.rest()

    def rest(self) -> Iterator[Tensor]:
        """Feed-forwards and norms. A dense feed-forward next to experts is their shared expert."""
        experts = any(part.kind == "experts" for part in self.feed_forwards)
        for part in self.feed_forwards:
            prefix = "mlp.shared_experts." if experts and part.kind == "dense" else "mlp."
            for tensor in part.tensors(self.hidden_size):
                yield tensor._replace(name=prefix + tensor.name)
        if self.norm_params:
            yield Tensor("norms", self.norm_params, share=WHOLE, role=NORM)


def grouped(layers: tuple[LayerSpec, ...]) -> dict[LayerSpec, int]:
    """The distinct layers, in order of first appearance, with the number of each."""
    by_identity: dict[int, tuple[LayerSpec, int]] = {}  # hashing a layer walks through it: once per object is enough
    for layer in layers:
        by_identity[id(layer)] = (layer, by_identity.get(id(layer), (layer, 0))[1] + 1)
    counts: dict[LayerSpec, int] = {}
    for layer, n in by_identity.values():
        counts[layer] = counts.get(layer, 0) + n
    return counts


def shared_objects(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """`layers` with equal ones as one object."""
    known: dict[LayerSpec, LayerSpec] = {}
    return tuple(known.setdefault(layer, layer) for layer in layers)


def counted(groups: Mapping[LayerSpec, int], parts: Callable[[LayerSpec], Iterable[T]]) -> dict[T, int]:
    """The different ones of the `parts` of layers, in order of first appearance, and how many there are of each."""
    counts: dict[T, int] = {}
    for layer, n in groups.items():
        for part in parts(layer):
            counts[part] = counts.get(part, 0) + n
    return counts


def mixers_of(layers: tuple[LayerSpec, ...]) -> dict[Mixer, int]:
    """The distinct mixers with the number of each."""
    return counted(grouped(layers), lambda layer: layer.mixers)
