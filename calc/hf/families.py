"""What the fields of a config do not say: biases, norms and class defaults of each model_type.

Read off ``modeling_*.py`` and ``configuration_*.py`` of transformers 5.23, and held against its classes built on
the meta device in the tests. A bias is True, False, or the config's key that decides with the class default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Bias = bool | tuple[str, bool]

ATTENTION_BIAS: Bias = ("attention_bias", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Defaults are those of a Llama: RMSNorm, gated MLP, no bias, nothing tied.

    `norm`: "rms" (a weight), "layer" (weight and bias), "layer_weight" (a LayerNorm without bias), "none" (neither).
    `norms`: how many of hidden_size a layer has. `qk_norm`: "" none, "head" one of head_dim for Q and one for K,
    "full" over all heads, "each" a weight for each head; `qk_key` is the flag that decides where there is one.
    `window`: "" as the fields say, "all" (every layer where a window is given), "upper" (use_sliding_window and
    max_window_layers), "every:N" (each Nth layer is full). `positions`: rows of the learned table beyond the context,
    None for no table; `default_positions` is the context that the class assumes. `extra_params` and
    `extra_head_dims` (times head_dim) are small parameters of every layer, `sparse_norms` further norms of a
    layer with experts. `gated_attention`: the query projection is twice as wide; `separate_gate`: a matrix of its own.
    """

    norm: str = "rms"
    norms: int = 2
    qk_norm: str = ""
    qk_key: tuple[str, bool] | None = None
    gated: bool = True
    qkv_bias: Bias = False
    o_bias: Bias = False
    mlp_bias: Bias = False
    head_bias: Bias = False
    expert_bias: bool = False
    tied: bool = False
    positions: int | None = None
    default_positions: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None
    window: str = ""
    default_window: int | None = None
    wide_inner: bool = False
    embedding_norm: bool = False
    sinks: bool = False
    gated_attention: bool = False
    separate_gate: bool = False
    shared_gate: bool = False
    router_bias: bool = False
    final_norm: bool = True
    extra_params: int = 0
    extra_head_dims: int = 0
    sparse_norms: int = 0
    known: bool = True


LLAMA = Family()
BIASED_ATTENTION = Family(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS)
QWEN2 = Family(qkv_bias=True, window="upper", default_window=4096)
QWEN3 = replace(BIASED_ATTENTION, qk_norm="head", window="upper", head_dim=128, default_window=4096)
MISTRAL = Family(window="all", n_kv_heads=8, default_window=4096)
DEEPSEEK = Family(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS)
GEMMA = Family(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, tied=True, head_dim=256)
GEMMA3 = replace(GEMMA, norms=4, qk_norm="head", window="every:6", default_window=4096)
GLM = Family(qkv_bias=ATTENTION_BIAS, head_dim=128)
NEOX = Family(
    norm="layer", gated=False, qkv_bias=("attention_bias", True), o_bias=("attention_bias", True), mlp_bias=True
)
GPT = Family(norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True, tied=True, wide_inner=True)

