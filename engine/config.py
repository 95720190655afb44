"""What a decoder looks like: one frozen record. No torch here."""

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["layernorm", "rmsnorm"]
PositionKind = Literal["learned", "rope"]
Activation = Literal["relu", "silu", "gelu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """Rotary scaling of Llama 3.1 and later (``rope_type: "llama3"``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and structural switches of one decoder. Counts are plain numbers; nothing is optional by guess."""

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
    positions: PositionKind
    rope_theta: float = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    activation: Activation
    gated_mlp: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    head_bias: bool
    qk_norm: bool
    tied: bool
    attention_scale: float
    sliding_window: int | None = None
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
