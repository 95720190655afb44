"""What a decoder looks like: one frozen record, whatever file it came from.

Also here, because both follow from the config alone: the names and shapes every weight must have
(`parameter_shapes`) and the table between those names and the assignment's. No torch in this module.
Families differ in switches of this record; `engine.families` makes it from a config.json.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engine.errors import ConfigError

NormKind = Literal["layernorm", "rmsnorm"]
PositionKind = Literal["learned", "rope"]
Activation = Literal["relu", "silu", "gelu", "gelu_tanh"]
Shape = tuple[int, ...]

REFERENCE_NORM_EPS = 1e-5  # torch's LayerNorm default, which the assignment's model keeps
MAX_LAYERS = 10_000  # far above any model; keeps a hostile config from exhausting memory by names alone
MAX_EXPERTS = 10_000
MAX_ALL_EXPERTS = 200_000  # of all layers: each has weights with names of their own

_SIZE_FIELDS = (
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "max_positions",
)
_PER_LAYER_FIELDS = ("sliding_layers", "rope_layers", "expert_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """Rotary scaling of Llama 3.1 and later (``rope_type: "llama3"``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearRopeScaling:
    """Every position divided by ``factor`` (``rope_type: "linear"``)."""

    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnRopeScaling:
    """YaRN (arXiv 2309.00071): fast pairs kept, slow ones stretched, a ramp between; cos and sin scaled.

    ``beta_fast``, ``beta_slow``: turns in the original context that bound the ramp. ``magnitude`` multiplies
    cos and sin. ``truncate``: the ramp's ends are rounded outwards to whole pairs.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE: one stretch per pair, another set of them once the text is longer than the original context.

    As in transformers, the longer set applies to the tokens of a forward pass that ends beyond the original
    context; keys cached before keep the rotation they got.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    magnitude: float = 1.0


RopeScaling = Llama3RopeScaling | LinearRopeScaling | YarnRopeScaling | LongRopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """The rotary positions of a layer: ``rotary_dim`` leading dimensions of each head turn."""

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """Routed experts in place of the MLP: ``n_active`` of ``n_experts`` per token, chosen by softmax.

    ``normalize``: the chosen weights are divided by their sum. ``scale`` multiplies them. With ``n_groups``
    above 1 only the experts of the best ``n_active_groups`` groups can be chosen (DeepSeek-V2).
    ``router_bias``: the router's scores have a bias (gpt-oss).
    ``shared_size``: inner size of the expert that every token passes through, 0: none.
    """

    n_experts: int
    n_active: int
    intermediate_size: int
    normalize: bool
    scale: float = 1.0
    shared_size: int = 0
    n_groups: int = 1
    n_active_groups: int = 1
    router_bias: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n_active <= self.n_experts <= MAX_EXPERTS:
            raise ConfigError(
                f"{self.n_active} of {self.n_experts} experts cannot be chosen; "
                f"choose at least 1 and at most all, of no more than {MAX_EXPERTS} experts"
            )
        if self.intermediate_size < 1 or self.shared_size < 0:
            raise ConfigError(
                f"experts of inner size {self.intermediate_size} and {self.shared_size}; each must be at least 1"
            )
        if self.n_experts % self.n_groups or not 1 <= self.n_active_groups <= self.n_groups:
            raise ConfigError(f"{self.n_experts} experts do not form {self.n_groups} equal groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): a token's K and V are one small vector.

    The cache holds ``rank`` compressed values and ``rope_dim`` rotated ones per token, shared by all heads.
    ``query_rank`` None: queries are not compressed.
    """

    rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int | None = None

    def __post_init__(self) -> None:
        if min(self.rank, self.nope_dim, self.value_dim, self.query_rank or 1) < 1:
            raise ConfigError(f"latent attention with a size below 1: {self}")
        if self.rope_dim < 2 or self.rope_dim % 2:
            raise ConfigError(f"qk_rope_head_dim is {self.rope_dim}; rotary positions need an even one")

    @property
    def width(self) -> int:
        """Values per token in the cache of one layer."""
        return self.rank + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """What sets one layer apart: the window it sees (None: everything), its positions, whether it has experts."""

    window: int | None
    rope: Rope | None
    experts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and structural switches of one decoder.

    ``sliding_window`` W: a token attends to itself and the W - 1 before it, in the layers that
    ``sliding_layers`` marks. Per-layer tuples hold one flag per layer; an empty one means every layer (no layer
    has experts unless ``experts`` is there). ``local_rope_theta``: unscaled rotary base of the sliding layers,
    where it is another. ``max_positions`` is the learned table's rows, or the longest context a rotary model
    declares. ``norm_offset`` is added to every stored RMSNorm weight. ``post_norms``: attention and MLP
    results are normalised before they are added, too. ``sinks``: a learned score a head joins each softmax
    and takes its share of nothing (gpt-oss). ``swiglu_limit``: gate and up are clamped to it, the gate goes
    through x sigmoid(1.702 x), and 1 is added to up (gpt-oss). Raises ConfigError.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    norm: NormKind
    norm_eps: float
    norm_offset: float = 0.0
    post_norms: bool = False
    positions: PositionKind
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_dim: int | None = None
    local_rope_theta: float | None = None
    rope_layers: tuple[bool, ...] = ()
    activation: Activation
    gated_mlp: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_bias: bool
    qk_norm: bool
    tied: bool
    attention_scale: float
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    sinks: bool = False
    swiglu_limit: float | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    experts: ExpertsConfig | None = None
    expert_layers: tuple[bool, ...] = ()
    latent: LatentConfig | None = None
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None

    def __post_init__(self) -> None:
        self._check_sizes()
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads ({self.n_heads}) is not a multiple of n_kv_heads ({self.n_kv_heads}), "
                "so query heads cannot share KV heads evenly"
            )
        if self.positions == "rope" and self.head_dim % 2 and self.rotary_dim is None:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary positions need an even one")
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 2 <= self.rotary_dim <= self.head_dim):
            raise ConfigError(f"rotary_dim is {self.rotary_dim}; it must be even and at most head_dim {self.head_dim}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window is {self.sliding_window}; it must be at least 1 or null")
        for name in _PER_LAYER_FIELDS:
            given = len(getattr(self, name))
            if given not in (0, self.n_layers):
                raise ConfigError(f"{name} describes {given} layers; the model has {self.n_layers}")

    def _check_sizes(self) -> None:
        for name in _SIZE_FIELDS:
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.n_layers > MAX_LAYERS:
            raise ConfigError(f"n_layers is {self.n_layers}; at most {MAX_LAYERS} are supported")
        if self.experts is not None and self.n_layers * self.experts.n_experts > MAX_ALL_EXPERTS:
            raise ConfigError(
                f"{self.n_layers} layers of {self.experts.n_experts} experts; "
                f"at most {MAX_ALL_EXPERTS:,} in all are supported"
            )

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    def layer(self, index: int) -> LayerKind:
        """What sets layer ``index`` apart."""
        slides = self.sliding_window is not None and (not self.sliding_layers or self.sliding_layers[index])
        has_experts = self.experts is not None and (not self.expert_layers or self.expert_layers[index])
        turns = self.positions == "rope" and (not self.rope_layers or self.rope_layers[index])
        return LayerKind(
            window=self.sliding_window if slides else None,
            rope=self._rope(local=slides) if turns else None,
            experts=has_experts,
        )

    def layers(self) -> tuple[LayerKind, ...]:
        """All layers, first to last."""
        return tuple(self.layer(i) for i in range(self.n_layers))

    def _rope(self, *, local: bool) -> Rope:
        dim = self.rotary_dim or (self.latent.rope_dim if self.latent else self.head_dim)
        if local and self.local_rope_theta is not None:
            return Rope(theta=self.local_rope_theta, rotary_dim=dim)
        return Rope(theta=self.rope_theta, rotary_dim=dim, scaling=self.rope_scaling)


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every weight a checkpoint must hold, by its Hugging Face name, in the order of the data's way.

    The names are Llama's for every family (those of Gemma, Qwen-MoE and DeepSeek for what Llama lacks);
    `engine.families` translates. A linear layer's weight is (outputs, inputs). Tied models have no
    ``lm_head.weight``.
    """
    c = config
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    if c.positions == "learned":
        shapes["model.embed_positions.weight"] = (c.max_positions, c.hidden_size)
    for i in range(c.n_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in _layer_shapes(c, i).items()}
    shapes |= _norm_shapes(c, "model.norm")
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    if c.head_bias:
        shapes["lm_head.bias"] = (c.vocab_size,)
    return shapes


def n_parameters(config: ModelConfig) -> int:
    """Parameters as a checkpoint stores them; a tied head is counted once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def _layer_shapes(c: ModelConfig, layer: int) -> dict[str, Shape]:
    shapes = _norm_shapes(c, "input_layernorm")
    shapes |= _attention_shapes(c) if c.latent is None else _latent_shapes(c, c.latent)
    shapes |= _norm_shapes(c, "post_attention_layernorm")
    if c.post_norms:
        shapes |= _norm_shapes(c, "pre_feedforward_layernorm")
    if c.experts is not None and c.layer(layer).experts:
        shapes |= _expert_shapes(c, c.experts)
    else:
        shapes |= _mlp_shapes(c, "mlp", c.intermediate_size)
    return shapes | _norm_shapes(c, "post_feedforward_layernorm") if c.post_norms else shapes