FAMILIES: Mapping[str, Family] = {
    "llama": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False)),
    "mistral": MISTRAL,
    "ministral": replace(MISTRAL, window=""),
    "ministral3": replace(MISTRAL, default_window=None),
    "mixtral": replace(MISTRAL, default_window=None),
    "qwen2": QWEN2,
    "qwen2_moe": replace(QWEN2, shared_gate=True, qkv_bias=("qkv_bias", True)),
    "qwen3": QWEN3,
    "qwen3_moe": replace(QWEN3, head_dim=None),
    "qwen3_next": Family(
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        qk_norm="head",
        head_dim=256,
        gated_attention=True,
        shared_gate=True,
    ),
    "qwen3_5": Family(
        qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, qk_norm="head", head_dim=256, gated_attention=True
    ),
    "qwen3_5_moe": Family(
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        qk_norm="head",
        head_dim=256,
        gated_attention=True,
        shared_gate=True,
    ),
    "mimo": replace(QWEN2, head_dim=None),
    "gemma": GEMMA,
    "gemma2": replace(GEMMA, norms=4, window="every:2", default_window=4096),
    "gemma3": GEMMA3,
    "gemma4": replace(GEMMA3, default_window=512),
    "gemma4_unified": replace(GEMMA3, n_kv_heads=4, default_window=1024),
    "vaultgemma": replace(GEMMA, norms=2, window="every:2", default_window=4096),
    "phi": Family(
        norm="layer",
        norms=1,
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
        qk_key=("qk_layernorm", False),
        qk_norm="head",
    ),
    "phi3": Family(window="all"),
    "phimoe": Family(
        norm="layer",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        head_bias=("lm_head_bias", False),
        window="all",
    ),
    "starcoder2": Family(
        norm="layer",
        gated=False,
        qkv_bias=("use_bias", True),
        o_bias=("use_bias", True),
        mlp_bias=("use_bias", True),
        tied=True,
        window="all",
        n_kv_heads=2,
    ),
    "stablelm": Family(norm="layer", qkv_bias=("use_qkv_bias", False)),
    "cohere": Family(
        norm="layer_weight",
        norms=1,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        tied=True,
        qk_norm="each",
        qk_key=("use_qk_norm", False),
    ),
    "cohere2": Family(
        norm="layer_weight",
        norms=1,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        tied=True,
        window="every:4",
        head_dim=128,
        default_window=4096,
    ),
    "olmo": Family(norm="none", qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS),
    "olmo2": replace(BIASED_ATTENTION, qk_norm="full"),
    "olmo3": replace(BIASED_ATTENTION, qk_norm="full", window="every:4", default_window=4096),
    "olmoe": replace(BIASED_ATTENTION, qk_norm="full"),
    "flex_olmo": replace(BIASED_ATTENTION, qk_norm="full"),
    "internlm2": Family(qkv_bias=("bias", True), o_bias=("bias", True)),
    "internlm3": Family(qkv_bias=("qkv_bias", False), o_bias=("bias", False), mlp_bias=("bias", False)),
    "exaone": Family(),
    "exaone4": Family(qk_norm="head", window="every:4", default_window=4096),
    "exaone_moe": Family(qk_norm="head", window="every:4", default_window=4096),
    "glm": GLM,
    "glm4": replace(GLM, norms=4),
    "glm4_moe": Family(qkv_bias=ATTENTION_BIAS, qk_norm="head", qk_key=("use_qk_norm", False)),
    "granite": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False)),
    "granite_swa": replace(BIASED_ATTENTION, sinks=True, mlp_bias=("mlp_bias", False)),
    "granitemoe": BIASED_ATTENTION,
    "granitemoe_swa": replace(BIASED_ATTENTION, sinks=True),
    "granitemoeshared": BIASED_ATTENTION,
    "granitemoehybrid": BIASED_ATTENTION,
    "gpt_oss": Family(
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        sinks=True,
        router_bias=True,
        expert_bias=True,
        window="every:2",
        default_window=128,
        head_dim=64,
        n_kv_heads=8,
    ),
    "llama4": replace(BIASED_ATTENTION, head_dim=128),
    "deepseek_v2": replace(DEEPSEEK, mlp_bias=("mlp_bias", False)),
    "deepseek_v3": DEEPSEEK,
    "deepseek_v32": DEEPSEEK,
    "glm_moe_dsa": DEEPSEEK,
    "glm4_moe_lite": DEEPSEEK,
    "kimi_k2": DEEPSEEK,
    "minicpm3": replace(DEEPSEEK, mlp_bias=("mlp_bias", False)),
    "axk1": replace(DEEPSEEK, sparse_norms=1),
    "youtu": DEEPSEEK,
    "dots1": Family(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, qk_norm="head"),
    "jamba": Family(n_kv_heads=8),
    "nemotron_h": Family(gated=False, mlp_bias=("mlp_bias", False)),
    "nemotron": Family(
        norm="layer", gated=False, qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, mlp_bias=("mlp_bias", False)
    ),
    "bamba": Family(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, mlp_bias=("mlp_bias", False), n_kv_heads=8),
    "lfm2": Family(qk_norm="head", tied=True, n_kv_heads=8),
    "lfm2_moe": Family(qk_norm="head", tied=True, n_kv_heads=8),
    "falcon_h1": Family(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS, mlp_bias=("mlp_bias", False), n_kv_heads=8),
    "gpt_neox": NEOX,
    "gptj": Family(norm="layer", norms=1, gated=False, mlp_bias=True, head_bias=True, wide_inner=True),
    "codegen": Family(norm="layer", norms=1, gated=False, mlp_bias=True, head_bias=True, wide_inner=True),
    "gpt2": replace(GPT, positions=0, default_positions=1024),
    "gpt-sw3": replace(GPT, positions=0, default_positions=1024),
    "gpt_neo": replace(GPT, positions=0, default_positions=2048, qkv_bias=False),
    "gpt_bigcode": replace(GPT, positions=0, default_positions=1024),
    "bloom": replace(GPT, embedding_norm=True),
    "biogpt": replace(GPT, positions=2),
    "opt": Family(
        norm="layer",
        gated=False,
        qkv_bias=("enable_bias", True),
        o_bias=("enable_bias", True),
        mlp_bias=("enable_bias", True),
        tied=True,
        positions=2,
    ),
    "mpt": Family(norm="layer_weight", gated=False, tied=True),
    "falcon": Family(
        norm="layer",
        gated=False,
        qkv_bias=("bias", False),
        o_bias=("bias", False),
        mlp_bias=("bias", False),
        tied=True,
        wide_inner=True,
    ),
    "persimmon": Family(
        norm="layer",
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        qk_norm="head",
        qk_key=("qk_layernorm", True),
    ),
    "smollm3": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False), n_kv_heads=4, window="upper"),
    "arcee": replace(BIASED_ATTENTION, gated=False, mlp_bias=("mlp_bias", False)),
    "apertus": replace(BIASED_ATTENTION, gated=False, qk_norm="head", extra_params=2),
    "helium": Family(qkv_bias=ATTENTION_BIAS, mlp_bias=("mlp_bias", False), n_kv_heads=20, head_dim=128),
    "seed_oss": Family(
        qkv_bias=("attention_bias", True),
        o_bias=("attention_out_bias", False),
        mlp_bias=("mlp_bias", False),
        head_dim=128,
    ),
    "ernie4_5": Family(
        qkv_bias=("use_bias", False), o_bias=("use_bias", False), mlp_bias=("use_bias", False), tied=True, head_dim=128
    ),
    "ernie4_5_moe": Family(
        qkv_bias=("use_bias", False),
        o_bias=("use_bias", False),
        mlp_bias=("use_bias", False),
        head_bias=("use_bias", False),
        tied=True,
        router_bias=True,
    ),
    "hunyuan_v1_dense": replace(BIASED_ATTENTION, qk_norm="head"),
    "hunyuan_v1_moe": replace(BIASED_ATTENTION, qk_norm="head"),
    "hyperclovax": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False)),
    "bitnet": BIASED_ATTENTION,
    "doge": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False), qk_norm="head", window="all"),
    "jais2": Family(
        norm="layer",
        gated=False,
        qkv_bias=("attention_bias", True),
        o_bias=("attention_bias", True),
        mlp_bias=("mlp_bias", True),
    ),
    "gpt_neox_japanese": Family(norm="layer", gated=False, tied=True, wide_inner=True),
    "gemma3n": replace(GEMMA3, window="every:5", default_window=512),
    "mllama": LLAMA,
    "openelm": replace(LLAMA, tied=True),
    "phi3small": Family(norm="layer", qkv_bias=True, o_bias=True, mlp_bias=True, tied=True),
    "xglm": Family(norm="layer", gated=False, qkv_bias=True, o_bias=True, mlp_bias=True, tied=True),
    "openai-gpt": replace(GPT, positions=0, default_positions=512, final_norm=False),
    "skywork": LLAMA,
    "diffllama": replace(BIASED_ATTENTION, extra_head_dims=4),
    "flint": replace(BIASED_ATTENTION, sinks=True, qk_norm="head"),
    "hy_v3": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False), qk_norm="head"),
    "mellum": replace(BIASED_ATTENTION, qk_norm="head"),
    "nanochat": replace(BIASED_ATTENTION, norm="none", gated=False),
    "cohere2_moe": Family(
        norm="layer_weight",
        norms=1,
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        tied=True,
        window="every:4",
        head_dim=128,
        default_window=4096,
    ),
    "afmoe": replace(BIASED_ATTENTION, norms=4, qk_norm="head", separate_gate=True, router_bias=True, window="every:4"),
    "aria_text": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False)),
    "dbrx": Family(norm="layer_weight"),
    "nemotron-nas": replace(BIASED_ATTENTION, mlp_bias=("mlp_bias", False)),
    "chatglm": Family(
        qkv_bias=("add_qkv_bias", False), o_bias=("add_bias_linear", False), mlp_bias=("add_bias_linear", False)
    ),
    "qwen": Family(qkv_bias=True),
    "internlm": Family(qkv_bias=("bias", True), o_bias=("bias", True)),
    "orion": Family(norm="layer"),
    "xverse": Family(),
    "deepseek": BIASED_ATTENTION,
    "baichuan": Family(),
    "minicpm": Family(tied=True),
    "yi": Family(),
    "aquila": Family(),
    "solar_open": Family(qkv_bias=ATTENTION_BIAS, qk_norm="head", qk_key=("use_qk_norm", False)),
    "minimax_m2": Family(qk_norm="full", qk_key=("use_qk_norm", True)),
    "mimo_v2_flash": Family(qkv_bias=ATTENTION_BIAS),
    "mamba": Family(tied=True),
    "falcon_mamba": Family(tied=True),
    "mamba2": Family(),
    "zamba": Family(tied=True),
    "zamba2": Family(tied=True),
    "recurrent_gemma": Family(tied=True),
    "kimi_linear": DEEPSEEK,
    "bailing_hybrid": DEEPSEEK,
    "bailing_moe": Family(
        qkv_bias=("use_qkv_bias", False), o_bias=("use_bias", False), qk_norm="head", qk_key=("use_qk_norm", False)
    ),
    "olmo_hybrid": replace(BIASED_ATTENTION, qk_norm="full"),
    "minimax": Family(),
    "minimax_text_01": Family(),
    "minimax_m1": Family(),
    "minimax_m3_vl_text": Family(qk_norm="head"),
    "longcat_flash": DEEPSEEK,
    "laguna": replace(BIASED_ATTENTION, qk_norm="head", router_bias=True),
    "lfm3": replace(BIASED_ATTENTION, qk_norm="head", tied=True),
    "hy_v4": DEEPSEEK,
    "axk2": DEEPSEEK,
    "kolibri1": replace(BIASED_ATTENTION, norms=4, qk_norm="head"),
}

CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ministral3": {"head_dim": 128},
    "qwen2": {"n_kv_heads": 32},
    "qwen2_moe": {"n_kv_heads": 16},
    "qwen3": {"n_kv_heads": 32},
    "qwen3_moe": {"n_kv_heads": 4},
    "qwen3_next": {"n_kv_heads": 2},
    "qwen3_5": {"n_kv_heads": 4},
    "qwen3_5_moe": {"n_kv_heads": 2},
    "gemma": {"n_kv_heads": 16},
    "gemma2": {"n_kv_heads": 4},
    "gemma3": {"n_kv_heads": 4},
    "gemma4": {"n_kv_heads": 4},
    "vaultgemma": {"n_kv_heads": 4},
    "phimoe": {"n_kv_heads": 8},
    "stablelm": {"n_kv_heads": 32},
    "internlm3": {"n_kv_heads": 2, "head_dim": 128},
    "exaone4": {"n_kv_heads": 32, "tied": False},
    "exaone_moe": {"n_kv_heads": 32},
    "glm": {"n_kv_heads": 2},
    "glm4": {"n_kv_heads": 2},
    "glm4_moe": {"n_kv_heads": 8},
    "granite_swa": {"n_kv_heads": 4, "tied": True, "default_window": 128},
    "granitemoe_swa": {"default_window": 128},
    "llama4": {"n_kv_heads": 8},
    "deepseek_v3": {"n_kv_heads": 128},
    "deepseek_v32": {"n_kv_heads": 128},
    "glm_moe_dsa": {"n_kv_heads": 64},
    "glm4_moe_lite": {"n_kv_heads": 20},
    "minicpm3": {"n_kv_heads": 40, "tied": True},
    "axk1": {"n_kv_heads": 64},
    "youtu": {"n_kv_heads": 16, "tied": True},
    "dots1": {"n_kv_heads": 32},
    "nemotron_h": {"n_kv_heads": 8, "head_dim": 128},
    "smollm3": {"tied": True},
    "seed_oss": {"n_kv_heads": 8},
    "ernie4_5": {"n_kv_heads": 2},
    "ernie4_5_moe": {"n_kv_heads": 4},
    "flint": {"n_kv_heads": 4, "head_dim": 128, "default_window": 513},
    "hy_v3": {"n_kv_heads": 8, "head_dim": 128},
    "mellum": {"n_kv_heads": 4, "head_dim": 128, "default_window": 1024},
    "afmoe": {"head_dim": 128, "default_window": 1024},
    "solar_open": {"n_kv_heads": 8, "head_dim": 128},
    "minimax_m2": {"n_kv_heads": 8, "head_dim": 128},
}
"""What a class takes where the config does not say it, beside what the table above says."""

