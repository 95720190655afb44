"""Tiny models of transformers' own classes with random weights, one or more of every family that the engine runs."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.model.shapes import CHOICE_BIAS

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
}
DEEPSEEK_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.5, "beta_fast": 8, "beta_slow": 2, "factor": 40.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1],
    "long_factor": [1.5, 4.0],
    "original_max_position_embeddings": 24,
    "partial_rotary_factor": 0.5,
}
GEMMA = {"head_dim": 10, "num_hidden_layers": 4, "sliding_window": 7, "query_pre_attn_scalar": 20}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
LATENT = {
    "kv_lora_rank": 12,
    "q_lora_rank": None,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "num_key_value_heads": 4,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 10,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 10}
OSS = {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 10, "sliding_window": 7, "num_hidden_layers": 3}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 1e4}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3, "head_dim": 16}),
    "llama-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama-yarn": ("Llama", {"rope_parameters": YARN, "head_dim": 16}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3}),
    "smollm2": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 6}),
    "mistral-full": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "num_key_value_heads": 1}),
    "qwen3-bias": ("Qwen3", {"head_dim": 6, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2-uncapped": ("Gemma2", GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3": ("Gemma3", GEMMA | {"rope_parameters": GEMMA3_ROPE, "sliding_window_pattern": 3}),
    "gpt2": ("GPT2", {}),
    "phi3": ("Phi3", {"sliding_window": 7}),
    "phi3-partial": ("Phi3", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3-moe": ("Qwen3Moe", EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3-moe-mixed": ("Qwen3Moe", EXPERTS | {"head_dim": 6, "mlp_only_layers": [0], "attention_bias": True}),
    "gpt-oss": ("GptOss", OSS),
    "gpt-oss-plain": ("GptOss", OSS | {"attention_bias": False, "rope_parameters": PLAIN_ROPE, "swiglu_limit": 0.5}),
    "deepseek-v2-lite": ("DeepseekV2", LATENT | {"rope_parameters": DEEPSEEK_YARN}),
    "deepseek-v2": (
        "DeepseekV2",
        LATENT
        | {"q_lora_rank": 14, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2}
        | {"routed_scaling_factor": 16.0, "attention_bias": True},
    ),
}
PARTLY = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
MINISTRAL = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 7, "head_dim": 10}
MODELS |= {
    "ministral": ("Ministral", MINISTRAL),
    "arcee": ("Arcee", {"mlp_bias": True}),
    "seed-oss": ("SeedOss", {"head_dim": 10, "attention_out_bias": True}),
    "ernie": ("Ernie4_5", {"head_dim": 10, "use_bias": True}),
    "gemma": ("Gemma", {"head_dim": 10, "hidden_act": "gelu"}),
    "olmo2": ("Olmo2", {"attention_bias": True}),
    "olmo3": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 7}),
    "olmo3-yarn": ("Olmo3", {"sliding_window": 7, "rope_scaling": YARN | {"rope_theta": 5e5}, "num_hidden_layers": 4}),
    "granite": (
        "Granite",
        {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 0.5},
    ),
    "stablelm": ("StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "stablelm2": ("StableLm", PARTLY | {"qk_layernorm": True, "use_parallel_residual": True}),
    "starcoder2": ("Starcoder2", {"sliding_window": 7}),
    "cohere": ("Cohere", {"use_qk_norm": True, "logit_scale": 1.5}),
    "cohere-plain": ("Cohere", {"attention_bias": True, "logit_scale": 1.5}),
    "cohere2": ("Cohere2", {"sliding_window": 7, "num_hidden_layers": 5, "logit_scale": 1.5}),
    "glm": ("Glm", PARTLY | {"head_dim": 12, "eos_token_id": [2]}),
    "glm4": ("Glm4", PARTLY | {"head_dim": 12, "attention_bias": False, "eos_token_id": [2]}),
    "exaone4": ("Exaone4", {"sliding_window": 7, "num_hidden_layers": 5}),
    "exaone4-full": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "phi": ("Phi", {}),
    "falcon": ("Falcon", {"multi_query": True, "activation": "gelu"}),
    "falcon-grouped": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon-rows": ("Falcon", {"multi_query": False, "parallel_attn": False, "num_kv_heads": 4}),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.5, "hidden_act": "gelu"}),
    "gpt-neox-serial": ("GPTNeoX", {"use_parallel_residual": False, "attention_bias": False}),
    "nanochat": ("NanoChat", {}),
    "qwen2-moe": ("Qwen2Moe", EXPERTS | {"shared_expert_intermediate_size": 14, "mlp_only_layers": [1]}),
    "qwen2-moe-sliding": ("Qwen2Moe", EXPERTS | {"use_sliding_window": True, "sliding_window": 7, "qkv_bias": False}),
    "deepseek-v3": (
        "DeepseekV3",
        LATENT | {"q_lora_rank": 14, "n_group": 3, "topk_group": 2, "rope_parameters": DEEPSEEK_YARN},
    ),
    "deepseek-v3-plain": ("DeepseekV3", LATENT | {"n_group": 1, "topk_group": 1, "norm_topk_prob": False}),
    "lfm2": ("Lfm2", {"num_hidden_layers": 4, "full_attn_idxs": [2], "conv_bias": True, "block_multiple_of": 8}),
    "qwen3-next": (
        "Qwen3Next",
        EXPERTS
        | {"num_hidden_layers": 5, "head_dim": 16, "full_attention_interval": 2, "shared_expert_intermediate_size": 14}
        | {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 6,
            "linear_value_head_dim": 5,
        },
    ),
}
SIGMOID = {"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 10, "first_k_dense_replace": 1}
MODELS |= {
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}),
    "gpt-neo": ("GPTNeo", {"attention_types": [[["local", "global"], 1]], "window_size": 7}),
    "gpt-bigcode": ("GPTBigCode", {"n_inner": 48}),
    "gpt-bigcode-rows": ("GPTBigCode", {"multi_query": False}),
    "gptj": ("GPTJ", {"rotary_dim": 4, "n_inner": 48}),
    "nemotron": ("Nemotron", PARTLY | {"head_dim": 8}),
    "olmo": ("Olmo", {}),
    "olmoe": ("Olmoe", EXPERTS),
    "helium": ("Helium", {"head_dim": 8}),
    "cwm": ("Cwm", {"head_dim": 10, "sliding_window": 7, "rope_parameters": LLAMA3, "num_hidden_layers": 5}),
    "glm4-moe": ("Glm4Moe", SIGMOID | PARTLY | {"head_dim": 12, "use_qk_norm": True, "attention_bias": True}),
    "bloom": ("Bloom", {"n_head": 4, "seq_length": 96}),
    "bloom-six-heads": ("Bloom", {"hidden_size": 48, "num_attention_heads": 6, "seq_length": 96}),
    "mpt": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 96}),
    "mpt-six-heads": ("Mpt", {"hidden_size": 48, "num_attention_heads": 6, "max_seq_len": 96}),
    "dots1": ("Dots1", SIGMOID | {"n_shared_experts": 2, "n_group": 3, "topk_group": 2, "head_dim": 10}),
}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5}
DELTA |= {
    "num_hidden_layers": 5,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2 + ["linear_attention"],
}
GROWTH = {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 9, "mscale": 1.0, "mscale_all_dim": 1.0}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.2, "logits_scaling": 0.5}
ALPHA = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}}
ERNIE = {"moe_k": 2, "moe_num_experts": 6, "moe_num_shared_experts": 2, "moe_intermediate_size": 10}
MODELS |= {
    "qwen3.5": ("Qwen3_5Text", DELTA),
    "qwen3.5-moe": ("Qwen3_5MoeText", DELTA | EXPERTS | {"shared_expert_intermediate_size": 14}),
    "granite-moe": ("GraniteMoe", GRANITE | {"num_local_experts": 6, "num_experts_per_tok": 2}),
    "granite-moe-shared": ("GraniteMoeShared", GRANITE | {"num_local_experts": 6, "shared_intermediate_size": 14}),
    "ernie-moe": ("Ernie4_5_Moe", ERNIE | {"num_hidden_layers": 4, "moe_layer_end_index": 2}),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 10}),
    "hunyuan-alpha": ("HunYuanDenseV1", ALPHA | {"head_dim": 10, "attention_bias": True}),
    "ministral3": ("Ministral3", {"rope_parameters": YARN | GROWTH, "head_dim": 10}),
    "lfm2-moe": (
        "Lfm2Moe",
        EXPERTS
        | {"num_hidden_layers": 4, "num_dense_layers": 1, "tie_word_embeddings": False}
        | {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "routed_scaling_factor": 2.0},
    ),
    "glm4-moe-lite": ("Glm4MoeLite", LATENT | {"q_lora_rank": 14, "num_local_experts": 6, "rms_norm_eps": 1e-3}),
    "minimax-m2": ("MiniMaxM2", PARTLY | {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 12}),
    "hunyuan-moe": ("HunYuanMoEV1", {"num_experts": 6, "moe_topk": [2, 2], "head_dim": 10}),
    "bitnet": ("BitNet", {}),
    "apertus": ("Apertus", {"rope_parameters": LLAMA3, "attention_bias": True}),
    "phimoe": ("Phimoe", {"num_local_experts": 6, "router_jitter_noise": 0.2, "attention_bias": True}),
    "phimoe-head": ("Phimoe", {"num_local_experts": 6, "lm_head_bias": True, "sliding_window": 7}),
    "falcon-alibi": ("Falcon", {"alibi": True, "multi_query": True}),
    "falcon-alibi-serial": ("Falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
}


def model_class(kind: str) -> Any:
    """The class of transformers that continues text."""
    kind = kind.removesuffix("Text")
    return getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")


@contextlib.contextmanager
def dtype_by_default(dtype: torch.dtype) -> Iterator[None]:
    """What torch gives where nothing else is said, as where whole numbers are divided."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def make_random(kind: str, changes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Any:
    """A model of transformers with random weights, norms and biases too."""
    class_name = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{class_name}Config")(
        **(SIZES | changes),
        attn_implementation="eager" if kind in ("Gemma2", "GptOss", "GPTJ", "GPTNeo", "Bloom", "Mpt") else "sdpa",
        experts_implementation="eager",
    )
    with dtype_by_default(dtype):
        model = model_class(kind)(config).eval()
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.dim() == 1 else 1.5 / math.sqrt(parameter.shape[-1])
        torch.nn.init.normal_(parameter, 1.0 if "norm" in name or ".ln_" in name else 0.0, spread)
    for name, buffer in model.named_buffers():
        if name.endswith((CHOICE_BIAS, "expert_bias")):
            torch.nn.init.normal_(buffer, 0.0, 0.3)
    return model


def save_random(kind: str, changes: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """`make_random`, and its files in ``folder``."""
    model = make_random(kind, changes, dtype)
    model.save_pretrained(folder)
    return model
