"""Layers one by one, for models whose layers are not all alike: what `ModelSpec.layers` holds.

A layer has mixers (attention over a cache, or a recurrence with a state) and feed-forwards (dense or experts), and
its norms. Each part counts its parameters with a plain formula, so that the derivation is the formula itself, and
says what it keeps: `cache_elements` a token (of the last `window` tokens where it has one) or `state_elements` a
sequence.

Sources: Vaswani et al. 2017 and Ainslie et al. 2023 (attention), DeepSeek-V2 2024, section 2.1 (latent attention),
DeepSeek-V3.2 2025 (indexer), Gu and Dao 2023 (mamba1), Dao and Gu 2024 (mamba2), Yang et al. 2024 (gated delta),
Kimi Team 2025 (Kimi delta), Shazeer et al. 2017 (experts). Which projections a published model has: transformers
5.23, ``modeling_*.py``. Imported only for a model that has layers of its own: the usual start pays nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from calc.errors import SpecError
from calc.explain.terms import Term, derive
from calc.model.params import feed_forward_params
from calc.model.spec import Mlp, Norm, check_count


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
    """Projections of an attention layer whose V may be of another width than K, or not be projected at all.

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
) -> Any:
    """Latent attention: K and V from a latent of kv_lora_rank, Q from one of q_lora_rank or directly; their norms.

    >>> latent_attention_params(hidden_size=7168, n_heads=128, kv_lora_rank=512, nope_dim=128, rope_dim=64,
    ...                         value_dim=128, q_lora_rank=1536)
    187107328
    """
    queries = n_heads * (nope_dim + rope_dim)
    down = kv_lora_rank + rope_dim
    query_side = hidden_size * queries if _zero(q_lora_rank) else q_lora_rank * (hidden_size + queries + 1)
    key_side = hidden_size * down + kv_lora_rank + kv_lora_rank * n_heads * (nope_dim + value_dim)
    total = query_side + key_side + n_heads * value_dim * hidden_size
    if bias:
        total = total + down + hidden_size
        total = total if _zero(q_lora_rank) else total + q_lora_rank
    return total + extra_params


def indexer_params(*, hidden_size: Any, query_dim: Any, index_heads: Any, index_dim: Any) -> Any:
    """The indexer of sparse latent attention: queries, one key with its LayerNorm, weights of the heads."""
    return query_dim * index_heads * index_dim + hidden_size * (index_dim + index_heads) + 2 * index_dim


def mamba1_params(
    *,
    hidden_size: Any,
    inner: Any,
    state: Any,
    kernel: Any,
    dt_rank: Any,
    extra_params: Any = 0,
    conv_bias: bool = True,
) -> Any:
    """A Mamba layer: in and out projections, convolution with bias, selective parameters, A and D."""
    projections = 3 * hidden_size * inner
    selective = inner * (dt_rank + 2 * state) + dt_rank * inner + inner
    convolution = inner * (kernel + 1) if conv_bias else inner * kernel
    return projections + convolution + selective + inner * state + inner + extra_params


def mamba2_params(
    *,
    hidden_size: Any,
    inner: Any,
    n_heads: Any,
    groups: Any,
    state: Any,
    kernel: Any,
    extra_params: Any = 0,
    conv_bias: bool = True,
    norm: bool = True,
) -> Any:
    """A Mamba-2 layer: in projection of z, x, B, C and dt; convolution with bias; dt, A and D of a head; norm; out."""
    convolved = inner + 2 * groups * state
    into = hidden_size * (inner + convolved + n_heads)
    convolution = convolved * (kernel + 1) if conv_bias else convolved * kernel
    total = into + convolution + 3 * n_heads + inner * hidden_size + extra_params
    return total + inner if norm else total


def gated_delta_params(
    *,
    hidden_size: Any,
    key_heads: Any,
    key_dim: Any,
    value_heads: Any,
    value_dim: Any,
    kernel: Any,
    extra_params: Any = 0,
) -> Any:
    """A gated delta layer: q, k, v, z, b and a projections, convolution, dt and A of a head, norm, out."""
    convolved = 2 * key_heads * key_dim + value_heads * value_dim
    into = hidden_size * (convolved + value_heads * value_dim + 2 * value_heads)
    rest = convolved * kernel + 2 * value_heads + value_dim
    return into + rest + value_heads * value_dim * hidden_size + extra_params