def _attention_shapes(c: ModelConfig) -> dict[str, Shape]:
    q_size, kv_size = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes = _linear_shapes("self_attn.q_proj", c.hidden_size, q_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.k_proj", c.hidden_size, kv_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.v_proj", c.hidden_size, kv_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.o_proj", q_size, c.hidden_size, c.o_bias)
    if c.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (c.head_dim,), "self_attn.k_norm.weight": (c.head_dim,)}
    return shapes | {"self_attn.sinks.weight": (c.n_heads,)} if c.sinks else shapes


def _latent_shapes(c: ModelConfig, latent: LatentConfig) -> dict[str, Shape]:
    query_size = c.n_heads * (latent.nope_dim + latent.rope_dim)
    if latent.query_rank is None:
        shapes = _linear_shapes("self_attn.q_proj", c.hidden_size, query_size, False)
    else:
        shapes = _linear_shapes("self_attn.q_a_proj", c.hidden_size, latent.query_rank, c.qkv_bias)
        shapes |= {"self_attn.q_a_layernorm.weight": (latent.query_rank,)}
        shapes |= _linear_shapes("self_attn.q_b_proj", latent.query_rank, query_size, False)
    shapes |= _linear_shapes("self_attn.kv_a_proj_with_mqa", c.hidden_size, latent.width, c.qkv_bias)
    shapes |= {"self_attn.kv_a_layernorm.weight": (latent.rank,)}
    kv_size = c.n_heads * (latent.nope_dim + latent.value_dim)
    shapes |= _linear_shapes("self_attn.kv_b_proj", latent.rank, kv_size, False)
    return shapes | _linear_shapes("self_attn.o_proj", c.n_heads * latent.value_dim, c.hidden_size, c.o_bias)


