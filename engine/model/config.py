"""The configuration of a decoder: one frozen record for every file format. No torch in this module.

Model families differ in the switches of this record; `engine.families` builds it from a config.json.
"""

from dataclasses import dataclass
from typing import Literal

from engine.errors import ConfigError

NormKind = Literal["layernorm", "rmsnorm"]
PositionKind = Literal["learned", "rope", "alibi"]
Activation = Literal["relu", "relu2", "silu", "gelu", "gelu_tanh", "gelu_sigmoid", "xielu"]
BlockKind = Literal["pre", "sandwich", "post", "parallel"]
QKNormKind = Literal["head", "each", "all"]
MAX_LAYERS = 10_000  # far above any model; keeps a hostile config from exhausting memory by names alone
MAX_EXPERTS = 10_000
MAX_ALL_EXPERTS = 200_000  # over all layers: each expert has its own named weights

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
_PER_LAYER_FIELDS = ("sliding_layers", "rope_layers", "expert_layers", "recurrent_layers")


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
    """YaRN (arXiv 2309.00071): fast pairs stay, slow pairs are stretched, with a ramp between; cos and sin are scaled.

    ``beta_fast``, ``beta_slow``: rotations over the original context that bound the ramp. ``magnitude`` multiplies
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
    """LongRoPE: one stretch factor per pair, and a second set for texts longer than the original context.

    As in transformers' generate, the length of the whole text selects the set: when a text outgrows the original
    context, the cached keys and values are recomputed with the second set (`engine.model.decoder`).
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    original_max_positions: int
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicRopeScaling:
    """Dynamic NTK (``rope_type: "dynamic"``): beyond the original context the base grows with the text.

    As in transformers' generate, the base of a prompt follows its whole length; that of each later token follows the
    text up to that token.
    """

    factor: float
    original_max_positions: int