def kimi_delta_params(*, hidden_size: Any, n_heads: Any, head_dim: Any, kernel: Any, gate_rank: Any = 0) -> Any:
    """A Kimi delta layer: q, k and v with convolutions, decay and output gate (of a rank, or whole), b, norm, out."""
    inner = n_heads * head_dim
    gate = hidden_size * inner if _zero(gate_rank) else gate_rank * (hidden_size + inner)
    into = 3 * hidden_size * inner + 2 * gate + hidden_size * n_heads
    return into + 3 * inner * kernel + inner + n_heads + head_dim + inner * hidden_size


def short_conv_params(*, hidden_size: Any, kernel: Any, bias: bool = False) -> Any:
    """A gated short convolution (LFM2): into B, C and x, a convolution of each channel, out."""
    total = 4 * hidden_size * hidden_size + hidden_size * kernel
    return total + 5 * hidden_size if bias else total


def expert_params(*, hidden_size: Any, expert_size: Any, mlp: Mlp = Mlp.GATED, bias: bool = False) -> Any:
    """One expert."""
    return feed_forward_params(hidden_size=hidden_size, intermediate_size=expert_size, mlp=mlp, bias=bias)


def routed_params(*, n_experts: Any, expert: Any) -> Any:
    """All routed experts of a layer."""
    return n_experts * expert


def stated_params(*, params: Any) -> Any:
    """Parameters of a part that is given by its count."""
    return params


def _zero(value: Any) -> bool:
    return isinstance(value, int) and value == 0