SAME_AS: Mapping[str, str] = {
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "llama4_text": "llama4",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen3_vl_text": "qwen3",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_5_text": "qwen3_5",
    "qwen3_5_moe_text": "qwen3_5_moe",
    "qwen3_omni_moe_text": "qwen3_moe",
    "qwen2_5_omni_text": "qwen2",
    "glm4v_text": "glm4",
    "glm4v_moe_text": "glm4_moe",
    "deepseek_r1": "deepseek_v3",
    "bailing_moe_v2": "bailing_moe",
    "deci": "nemotron-nas",
    "stablelm_epoch": "stablelm",
    "RefinedWeb": "falcon",
    "RefinedWebModel": "falcon",
    "gemma4_unified_text": "gemma4_unified",
    "kimi_k25": "kimi_k2",
    "mistral3": "mistral",
    "ernie4_5_vl_moe_text": "ernie4_5_moe",
    "cohere2_vision": "cohere2",
    "gemma3n_text": "gemma3n",
    "mllama_text_model": "mllama",
    "exaone4_5_text": "exaone4",
    "Yi": "yi",
    "InternLM": "internlm",
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "phi3_v": "phi3",
    "phi4mm": "phi3",
    "phi4_multimodal": "phi3",
    "gpt2_lm": "gpt2",
    "iquestcoder": "llama",
    "dots_ocr": "qwen2",
}


def family_of(model_type: str) -> Family | None:
    """What is known of a model_type beside its fields; None where nothing is."""
    name = SAME_AS.get(model_type, model_type)
    family = FAMILIES.get(name)
    return None if family is None else replace(family, **CLASS_DEFAULTS.get(name, {}))
