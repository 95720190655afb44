"""Hugging Face's config.json to a `ModelConfig`: one small function a family over one reader of common keys.

Keys that may be absent take the default of the Hugging Face class of that model_type (transformers 5.23).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from engine.errors import ConfigError, UnsupportedArchitecture
from engine.families.keys import Keys
from engine.families.rope import RopeKeys, read_rope, read_scaling
from engine.model.config import MAX_LAYERS, Activation, ExpertsConfig, LatentConfig, ModelConfig

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
SLIDING, FULL = "sliding_attention", "full_attention"


def config_from_hf(document: object) -> ModelConfig:
    """The config a parsed config.json describes. Raises ConfigError, UnsupportedArchitecture."""
    if not isinstance(document, dict):
        raise ConfigError("config.json must hold one JSON object")
    raw = Keys(document)
    model_type = raw.text("model_type")
    family = _FAMILIES.get(model_type)
    if family is None:
        raise UnsupportedArchitecture(
            f'config.json has model_type "{model_type}", which the engine cannot run; it runs {", ".join(_FAMILIES)}'
        )
    if raw.get("quantization_config") is not None and not _is_mxfp4(raw):
        raise UnsupportedArchitecture(
            "config.json has a quantization_config; the engine loads unquantised weights only"
        )
    return family(raw)


def _is_mxfp4(raw: Keys) -> bool:
    """gpt-oss's own files: experts in MXFP4, which `engine.families.names` widens."""
    section = raw.section("quantization_config")
    return raw.text("model_type") == "gpt_oss" and section is not None and section.get("quant_method") == "mxfp4"


# --- what families share ----------------------------------------------------------------------------------


def _common(raw: Keys, *, head_dim: int | None = None, theta: float = 1e4, **changes: Any) -> ModelConfig:
    """A Llama with the config's sizes and the ``changes`` a family makes to it."""
    n_heads, hidden_size = raw.count("num_attention_heads"), raw.count("hidden_size")
    if head_dim is None:
        head_dim = _head_dim(raw, hidden_size, n_heads)
    if "rope_theta" not in changes:
        changes |= rope_fields(read_rope(raw, theta=theta, rotary_dim=head_dim))
    partial = raw.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0) and "rotary_dim" not in changes:
        raise UnsupportedArchitecture(f"config.json: partial_rotary_factor is {partial!r}; only 1 is supported")
    fields: dict[str, Any] = {
        "n_layers": _n_layers(raw),
        "n_heads": n_heads,
        "n_kv_heads": raw.count("num_key_value_heads"),
        "head_dim": head_dim,
        "hidden_size": hidden_size,
        "intermediate_size": raw.count("intermediate_size"),
        "vocab_size": raw.count("vocab_size"),
        "max_positions": raw.count("max_position_embeddings"),
        "norm": "rmsnorm",
        "norm_eps": raw.positive("rms_norm_eps", 1e-6),
        "positions": "rope",
        "activation": _activation(raw, "hidden_act"),
        "gated_mlp": True,
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "head_bias": False,
        "qk_norm": False,
        "tied": raw.flag("tie_word_embeddings", False),
        "attention_scale": 1 / math.sqrt(head_dim),
        "eos_ids": raw.token_ids("eos_token_id"),
        "bos_id": next(iter(raw.token_ids("bos_token_id")), None),
    }
    return ModelConfig(**(fields | changes))


def _n_layers(raw: Keys) -> int:
    """Checked before anything is made for each layer."""
    n = raw.count("num_hidden_layers")
    if n > MAX_LAYERS:
        raise ConfigError(f"{raw.where}: num_hidden_layers is {n}; at most {MAX_LAYERS} are supported")
    return n


def rope_fields(rope: RopeKeys) -> dict[str, Any]:
    """The fields of a ModelConfig that a base and a scaling set."""
    return {"rope_theta": rope.theta, "rope_scaling": rope.scaling}


def _head_dim(raw: Keys, hidden_size: int, n_heads: int) -> int:
    if raw.get("head_dim") is not None:
        return raw.count("head_dim")
    if hidden_size % n_heads:
        raise ConfigError(
            f"config.json: hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({n_heads}) "
            "and head_dim is not given"
        )
    return hidden_size // n_heads