def _mlp_shapes(c: ModelConfig, name: str, inner: int) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for part in ("gate_proj", "up_proj") if c.gated_mlp else ("up_proj",):
        shapes |= _linear_shapes(f"{name}.{part}", c.hidden_size, inner, c.mlp_bias)
    return shapes | _linear_shapes(f"{name}.down_proj", inner, c.hidden_size, c.mlp_bias)


def _expert_shapes(c: ModelConfig, experts: ExpertsConfig) -> dict[str, Shape]:
    shapes = _linear_shapes("mlp.gate", c.hidden_size, experts.n_experts, experts.router_bias)
    for i in range(experts.n_experts):
        shapes |= _mlp_shapes(c, f"mlp.experts.{i}", experts.intermediate_size)
    if experts.shared_size:
        shapes |= _mlp_shapes(c, "mlp.shared_experts", experts.shared_size)
    return shapes


def _linear_shapes(name: str, inputs: int, outputs: int, bias: bool) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def _norm_shapes(c: ModelConfig, name: str) -> dict[str, Shape]:
    weight: dict[str, Shape] = {f"{name}.weight": (c.hidden_size,)}
    return weight | {f"{name}.bias": (c.hidden_size,)} if c.norm == "layernorm" else weight


# --- the assignment's names -------------------------------------------------------------------------

