"""A small config.json of every family, as Hugging Face writes them: for tests of readers and of sizes."""

from typing import Any

SMALL: dict[str, Any] = {
    "num_hidden_layers": 7,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_size": 48,
    "intermediate_size": 100,
    "vocab_size": 321,
    "max_position_embeddings": 256,
}
GEMMA = {"head_dim": 20, "sliding_window": 16, "query_pre_attn_scalar": 20, "tie_word_embeddings": True}
GPT = {"n_embd": 48, "n_head": 6, "n_layer": 7, "n_positions": 256, "vocab_size": 321}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "mistral": {"model_type": "mistral", "sliding_window": 16, "head_dim": 10},
    "qwen2": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "smollm3": {"model_type": "smollm3"},
    "gemma2": {"model_type": "gemma2"} | GEMMA,
    "gemma3": {"model_type": "gemma3_text"} | GEMMA,
    "gpt2": {"model_type": "gpt2"} | GPT,
    "phi3": {"model_type": "phi3", "sliding_window": 16, "rope_scaling": None},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3-moe": {"model_type": "qwen3_moe", "head_dim": 16, "num_experts": 5, "mlp_only_layers": [1]} | EXPERTS,
    "gpt-oss": {"model_type": "gpt_oss", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        "q_lora_rank": None,
        "kv_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 10,
        "v_head_dim": 12,
        "num_key_value_heads": 6,
        "n_routed_experts": 5,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
    }
    | EXPERTS,
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "q_lora_rank": 14,
        "num_key_value_heads": 6,
        "first_k_dense_replace": 1,
    }
    | {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 12}
    | {"n_routed_experts": 6, "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 0}
    | EXPERTS,
    "ministral": {"model_type": "ministral", "sliding_window": 16},
    "arcee": {"model_type": "arcee"},
    "seed-oss": {"model_type": "seed_oss", "head_dim": 10},
    "ernie": {"model_type": "ernie4_5", "head_dim": 10},
    "gemma": {"model_type": "gemma", "head_dim": 20},
    "olmo2": {"model_type": "olmo2"},
    "olmo3": {"model_type": "olmo3", "sliding_window": 16},
    "granite": {"model_type": "granite", "residual_multiplier": 0.5},
    "stablelm": {"model_type": "stablelm", "use_parallel_residual": True, "qk_layernorm": True},
    "starcoder2": {"model_type": "starcoder2", "sliding_window": None},
    "cohere": {"model_type": "cohere", "use_qk_norm": True},
    "cohere2": {"model_type": "cohere2", "sliding_window": 16, "head_dim": 8},
    "glm4": {"model_type": "glm4", "head_dim": 8},
    "exaone4": {"model_type": "exaone4", "sliding_window": 16},
    "phi": {"model_type": "phi"},
    "falcon": {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 100},
    "gpt-neox": {"model_type": "gpt_neox", "num_key_value_heads": 6},
    "nanochat": {"model_type": "nanochat"},
    "qwen2-moe": {"model_type": "qwen2_moe", "num_experts": 5, "shared_expert_intermediate_size": 14} | EXPERTS,
    "gpt-neo": {"model_type": "gpt_neo", "num_layers": 7, "num_heads": 6, "num_key_value_heads": 6, "window_size": 16}
    | {"attention_types": [[["global"], 7]]},
    "gpt-bigcode": {
        "model_type": "gpt_bigcode",
        "n_embd": 48,
        "n_head": 6,
        "n_layer": 7,
        "n_positions": 256,
        "vocab_size": 321,
    },
    "gptj": {
        "model_type": "gptj",
        "n_embd": 48,
        "n_head": 6,
        "n_layer": 7,
        "n_positions": 256,
        "rotary_dim": 4,
        "vocab_size": 321,
    },
    "nemotron": {"model_type": "nemotron"},
    "olmo": {"model_type": "olmo"},
    "olmoe": {"model_type": "olmoe", "num_experts": 5, "num_experts_per_tok": 2},
    "helium": {"model_type": "helium", "head_dim": 8},
    "cwm": {"model_type": "cwm", "head_dim": 10, "sliding_window": 16, "rms_norm_eps": 1e-5}
    | {"layer_types": ["full_attention", "sliding_attention"] * 4},
    "glm4-moe": {"model_type": "glm4_moe", "head_dim": 8, "n_routed_experts": 5, "num_nextn_predict_layers": 0}
    | EXPERTS,
    "dots1": {"model_type": "dots1", "head_dim": 8, "n_routed_experts": 5, "n_shared_experts": 1, "layer_types": None}
    | {"sliding_window": None, "first_k_dense_replace": 1}
    | EXPERTS,
    "bloom": {
        "model_type": "bloom",
        "n_layer": 7,
        "n_head": 6,
        "hidden_size": 48,
        "seq_length": 256,
        "vocab_size": 321,
    },
    "mpt": {"model_type": "mpt", "d_model": 48, "n_heads": 6, "n_layers": 7, "max_seq_len": 256, "vocab_size": 321},
    "lfm2": {"model_type": "lfm2", "full_attn_idxs": [2, 5], "block_multiple_of": 8},
    "qwen3-next": {"model_type": "qwen3_next", "head_dim": 16, "num_experts": 5, "shared_expert_intermediate_size": 14}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5}
    | EXPERTS,
}
FAMILIES |= {
    "qwen3.5": {"model_type": "qwen3_5_text", "head_dim": 16}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5},
    "qwen3.5-moe": {"model_type": "qwen3_5_moe_text", "head_dim": 16, "num_experts": 5}
    | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 5}
    | {"shared_expert_intermediate_size": 14}
    | EXPERTS,
    "granite-moe": {"model_type": "granitemoe", "num_local_experts": 5},
    "granite-moe-shared": {"model_type": "granitemoeshared", "num_local_experts": 5, "shared_intermediate_size": 14},
    "ernie-moe": {"model_type": "ernie4_5_moe", "moe_k": 2, "moe_num_experts": 5, "moe_intermediate_size": 12},
    "hunyuan": {"model_type": "hunyuan_v1_dense", "head_dim": 10},
    "ministral3": {"model_type": "ministral3", "head_dim": 10},
    "lfm2-moe": {"model_type": "lfm2_moe", "num_experts": 5, "layer_types": ["conv", "full_attention"] * 4} | EXPERTS,
    "glm4-moe-lite": {"model_type": "glm4_moe_lite", "q_lora_rank": 14, "num_key_value_heads": 6}
    | {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 10, "v_head_dim": 12}
    | {"n_routed_experts": 5, "n_shared_experts": 1, "num_nextn_predict_layers": 0}
    | EXPERTS,
    "minimax-m2": {"model_type": "minimax_m2", "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 12}
    | {"rotary_dim": 6},
    "hunyuan-moe": {"model_type": "hunyuan_v1_moe", "num_experts": 5, "moe_topk": 2, "head_dim": 10},
    "bitnet": {"model_type": "bitnet"},
    "apertus": {"model_type": "apertus"},
    "phimoe": {"model_type": "phimoe", "num_local_experts": 5, "attention_bias": True, "lm_head_bias": True},
    "falcon-alibi": {"model_type": "falcon", "alibi": True, "ffn_hidden_size": 100},
}


def document(family: str) -> dict[str, Any]:
    """The config.json of one family; GPT-2 and its like have keys of their own."""
    own_keys = ("gpt2", "gptj", "gpt-bigcode", "bloom", "mpt")
    return FAMILIES[family] if family in own_keys else SMALL | FAMILIES[family]