RopeScaling = Llama3RopeScaling | LinearRopeScaling | YarnRopeScaling | LongRopeScaling | DynamicRopeScaling


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryGrowth:
    """Queries are multiplied by 1 + beta ln(1 + floor(position / every)) (Ministral 3, after Llama 4)."""

    beta: float
    every: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """The rotary positions of a layer: the first ``rotary_dim`` dimensions of each head are rotated."""

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsConfig:
    """Routed experts in place of the MLP: ``n_active`` of ``n_experts`` per token, chosen by their scores.

    ``scoring``: softmax over all experts, or a sigmoid per expert (DeepSeek-V3). ``normalize``: the chosen weights are
    divided by their sum plus ``sum_floor``, times ``scale``. With ``n_groups`` above 1 only the experts of the best
    ``n_active_groups`` groups can be chosen; a group's score is the sum of its best ``group_best`` experts.
    ``router_bias``: the router's scores have a bias (gpt-oss). ``choice_bias``: a bias that affects only the choice
    (DeepSeek-V3). ``shared_size``: inner size of the shared expert, which every token uses; 0: none.
    ``shared_gate``: the shared expert's output is scaled by a sigmoid gate (Qwen2-MoE). ``jitter``: experts are chosen
    one by one, each weighted among those whose scores are within twice the jitter (SparseMixer, Phi-3.5-MoE).
    """

    n_experts: int
    n_active: int
    intermediate_size: int
    normalize: bool
    scale: float = 1.0
    shared_size: int = 0
    n_groups: int = 1
    n_active_groups: int = 1
    group_best: int = 1
    router_bias: bool = False
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    choice_bias: bool = False
    shared_gate: bool = False
    jitter: float | None = None
    sum_floor: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.n_active <= self.n_experts <= MAX_EXPERTS:
            raise ConfigError(
                f"{self.n_active} of {self.n_experts} experts cannot be chosen; expected from 1 to all of at most "
                f"{MAX_EXPERTS} experts"
            )
        if self.intermediate_size < 1 or self.shared_size < 0:
            raise ConfigError(
                f"experts of inner size {self.intermediate_size} and {self.shared_size}; each must be at least 1"
            )
        if self.n_experts % self.n_groups or not 1 <= self.n_active_groups <= self.n_groups:
            raise ConfigError(f"{self.n_experts} experts do not form {self.n_groups} equal groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): one small vector per token stands for its K and V.

    The cache holds ``rank`` compressed values and ``rope_dim`` rotated ones per token, shared by all heads.
    ``query_rank`` None: queries are not compressed. ``norm_eps``: epsilon of the norms of the compressed vectors.
    """

    rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int | None = None
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.rank, self.nope_dim, self.value_dim, self.query_rank or 1) < 1:
            raise ConfigError(f"latent attention with a size below 1: {self}")
        if self.rope_dim < 2 or self.rope_dim % 2:
            raise ConfigError(f"qk_rope_head_dim is {self.rope_dim}; rotary positions need an even number")

    @property
    def width(self) -> int:
        """Values per token in the cache of one layer."""
        return self.rank + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvConfig:
    """LFM2's layers without attention: a gated convolution over each token and the ``width`` - 1 before it."""

    width: int
    bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaConfig:
    """Qwen3-Next's layers without attention: a gated delta rule (arXiv 2412.06464) after a short convolution.

    Each of ``n_key_heads`` heads of queries and keys serves n_value_heads / n_key_heads value heads: consecutive
    ones, or with ``tiled`` every n_key_heads-th one (llama.cpp's files of Qwen3.5).
    """

    n_key_heads: int
    n_value_heads: int
    key_dim: int
    value_dim: int
    width: int
    tiled: bool = False

    def __post_init__(self) -> None:
        if self.n_value_heads % self.n_key_heads:
            raise ConfigError(f"{self.n_value_heads} value heads are not divisible by {self.n_key_heads} key heads")

    @property
    def key_size(self) -> int:
        """Width of the keys of all heads together."""
        return self.n_key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Width of the values of all heads together."""
        return self.n_value_heads * self.value_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """How one layer differs from others: its attention window (None: unlimited), its positions, whether it has experts.

    ``recurrent``: the layer has no attention, but a state of fixed size.
    """

    window: int | None
    rope: Rope | None
    experts: bool
    recurrent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and structural switches of one decoder.

    ``sliding_window`` W: a token attends to itself and the W - 1 before it, in the layers that
    ``sliding_layers`` marks. Per-layer tuples hold one flag per layer; an empty one means every layer (no layer
    has experts unless ``experts`` is set). ``local_rope_theta``: unscaled rotary base of the sliding layers,
    where it differs. ``max_positions`` is the learned table's row count, or the longest context that a rotary model
    declares. ``norm_offset`` is added to every stored RMSNorm weight. ``norm_bias``: LayerNorms have a bias.
    ``positions`` "alibi": scores fall linearly with distance, by a slope per head (arXiv 2108.12409) times
    ``alibi_scale``.
    ``norm_weights`` False: norms have no weights. ``embed_norm``: embeddings are normalized too. ``block``: whether the
    inputs of attention and MLP are normalized, their outputs, or both ("sandwich"); "parallel": both read the same
    input, through one or two ``parallel_norms``.
    ``qk_norm_kind``: queries and keys are normalized per head with one weight shared by all heads, per head with
    separate weights ("each", the kind of ``norm``), or over all heads together; ``qk_norm_late``: after the rotation.
    ``residual_scale`` multiplies the outputs of attention and MLP.
    ``attention_gate``: a sigmoid gates the attention output. ``sinks``: a learned score per head joins each softmax
    and takes weight without adding a value (gpt-oss). ``swiglu_limit``: gate and up are clamped to it, the gate goes
    through x sigmoid(1.702 x), and 1 is added to up (gpt-oss). ``sub_norms``: attention and MLP normalize the input of
    their last projection; ``byte_inputs``: inputs of the linear layers of a block are rounded to 8 bits (BitNet).
    ``recurrent``: replaces attention in the layers that ``recurrent_layers`` marks. Raises ConfigError.
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
    norm_bias: bool = True
    norm_weights: bool = True
    block: BlockKind = "pre"
    parallel_norms: int = 1
    residual_scale: float = 1.0
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
    qk_norm_kind: QKNormKind = "head"
    qk_norm_late: bool = False
    query_growth: QueryGrowth | None = None
    tied: bool
    attention_scale: float
    alibi_scale: float = 1.0
    attention_softcap: float | None = None
    attention_gate: bool = False
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    embed_scale: float = 1.0
    embed_norm: bool = False
    sinks: bool = False
    swiglu_limit: float | None = None
    sub_norms: bool = False
    byte_inputs: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    experts: ExpertsConfig | None = None
    expert_layers: tuple[bool, ...] = ()
    latent: LatentConfig | None = None
    recurrent: ConvConfig | DeltaConfig | None = None
    recurrent_layers: tuple[bool, ...] = ()
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
            raise ConfigError(f"head_dim is {self.head_dim}; rotary positions need an even number")
        if self.query_growth is not None and self.rotary_dim not in (None, self.head_dim):
            raise ConfigError("queries that grow with the position need fully rotated heads")
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
    def post_norms(self) -> bool:
        """Whether the outputs of attention and MLP are normalized before the residual sum."""
        return self.block in ("sandwich", "post")

    @property
    def scores_by_hand(self) -> bool:
        """Whether attention needs a feature that no torch kernel has: a softcap, sinks or ALiBi."""
        return self.attention_softcap is not None or self.sinks or self.positions == "alibi"

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    def layer(self, index: int) -> LayerKind:
        """The kind of layer ``index``."""
        slides = self.sliding_window is not None and (not self.sliding_layers or self.sliding_layers[index])
        recurrent = self.recurrent is not None and self.recurrent_layers[index]
        has_experts = self.experts is not None and (not self.expert_layers or self.expert_layers[index])
        turns = self.positions == "rope" and not recurrent and (not self.rope_layers or self.rope_layers[index])
        return LayerKind(
            window=self.sliding_window if slides and not recurrent else None,
            rope=self._rope(local=slides) if turns else None,
            experts=has_experts,
            recurrent=recurrent,
        )

    def layers(self) -> tuple[LayerKind, ...]:
        """All layers, first to last."""
        return tuple(self.layer(i) for i in range(self.n_layers))

    def _rope(self, *, local: bool) -> Rope:
        dim = self.rotary_dim or (self.latent.rope_dim if self.latent else self.head_dim)
        if local and self.local_rope_theta is not None:
            return Rope(theta=self.local_rope_theta, rotary_dim=dim)
        return Rope(theta=self.rope_theta, rotary_dim=dim, scaling=self.rope_scaling)