# (assignment's name, ours); inside a layer both follow "layers.{i}."
_REFERENCE_NAMES = (
    ("token_embedding", "model.embed_tokens"),
    ("pos_embedding", "model.embed_positions"),
    ("attention.W_q", "self_attn.q_proj"),
    ("attention.W_k", "self_attn.k_proj"),
    ("attention.W_v", "self_attn.v_proj"),
    ("attention.W_o", "self_attn.o_proj"),
    ("feed_forward.fc1", "mlp.up_proj"),
    ("feed_forward.fc2", "mlp.down_proj"),
    ("norm1", "input_layernorm"),
    ("norm2", "post_attention_layernorm"),
    ("norm", "model.norm"),
    ("output_projection", "lm_head"),
)
_FROM_REFERENCE = dict(_REFERENCE_NAMES)
_TO_REFERENCE = {ours: theirs for theirs, ours in _REFERENCE_NAMES}
_REFERENCE_LAYER = re.compile(r"layers\.(\d{1,5})\.(.+)")


def is_reference(names: Mapping[str, object]) -> bool:
    """Whether a state dict uses the assignment's names."""
    return "token_embedding.weight" in names


def from_reference_name(name: str) -> str:
    """``layers.0.attention.W_q.weight`` -> ``model.layers.0.self_attn.q_proj.weight``; unknown: unchanged."""
    match = _REFERENCE_LAYER.fullmatch(name)
    prefix, rest = (f"model.layers.{match[1]}.", match[2]) if match else ("", name)
    stem, _, kind = rest.rpartition(".")
    return f"{prefix}{_FROM_REFERENCE[stem]}.{kind}" if stem in _FROM_REFERENCE else name


def to_reference_name(name: str) -> str:
    """The inverse of `from_reference_name`, for messages that speak of the file's own keys."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    prefix, rest = (f"layers.{match[1]}.", match[2]) if match else ("", name)
    stem, _, kind = rest.rpartition(".")
    return f"{prefix}{_TO_REFERENCE[stem]}.{kind}" if stem in _TO_REFERENCE else name


def config_from_reference(shapes: Mapping[str, Shape]) -> ModelConfig:
    """The config that the shapes of an assignment-style state dict imply. Raises ConfigError.

    One attention head of the full width with scale 1/sqrt(d_model); every size is read from a shape.
    """
    vocab_size, hidden_size = _matrix(shapes, "token_embedding.weight")
    max_positions, _ = _matrix(shapes, "pos_embedding.weight")
    intermediate_size, _ = _matrix(shapes, "layers.0.feed_forward.fc1.weight")
    layers = {int(match[1]) for name in shapes if (match := _REFERENCE_LAYER.fullmatch(name))}
    return ModelConfig(
        n_layers=max(layers) + 1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=hidden_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        max_positions=max_positions,
        norm="layernorm",
        norm_eps=REFERENCE_NORM_EPS,
        positions="learned",
        activation="relu",
        gated_mlp=False,
        qkv_bias="layers.0.attention.W_q.bias" in shapes,
        o_bias="layers.0.attention.W_o.bias" in shapes,
        mlp_bias="layers.0.feed_forward.fc1.bias" in shapes,
        head_bias="output_projection.bias" in shapes,
        qk_norm=False,
        tied="output_projection.weight" not in shapes,
        attention_scale=1 / math.sqrt(hidden_size),
    )


def _matrix(shapes: Mapping[str, Shape], name: str) -> tuple[int, int]:
    shape = shapes.get(name)
    if shape is None:
        raise ConfigError(f"the weight file has no {name}, which gives the model's sizes")
    if len(shape) != 2:
        raise ConfigError(f"{name} has shape {list(shape)}; expected a matrix")
    return shape[0], shape[1]