PARAMS = "parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Attention with a cache of K and V. No `window`: every token is kept. `chunked`: the window restarts.

    `keys` and `values` false: not projected here (V is K, or both come from another layer: then nothing is kept).
    `shared`: its matrices are an earlier layer's and are counted there. `extra_params`: sinks, gates, norms inside.
    `index_dim`: the key of an indexer that picks blocks of tokens, kept beside the cache.
    """

    kind: ClassVar[str] = "attention"
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
    index_dim: int = 0

    @property
    def label(self) -> str:
        """What it is, in words."""
        if not self.keys:
            return "attention over another layer's cache"
        if self.window is None:
            return "full attention"
        kind, what = ("chunked", "chunk") if self.chunked else ("sliding", "window")
        return f"{kind} attention, {what} {self.window:,}"

    @property
    def cache_elements(self) -> int:
        """Elements a cached token."""
        return self.n_kv_heads * (self.head_dim + self.value_dim) if self.keys else 0

    @property
    def index_elements(self) -> int:
        """Elements a token that an indexer keeps."""
        return self.index_dim

    @property
    def state_elements(self) -> int:
        """None: its memory is the cache."""
        return 0

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        shape = {name: getattr(self, name) for name in ("qkv_bias", "o_bias", "gated", "keys", "values")}
        sizes: dict[str, Any] = {n: getattr(self, n) for n in ("n_heads", "n_kv_heads", "head_dim", "value_dim")}
        extra: dict[str, Any] = {"extra_params": self.extra_params} if self.extra_params else {}
        name = f"{self.label[0].upper()}{self.label[1:]}, a layer"
        if self.shared:
            return derive(f"{name} (shared)", stated_params, unit=PARAMS, params=self.extra_params)
        return derive(name, mixed_attention_params, unit=PARAMS, hidden_size=hidden_size, **sizes, **extra, **shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """Latent attention (MLA): one row of kv_lora_rank + rope_dim a token serves all heads, on every rank.

    `index_heads` > 0: a sparse one, with an indexer that keeps `index_elements` more a token (usually fp8). They
    are apart from `cache_elements`, as transformers and the servers' logs count.
    """

    kind: ClassVar[str] = "latent"
    window: ClassVar[None] = None
    n_heads: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_lora_rank: int = 0
    index_heads: int = 0
    index_dim: int = 0
    bias: bool = False
    extra_params: int = 0

    @property
    def label(self) -> str:
        """What it is, in words."""
        return "sparse latent attention" if self.index_heads else "latent attention"

    @property
    def cache_elements(self) -> int:
        """Elements a cached token: the latent and the rotary key."""
        return self.kv_lora_rank + self.rope_dim

    @property
    def index_elements(self) -> int:
        """Elements a token that the indexer keeps."""
        return self.index_dim if self.index_heads else 0

    @property
    def state_elements(self) -> int:
        """None: its memory is the cache."""
        return 0

    def own_indexer_params(self, hidden_size: int) -> int:
        """Parameters of the indexer; none where there is none."""
        if not self.index_heads:
            return 0
        sizes = {"query_dim": self.q_lora_rank or hidden_size, "index_dim": self.index_dim}
        return int(indexer_params(hidden_size=hidden_size, index_heads=self.index_heads, **sizes))

    def term(self, hidden_size: int) -> Term:
        """Its parameters, the indexer's among them."""
        sizes = {n: getattr(self, n) for n in ("n_heads", "kv_lora_rank", "nope_dim", "rope_dim", "value_dim")}
        extra = self.extra_params + self.own_indexer_params(hidden_size)
        optional = {n: v for n, v in (("q_lora_rank", self.q_lora_rank), ("extra_params", extra)) if v}
        name = f"{self.label.capitalize()}, a layer"
        sizes = {"hidden_size": hidden_size, **sizes, **optional}
        return derive(name, latent_attention_params, unit=PARAMS, bias=self.bias, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba1:
    """A selective state space layer: a state of inner x state and the last `kernel` inputs of the convolution."""

    kind: ClassVar[str] = "mamba1"
    label: ClassVar[str] = "mamba"
    window: ClassVar[None] = None
    cache_elements: ClassVar[int] = 0
    inner: int
    state: int
    kernel: int
    dt_rank: int
    extra_params: int = 0
    conv_bias: bool = True

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution, of whose inputs the last `kernel` are part of the state."""
        return self.inner

    @property
    def state_elements(self) -> int:
        """Elements a sequence."""
        return self.inner * self.state + self.conv_channels * self.kernel

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return _derived(self, "Mamba, a layer", mamba1_params, hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mamba2:
    """A Mamba-2 layer: a state of n_heads x head dimension x state and the last `kernel` convolution inputs."""

    kind: ClassVar[str] = "mamba2"
    label: ClassVar[str] = "mamba-2"
    window: ClassVar[None] = None
    cache_elements: ClassVar[int] = 0
    inner: int
    n_heads: int
    groups: int
    state: int
    kernel: int
    extra_params: int = 0
    conv_bias: bool = True
    norm: bool = True

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution, of whose inputs the last `kernel` are part of the state."""
        return self.inner + 2 * self.groups * self.state

    @property
    def state_elements(self) -> int:
        """Elements a sequence."""
        return self.inner * self.state + self.conv_channels * self.kernel

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return _derived(self, "Mamba-2, a layer", mamba2_params, hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedDelta:
    """A gated delta layer: a state of key x value dimension a value head, and the last convolution inputs."""

    kind: ClassVar[str] = "gated_delta"
    label: ClassVar[str] = "gated delta"
    window: ClassVar[None] = None
    cache_elements: ClassVar[int] = 0
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    kernel: int
    extra_params: int = 0

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution, of whose inputs the last `kernel` are part of the state."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    @property
    def state_elements(self) -> int:
        """Elements a sequence."""
        return self.value_heads * self.key_dim * self.value_dim + self.conv_channels * self.kernel

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return _derived(self, "Gated delta, a layer", gated_delta_params, hidden_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class KimiDelta:
    """Kimi delta attention: a state of head dimension x head dimension a head, and the last convolution inputs.

    Decay (of every channel) and output gate are projected through `gate_rank`, or directly where it is 0.
    """

    kind: ClassVar[str] = "kimi_delta"
    label: ClassVar[str] = "kimi delta"
    window: ClassVar[None] = None
    cache_elements: ClassVar[int] = 0
    n_heads: int
    head_dim: int
    kernel: int
    gate_rank: int = 0

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution, of whose inputs the last `kernel` are part of the state."""
        return 3 * self.n_heads * self.head_dim

    @property
    def state_elements(self) -> int:
        """Elements a sequence."""
        return self.n_heads * self.head_dim * self.head_dim + self.conv_channels * self.kernel

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        sizes: dict[str, Any] = {n: getattr(self, n) for n in ("n_heads", "head_dim", "kernel")}
        if self.gate_rank:
            sizes["gate_rank"] = self.gate_rank
        return derive("Kimi delta, a layer", kimi_delta_params, unit=PARAMS, hidden_size=hidden_size, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortConv:
    """A gated short convolution over `width` channels: the last `kernel` inputs are kept."""

    kind: ClassVar[str] = "conv"
    label: ClassVar[str] = "short convolution"
    window: ClassVar[None] = None
    cache_elements: ClassVar[int] = 0
    kernel: int
    width: int
    bias: bool = False

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution, of whose inputs the last `kernel` are part of the state."""
        return self.width

    @property
    def state_elements(self) -> int:
        """Elements a sequence."""
        return self.width * self.kernel

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        sizes: dict[str, Any] = {"hidden_size": hidden_size, "kernel": self.kernel}
        return derive("Short convolution, a layer", short_conv_params, unit=PARAMS, bias=self.bias, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """A rarer recurrence, given by its counts: parameters and state, worked out where its config is read."""

    kind: ClassVar[str] = "stated"
    window: ClassVar[None] = None
    cache_elements: ClassVar[int] = 0
    label: str
    params: int
    state_elements: int

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        return derive(f"{self.label.capitalize()}, a layer", stated_params, unit=PARAMS, params=self.params)


Mixer = Attention | Latent | Mamba1 | Mamba2 | GatedDelta | KimiDelta | ShortConv | Stated


def _derived(part: Any, name: str, formula: Any, hidden_size: int) -> Term:
    sizes = {f.name: getattr(part, f.name) for f in fields(part)}
    if not sizes["extra_params"]:
        del sizes["extra_params"]
    return derive(name, formula, unit=PARAMS, hidden_size=hidden_size, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """A feed-forward that every token goes through. `extra_params`: what it has beside its matrices.

    `shared`: its matrices are an earlier layer's and are counted there.
    """

    kind: ClassVar[str] = "dense"
    intermediate_size: int
    mlp: Mlp = Mlp.GATED
    bias: bool = False
    shared: bool = False
    extra_params: int = 0

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"{self.mlp} MLP of {self.intermediate_size:,}"

    @property
    def routed_term(self) -> None:
        """No experts."""
        return None

    def term(self, hidden_size: int) -> Term:
        """Its parameters."""
        sizes: dict[str, Any] = {"hidden_size": hidden_size, "intermediate_size": self.intermediate_size}
        name = f"Feed-forward of {self.intermediate_size:,}, a layer"
        if self.shared:
            return derive(f"{name} (shared)", stated_params, unit=PARAMS, params=0)
        return derive(name, feed_forward_params, unit=PARAMS, mlp=self.mlp, bias=self.bias, **sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """`n_experts` routed feed-forwards of which a token goes through `top_k`; the router is `router_params`."""

    kind: ClassVar[str] = "experts"
    n_experts: int
    top_k: int
    expert_size: int
    router_params: int
    mlp: Mlp = Mlp.GATED
    bias: bool = False
    input_size: int | None = None

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"{self.n_experts:,} experts of {self.expert_size:,}, {self.top_k:,} a token"

    def term(self, hidden_size: int) -> Term:
        """Parameters of one expert."""
        return derive(
            f"One expert of {self.expert_size:,}",
            expert_params,
            unit=PARAMS,
            hidden_size=self.input_size or hidden_size,
            expert_size=self.expert_size,
            mlp=self.mlp,
            bias=self.bias,
        )


FeedForward = Dense | Experts


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer. `norm_params` counts all its norms, those of Q and K among them. Raises SpecError."""

    hidden_size: int
    mixers: tuple[Mixer, ...]
    feed_forwards: tuple[FeedForward, ...]
    norm_params: int
    norm: Norm = Norm.RMS

    def __post_init__(self) -> None:
        check_count("hidden_size", self.hidden_size)
        check_count("norm_params", self.norm_params, minimum=0)
        for part in (*self.mixers, *self.feed_forwards):
            _check_part(part)

    @property
    def label(self) -> str:
        """What it consists of, in words."""
        return "; ".join(part.label for part in (*self.mixers, *self.feed_forwards)) or "nothing but a norm"


MAY_BE_ZERO = frozenset(("extra_params", "router_params", "q_lora_rank", "index_heads", "index_dim", "gate_rank"))


def _check_part(part: Mixer | FeedForward) -> None:
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, bool | str) or value is None:
            continue
        lowest = 0 if f.name in MAY_BE_ZERO or part.kind == "stated" else 1
        check_count(f.name, value, minimum=lowest)
    if isinstance(part, Attention) and part.n_heads % part.n_kv_heads:
        raise SpecError("n_kv_heads", f"n_kv_heads {part.n_kv_heads} does not divide n_heads {part.n_heads}")
    if isinstance(part, Experts) and part.top_k > part.n_experts:
        raise SpecError("top_k", f"{part.top_k:,} experts a token, but there are {part.n_experts:,}")


KINDS: Mapping[str, type] = {
    part.kind: part
    for part in (Attention, Latent, Mamba1, Mamba2, GatedDelta, KimiDelta, ShortConv, Stated, Dense, Experts)
}


def grouped(layers: tuple[LayerSpec, ...]) -> dict[LayerSpec, int]:
    """The different layers, in order of first appearance, and how many there are of each."""
    by_identity: dict[int, tuple[LayerSpec, int]] = {}  # a layer's hash is a walk through it: once an object is enough
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


def mixers_of(layers: tuple[LayerSpec, ...]) -> dict[Mixer, int]:
    """The different mixers and how many there are of each."""
    counts: dict[Mixer, int] = {}
    for layer, n in grouped(layers).items():
        for mixer in layer.mixers:
            counts[mixer] = counts.get(mixer, 0) + n
    return counts


def _commonest(counts: Mapping[Any, int]) -> Any:
    return max(counts, key=lambda part: counts[part]) if counts else None


def _summary_heads(mixers: Mapping[Mixer, int], hidden_size: int) -> tuple[int, int, int]:
    """Query heads, KV heads and head dimension of the commonest attention; of the recurrence where there is none."""
    attention = _commonest({m: n for m, n in mixers.items() if isinstance(m, Attention)})
    if attention is not None:
        return attention.n_heads, attention.n_kv_heads, attention.head_dim
    latent = _commonest({m: n for m, n in mixers.items() if isinstance(m, Latent)})
    if latent is not None:
        return latent.n_heads, latent.n_heads, latent.nope_dim + latent.rope_dim
    other = _commonest(mixers)
    if isinstance(other, Mamba2):
        return other.n_heads, other.n_heads, max(1, other.inner // other.n_heads)
    if isinstance(other, KimiDelta):
        return other.n_heads, other.n_heads, other.head_dim
    if isinstance(other, GatedDelta):
        return other.value_heads, other.value_heads, other.value_dim
    return 1, 1, other.inner if isinstance(other, Mamba1) else hidden_size


def summary(layers: tuple[LayerSpec, ...]) -> dict[str, Any]:
    """The flat fields of ModelSpec that say what the layers are like: those of the commonest kind.

    A window is the commonest one; the inner dimension is a dense layer's, else an expert's.
    """
    mixers = mixers_of(layers)
    hidden_size = layers[0].hidden_size
    n_heads, n_kv_heads, head_dim = _summary_heads(mixers, hidden_size)
    windows: dict[int, int] = {}
    for mixer, n in mixers.items():
        if mixer.window is not None and mixer.cache_elements:
            windows[mixer.window] = windows.get(mixer.window, 0) + n
    dense: dict[Dense, int] = {}
    experts: dict[Experts, int] = {}
    for layer, n in grouped(layers).items():
        for part in layer.feed_forwards:
            counts: Any = dense if isinstance(part, Dense) else experts
            counts[part] = counts.get(part, 0) + n
    widest, expert = _commonest(dense), _commonest(experts)
    inner = widest.intermediate_size if widest else expert.expert_size if expert else hidden_size
    return {
        "n_layers": len(layers),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "hidden_size": hidden_size,
        "intermediate_size": inner,
        "mlp": (widest or expert).mlp if widest or expert else Mlp.GATED,
        "norm": layers[0].norm,
        "n_sliding_layers": min(sum(windows.values()), len(layers)),
        "window": _commonest(windows),
        **dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias", "qk_norm"), False),
    }


def check_summary(model: Any) -> None:
    """Raise SpecError, naming the field, where a flat field of `model` contradicts its layers.

    That is an edit of one number of a model whose layers are given one by one: no single number says what it is to
    become, so it is refused rather than ignored.
    """
    layers: tuple[LayerSpec, ...] = model.layers
    if not all(isinstance(layer, LayerSpec) for layer in layers):
        raise SpecError("layers", "layers must be a tuple of LayerSpec")
    if any(layer.hidden_size != layers[0].hidden_size for layer in layers):
        raise SpecError("layers", "all layers must have the same hidden_size")
    if not any(mixer.cache_elements or mixer.state_elements for mixer in mixers_of(layers)):
        raise SpecError("layers", f"no layer of {model.name} keeps anything of the tokens before")
    for name, value in summary(layers).items():
        if getattr(model, name) != value:
            raise SpecError(
                name,
                f"{name} cannot be edited in {model.name}: its {len(layers)} layers are not all alike and are given "
                f"one by one (edit its config.json, or start from a plain model such as llama-3-8b)",
            )


def layers_document(layers: tuple[LayerSpec, ...]) -> dict[str, Any]:
    """`layers` as plain lists and mappings (JSON, TOML): the different layers, and their order as runs."""
    different = list(grouped(layers))
    order: list[list[int]] = []
    for layer in layers:
        index = different.index(layer)
        if order and order[-1][1] == index:
            order[-1][0] += 1
        else:
            order.append([1, index])
    return {"kinds": [_layer_document(layer) for layer in different], "order": order}


def _layer_document(layer: LayerSpec) -> dict[str, Any]:
    return {
        "hidden_size": layer.hidden_size,
        "norm_params": layer.norm_params,
        "norm": str(layer.norm),
        "mixers": [_part_document(part) for part in layer.mixers],
        "feed_forwards": [_part_document(part) for part in layer.feed_forwards],
    }


def _part_document(part: Mixer | FeedForward) -> dict[str, Any]:
    values = {f.name: getattr(part, f.name) for f in fields(part) if getattr(part, f.name) != f.default}
    return {"kind": part.kind, **{n: str(v) if isinstance(v, Mlp) else v for n, v in values.items()}}


MAX_LAYERS = 10_000


def layers_from_document(document: Mapping[str, Any]) -> tuple[LayerSpec, ...]:
    """The layers of a document made by `layers_document`. Raises SpecError for anything else."""
    try:
        different = [_layer_from(kind) for kind in document["kinds"]]
        runs = [(int(n), int(index)) for n, index in document["order"]]
        if any(n < 1 or not 0 <= index < len(different) for n, index in runs) or sum(n for n, _ in runs) > MAX_LAYERS:
            raise ValueError("order")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("layers", f"layers must be as kvscope writes them ({error})") from None
    return tuple(different[index] for n, index in runs for _ in range(n))


def _layer_from(kind: Mapping[str, Any]) -> LayerSpec:
    return LayerSpec(
        hidden_size=kind["hidden_size"],
        norm_params=kind["norm_params"],
        norm=Norm(kind.get("norm", "rms")),
        mixers=tuple(_part_from(part) for part in kind["mixers"]),
        feed_forwards=tuple(_part_from(part) for part in kind["feed_forwards"]),
    )


def _part_from(document: Mapping[str, Any]) -> Any:
    values = dict(document)
    part = KINDS[values.pop("kind")]
    if "mlp" in values:
        values["mlp"] = Mlp(values["mlp"])
    return part(**values)