def _activation(raw: Keys, key: str) -> Activation:
    name = raw.text(key, "silu")
    if name not in ACTIVATIONS:
        raise UnsupportedArchitecture(
            f'config.json: {key} "{name}" is not supported; supported: {", ".join(ACTIVATIONS)}'
        )
    return ACTIVATIONS[name]


def _windows(raw: Keys, kinds: Sequence[object] | None) -> dict[str, Any]:
    """The window's fields from ``sliding_window`` and the layers' kinds; no kinds: every layer slides."""
    if raw.get("sliding_window") is None:
        return {}
    if kinds is None:
        return {"sliding_window": raw.count("sliding_window")}
    unknown = [kind for kind in kinds if kind not in (SLIDING, FULL)]
    if unknown:
        raise UnsupportedArchitecture(
            f"config.json: layer_types has {unknown[0]!r}; {SLIDING} and {FULL} are supported"
        )
    slides = tuple(kind == SLIDING for kind in kinds)
    if not any(slides):
        return {}
    return {"sliding_window": raw.count("sliding_window"), "sliding_layers": () if all(slides) else slides}


def _layer_types(raw: Keys) -> list[Any] | None:
    return raw.items("layer_types", n=_n_layers(raw))


# --- Llama, Mistral, Qwen, SmolLM -------------------------------------------------------------------------


def _llama(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads")})
    bias = raw.flag("attention_bias", False)
    return _common(raw, qkv_bias=bias, o_bias=bias, mlp_bias=raw.flag("mlp_bias", False))


def _mistral(raw: Keys) -> ModelConfig:
    # The class default is 4096, and later Mistrals write null to switch the window off.
    raw = raw.with_defaults({"sliding_window": 4096})
    return _common(raw, **_windows(raw, _layer_types(raw)))


def _qwen_windows(raw: Keys) -> dict[str, Any]:
    """Qwen's window counts only when it is switched on, from layer ``max_window_layers`` on."""
    if not raw.flag("use_sliding_window", False):
        return {}
    kinds = _layer_types(raw)
    if kinds is None:
        first = raw.whole("max_window_layers", 28)
        kinds = [SLIDING if i >= first else FULL for i in range(_n_layers(raw))]
    return _windows(raw, kinds)


def _qwen2(raw: Keys) -> ModelConfig:
    return _common(raw, qkv_bias=True, **_qwen_windows(raw))


def _qwen3(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"head_dim": 128})  # Qwen3's heads are not hidden_size / n_heads wide
    bias = raw.flag("attention_bias", False)
    return _common(raw, qkv_bias=bias, o_bias=bias, qk_norm=True, **_qwen_windows(raw))


def _smollm3(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"tie_word_embeddings": True})
    n_layers, interval = _n_layers(raw), raw.count("no_rope_layer_interval", 4)
    turning = raw.items("no_rope_layers", n=n_layers)  # in spite of its name, 1 means that a layer turns
    turns = (
        tuple(bool(turn) for turn in turning) if turning else tuple((i + 1) % interval != 0 for i in range(n_layers))
    )
    bias = raw.flag("attention_bias", False)
    windows = _windows(raw, _layer_types(raw)) if raw.flag("use_sliding_window", False) else {}
    return _common(
        raw, theta=2e6, qkv_bias=bias, o_bias=bias, mlp_bias=raw.flag("mlp_bias", False), rope_layers=turns, **windows
    )


# --- Gemma ------------------------------------------------------------------------------------------------

_GEMMA2 = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
_GEMMA3 = _GEMMA2 | {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "num_attention_heads": 8,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
}


