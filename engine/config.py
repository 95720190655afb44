"""What a decoder looks like: one frozen record, made from a config.json or from the shapes of a weight file.

Also here, because both follow from the config alone: the names and shapes every weight must have
(`parameter_shapes`) and the table between those names and the assignment's. No torch in this module.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import ConfigError, UnsupportedArchitecture

NormKind = Literal["layernorm", "rmsnorm"]
PositionKind = Literal["learned", "rope"]
Activation = Literal["relu", "silu", "gelu"]
Shape = tuple[int, ...]

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ACTIVATIONS: tuple[Activation, ...] = ("relu", "silu", "gelu")
REFERENCE_NORM_EPS = 1e-5  # torch's LayerNorm default, which the assignment's model keeps
MAX_LAYERS = 10_000  # far above any model; keeps a hostile config from exhausting memory by names alone

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3RopeScaling:
    """Rotary scaling of Llama 3.1 and later (``rope_type: "llama3"``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and structural switches of one decoder.

    ``sliding_window`` W: a token attends to itself and the W - 1 before it. ``max_positions`` is the
    learned table's rows, or the longest context a rotary model declares. Raises ConfigError.
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

    def __post_init__(self) -> None:
        for name in _SIZE_FIELDS:
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.n_layers > MAX_LAYERS:
            raise ConfigError(f"n_layers is {self.n_layers}; at most {MAX_LAYERS} are supported")
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(
                f"n_heads ({self.n_heads}) is not a multiple of n_kv_heads ({self.n_kv_heads}), "
                "so query heads cannot share KV heads evenly"
            )
        if self.positions == "rope" and self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary positions need an even one")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ConfigError(f"sliding_window is {self.sliding_window}; it must be at least 1 or null")

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every weight a checkpoint must hold, by its Hugging Face name, in the order of the data's way.

    A linear layer's weight is (outputs, inputs). Tied models have no ``lm_head.weight``.
    """
    c = config
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    if c.positions == "learned":
        shapes["model.embed_positions.weight"] = (c.max_positions, c.hidden_size)
    for i in range(c.n_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in _layer_shapes(c).items()}
    shapes |= _norm_shapes(c, "model.norm")
    if not c.tied:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    if c.head_bias:
        shapes["lm_head.bias"] = (c.vocab_size,)
    return shapes


def n_parameters(config: ModelConfig) -> int:
    """Parameters as a checkpoint stores them; a tied head is counted once."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def _layer_shapes(c: ModelConfig) -> dict[str, Shape]:
    q_size, kv_size = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes = _norm_shapes(c, "input_layernorm")
    shapes |= _linear_shapes("self_attn.q_proj", c.hidden_size, q_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.k_proj", c.hidden_size, kv_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.v_proj", c.hidden_size, kv_size, c.qkv_bias)
    shapes |= _linear_shapes("self_attn.o_proj", q_size, c.hidden_size, c.o_bias)
    if c.qk_norm:
        shapes |= {"self_attn.q_norm.weight": (c.head_dim,), "self_attn.k_norm.weight": (c.head_dim,)}
    shapes |= _norm_shapes(c, "post_attention_layernorm")
    for name in ("gate_proj", "up_proj") if c.gated_mlp else ("up_proj",):
        shapes |= _linear_shapes(f"mlp.{name}", c.hidden_size, c.intermediate_size, c.mlp_bias)
    return shapes | _linear_shapes("mlp.down_proj", c.intermediate_size, c.hidden_size, c.mlp_bias)


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
        raise ConfigError(f"{name} has shape {list(shape)}; a matrix was expected")
    return shape[0], shape[1]


# --- Hugging Face config.json -----------------------------------------------------------------------


def config_from_hf(document: object) -> ModelConfig:
    """The config a parsed config.json describes. Raises ConfigError, UnsupportedArchitecture.

    Keys that may be absent take the default of the Hugging Face class of that model_type.
    """
    if not isinstance(document, dict):
        raise ConfigError("config.json must hold one JSON object")
    raw = _Keys(document)
    model_type = raw.text("model_type")
    if model_type not in MODEL_TYPES:
        raise UnsupportedArchitecture(
            f'config.json has model_type "{model_type}", which the engine cannot run; it runs {", ".join(MODEL_TYPES)}'
        )
    _refuse_unsupported(raw)
    hidden_size, n_heads = raw.count("hidden_size"), raw.count("num_attention_heads")
    head_dim = _head_dim(raw, model_type, hidden_size, n_heads)
    attention_bias = raw.flag("attention_bias", False)
    rope_theta, rope_scaling = _rope(raw)
    return ModelConfig(
        n_layers=raw.count("num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=raw.count("num_key_value_heads", n_heads if model_type == "llama" else None),
        head_dim=head_dim,
        hidden_size=hidden_size,
        intermediate_size=raw.count("intermediate_size"),
        vocab_size=raw.count("vocab_size"),
        max_positions=raw.count("max_position_embeddings"),
        norm="rmsnorm",
        norm_eps=raw.positive("rms_norm_eps", 1e-6),
        positions="rope",
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        activation=_activation(raw),
        gated_mlp=True,
        qkv_bias=model_type == "qwen2" or (attention_bias and model_type != "mistral"),
        o_bias=attention_bias and model_type in ("llama", "qwen3"),
        mlp_bias=model_type == "llama" and raw.flag("mlp_bias", False),
        head_bias=False,
        qk_norm=model_type == "qwen3",
        tied=raw.flag("tie_word_embeddings", False),
        attention_scale=1 / math.sqrt(head_dim),
        sliding_window=_sliding_window(raw, model_type),
        eos_ids=raw.token_ids("eos_token_id"),
        bos_id=next(iter(raw.token_ids("bos_token_id")), None),
    )


class _Keys:
    """Typed access to a JSON object; every refusal names the key."""

    def __init__(self, document: dict[str, Any], *, where: str = "config.json") -> None:
        self.document = document
        self.where = where

    def get(self, key: str) -> Any:
        """The value, or None when it is absent or null (the two mean the same in these files)."""
        return self.document.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        value = self._or_default(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{self.where}: {key} is {value!r}; a whole number of at least 1 was expected")
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        value = self._or_default(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ConfigError(f"{self.where}: {key} is {value!r}; a number above 0 was expected")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._or_default(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} is {value!r}; true or false was expected")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._or_default(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: {key} is {value!r}; a text was expected")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise ConfigError(f"{self.where}: {key} is {value!r}; a token id or a list of them was expected")
        return tuple(ids)

    def section(self, key: str) -> "_Keys | None":
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}: {key} is {value!r}; an object was expected")
        return _Keys(value, where=f"{self.where}: {key}")

    def _or_default(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is None and default is None:
            raise ConfigError(f"{self.where}: {key} is missing")
        return default if value is None else value


def _refuse_unsupported(raw: _Keys) -> None:
    if raw.get("quantization_config") is not None:
        raise UnsupportedArchitecture(
            "config.json has a quantization_config; the engine loads unquantised weights only"
        )
    partial = raw.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0):
        raise UnsupportedArchitecture(f"config.json: partial_rotary_factor is {partial!r}; only 1 is supported")


def _head_dim(raw: _Keys, model_type: str, hidden_size: int, n_heads: int) -> int:
    if raw.get("head_dim") is not None:
        return raw.count("head_dim")
    if model_type == "qwen3":
        return 128  # the class default; Qwen3's heads are not hidden_size / n_heads wide
    if hidden_size % n_heads:
        raise ConfigError(
            f"config.json: hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({n_heads}) "
            "and head_dim is not given"
        )
    return hidden_size // n_heads


def _activation(raw: _Keys) -> Activation:
    name = raw.text("hidden_act", "silu")
    for known in ACTIVATIONS:
        if name == known:
            return known
    raise UnsupportedArchitecture(
        f'config.json: hidden_act "{name}" is not supported; supported: {", ".join(ACTIVATIONS)}'
    )


def _rope(raw: _Keys) -> tuple[float, Llama3RopeScaling | None]:
    """(theta, scaling), from the flat keys or from the ``rope_parameters`` object of transformers 5."""
    parameters = raw.section("rope_parameters")
    scaling = parameters or raw.section("rope_scaling")
    theta = (parameters if parameters and parameters.get("rope_theta") else raw).positive("rope_theta", 1e4)
    if scaling is None:
        return theta, None
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UnsupportedArchitecture(f"{scaling.where}: type {kind!r} is not supported; use default or llama3")
    low, high = scaling.positive("low_freq_factor"), scaling.positive("high_freq_factor")
    if high <= low:
        raise ConfigError(f"{scaling.where}: high_freq_factor {high:g} must exceed low_freq_factor {low:g}")
    return theta, Llama3RopeScaling(
        factor=scaling.positive("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_positions=scaling.count("original_max_position_embeddings"),
    )


def _sliding_window(raw: _Keys, model_type: str) -> int | None:
    """The window every layer uses, or None. Qwen's window counts only when it is switched on."""
    if model_type == "llama":
        return None
    if model_type == "mistral":
        # The class default is 4096, and later Mistrals write null to switch the window off.
        declared = raw.document.get("sliding_window", 4096)
    else:
        declared = raw.get("sliding_window") if raw.flag("use_sliding_window", False) else None
    if declared is None:
        return None
    if _layers_mix(raw, model_type):
        raise UnsupportedArchitecture("config.json mixes sliding and full attention layers; not supported")
    kinds = raw.get("layer_types")
    if isinstance(kinds, list) and set(kinds) == {"full_attention"}:
        return None
    return _Keys({"sliding_window": declared}).count("sliding_window")


def _layers_mix(raw: _Keys, model_type: str) -> bool:
    kinds = raw.get("layer_types")
    if isinstance(kinds, list):
        return len(set(map(str, kinds))) > 1
    if model_type == "mistral":
        return False
    return raw.get("max_window_layers") not in (None, 0)  # Qwen: layers from this one on slide