def _gemma2(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(_GEMMA2)
    return _common(raw, **_gemma_fields(raw, pattern=2))


def _gemma3(raw: Keys) -> ModelConfig:
    inner = raw.section("text_config")  # the image models keep the decoder's keys in a section
    if inner is not None:
        outer = {key: raw.document[key] for key in ("eos_token_id", "bos_token_id") if raw.get(key) is not None}
        raw = Keys({**outer, **inner.document}, where=inner.where)
    raw = raw.with_defaults(_GEMMA3)
    head_dim = raw.count("head_dim")
    far, near = _gemma3_rope(raw, head_dim)
    return _common(
        raw,
        qk_norm=True,
        **_gemma_fields(raw, pattern=raw.count("sliding_window_pattern", 6)),
        **rope_fields(far),
        local_rope_theta=near,
    )


def _gemma3_rope(raw: Keys, head_dim: int) -> tuple[RopeKeys, float]:
    """The global layers' base and scaling, and the local layers' base, which is never scaled."""
    both = raw.section("rope_parameters")
    far, near = (both.section(FULL), both.section(SLIDING)) if both else (None, None)
    if far is None:
        return read_rope(raw, theta=1e6, rotary_dim=head_dim), raw.positive("rope_local_base_freq", 1e4)
    if near is not None and (near.get("rope_type") or "default") != "default":
        raise UnsupportedArchitecture(f"{near.where}: type {near.get('rope_type')!r} is not supported in local layers")
    theta = far.positive("rope_theta", 1e6)
    near_theta = near.positive("rope_theta", 1e4) if near is not None else 1e4
    return read_scaling(raw, far, theta, rotary_dim=head_dim, aliases={}), near_theta


def _gemma_fields(raw: Keys, *, pattern: int) -> dict[str, Any]:
    """What sets Gemma 2 and 3 apart; every ``pattern``-th layer sees everything, the others a window."""
    if raw.get("use_bidirectional_attention"):
        raise UnsupportedArchitecture("config.json: use_bidirectional_attention is not supported")
    bias = raw.flag("attention_bias", False)
    kinds = _layer_types(raw)
    if kinds is None:
        kinds = [SLIDING if (i + 1) % pattern else FULL for i in range(_n_layers(raw))]
    return {
        "norm_offset": 1.0,
        "post_norms": True,
        "activation": _activation(raw, "hidden_activation"),
        "qkv_bias": bias,
        "o_bias": bias,
        "embed_scale": math.sqrt(raw.count("hidden_size")),
        "attention_scale": raw.positive("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": raw.optional_positive("attn_logit_softcapping"),
        "logit_softcap": raw.optional_positive("final_logit_softcapping"),
        **_windows(raw, kinds),
    }


# --- GPT-2, Phi-3 -----------------------------------------------------------------------------------------


def _gpt2(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257})
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if raw.flag(key, False):
            raise UnsupportedArchitecture(f"config.json: {key} is true; it is not supported")
    width = raw.count("n_embd")
    names = {
        "hidden_size": width,
        "num_hidden_layers": raw.get("n_layer"),
        "num_attention_heads": raw.get("n_head"),
        "num_key_value_heads": raw.get("n_head"),
        "max_position_embeddings": raw.get("n_positions"),
        "intermediate_size": raw.get("n_inner") or 4 * width,
        "hidden_act": raw.get("activation_function") or "gelu_new",
    }
    changes: dict[str, Any] = {} if raw.flag("scale_attn_weights", True) else {"attention_scale": 1.0}
    return _common(
        Keys({"tie_word_embeddings": True, **raw.document, **names}),
        rope_theta=1e4,
        norm="layernorm",
        norm_eps=raw.positive("layer_norm_epsilon", 1e-5),
        positions="learned",
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        **changes,
    )


def _phi3(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(
        {"num_key_value_heads": raw.get("num_attention_heads"), "original_max_position_embeddings": 4096}
    )
    head_dim = _head_dim(raw, raw.count("hidden_size"), raw.count("num_attention_heads"))
    parameters = raw.section("rope_parameters") or raw
    partial = parameters.positive("partial_rotary_factor", raw.positive("partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * partial)
    # Early Phi-3 files call LongRoPE "su" or "yarn".
    rope = read_rope(raw, rotary_dim=rotary_dim, aliases={"su": "longrope", "yarn": "longrope"})
    eps = raw.positive("rms_norm_eps", 1e-5)
    return _common(raw, norm_eps=eps, rotary_dim=rotary_dim, **rope_fields(rope), **_windows(raw, None))


# --- experts ----------------------------------------------------------------------------------------------


def _mixtral(raw: Keys) -> ModelConfig:
    experts = ExpertsConfig(
        n_experts=raw.count("num_local_experts", 8),
        n_active=raw.count("num_experts_per_tok", 2),
        intermediate_size=raw.count("intermediate_size"),
        normalize=True,
    )
    eps = raw.positive("rms_norm_eps", 1e-5)
    return _common(raw, theta=1e6, norm_eps=eps, experts=experts, **_windows(raw, None))


def _qwen3_moe(raw: Keys) -> ModelConfig:
    n_layers, step = _n_layers(raw), raw.count("decoder_sparse_step", 1)
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ConfigError(f"config.json: mlp_only_layers is {dense!r}; a list of layers was expected")
    n_experts = raw.count("num_experts", raw.get("num_local_experts") or 128)
    bias = raw.flag("attention_bias", False)
    return _common(
        raw,
        qkv_bias=bias,
        o_bias=bias,
        qk_norm=True,
        experts=ExpertsConfig(
            n_experts=n_experts,
            n_active=raw.count("num_experts_per_tok", 8),
            intermediate_size=raw.count("moe_intermediate_size", 768),
            normalize=raw.flag("norm_topk_prob", False),
        ),
        expert_layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(n_layers)),
        **(_windows(raw, None) if raw.flag("use_sliding_window", False) else {}),
    )


def _deepseek_v2(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults({"num_key_value_heads": raw.get("num_attention_heads"), "q_lora_rank": 1536})
    latent = LatentConfig(
        rank=raw.count("kv_lora_rank", 512),
        rope_dim=raw.count("qk_rope_head_dim", 64),
        nope_dim=raw.count("qk_nope_head_dim", 128),
        value_dim=raw.count("v_head_dim", 128),
        query_rank=raw.optional_count("q_lora_rank"),
    )
    rope = read_rope(raw, rotary_dim=latent.rope_dim)
    head_dim = latent.nope_dim + latent.rope_dim
    bias = raw.flag("attention_bias", False)
    return _common(
        raw,
        head_dim=head_dim,
        **rope_fields(rope),
        attention_scale=rope.attention_factor / math.sqrt(head_dim),
        latent=latent,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=raw.flag("mlp_bias", False),
        **_deepseek_experts(raw),
    )


def _deepseek_experts(raw: Keys) -> dict[str, Any]:
    method, scoring = raw.text("topk_method", "greedy"), raw.text("scoring_func", "softmax")
    if method not in ("greedy", "group_limited_greedy") or scoring != "softmax" or raw.flag("norm_topk_prob", False):
        raise UnsupportedArchitecture(
            f"config.json: experts chosen by {method} of {scoring} (norm_topk_prob {raw.get('norm_topk_prob')}); "
            "greedy or group_limited_greedy of softmax, not normalised, is supported"
        )
    inner = raw.count("moe_intermediate_size", 1407)
    grouped = method == "group_limited_greedy"
    n_dense = raw.whole("first_k_dense_replace", 0)
    return {
        "experts": ExpertsConfig(
            n_experts=raw.count("n_routed_experts", 64),
            n_active=raw.count("num_experts_per_tok"),
            intermediate_size=inner,
            normalize=False,
            scale=raw.positive("routed_scaling_factor", 1.0),
            shared_size=inner * raw.whole("n_shared_experts", 2),
            n_groups=raw.count("n_group") if grouped else 1,
            n_active_groups=raw.count("topk_group") if grouped else 1,
        ),
        "expert_layers": tuple(i >= n_dense for i in range(_n_layers(raw))),
    }


_GPT_OSS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
}
_GPT_OSS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _gpt_oss(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(_GPT_OSS)
    if raw.get("rope_parameters") is None and raw.get("rope_scaling") is None:
        raw = raw.with_defaults({"rope_parameters": _GPT_OSS_ROPE})
    if raw.positive("swiglu_alpha", 1.702) != 1.702:
        raise UnsupportedArchitecture(f"config.json: swiglu_alpha is {raw.get('swiglu_alpha')!r}; 1.702 is supported")
    bias = raw.flag("attention_bias", True)
    kinds = _layer_types(raw)
    return _common(
        raw,
        theta=150_000.0,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=True,
        sinks=True,
        swiglu_limit=raw.positive("swiglu_limit", 7.0),
        experts=ExpertsConfig(
            n_experts=raw.count("num_local_experts", raw.get("num_experts") or 128),
            n_active=raw.count("num_experts_per_tok", 4),
            intermediate_size=raw.count("intermediate_size"),
            normalize=True,
            router_bias=True,
        ),
        **_windows(raw, kinds or [FULL if i % 2 else SLIDING for i in range(_n_layers(raw))]),
    )


_FAMILIES: dict[str, Callable[[Keys], ModelConfig]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "phi3": _phi3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek_v2,
    "gpt_oss": _gpt_oss,
}
MODEL_TYPES = tuple(_FAMILIES)
