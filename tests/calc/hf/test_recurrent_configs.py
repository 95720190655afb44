"""Recurrent and hybrid models as they were published: totals that their cards and checkpoints state.

The configs are those of the hub, cut down to the keys that count; the totals were counted with transformers 5.23's
classes on the meta device, and are those of the checkpoints' headers.
"""

import pytest

from calc.errors import SourceError
from calc.hf import spec_from_config
from calc.model.cache import cache_elements, state_elements
from calc.model.count import parameters

FULL = [4, 8, 12, 16, 20, 24, 27]
KIMI = {
    "model_type": "kimi_linear", "vocab_size": 163840, "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 27, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 72,
    "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1, "moe_intermediate_size": 1024,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "tie_word_embeddings": False,
    "linear_attn_config": {
        "full_attn_layers": FULL, "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
        "kda_layers": [i for i in range(1, 28) if i not in FULL],
    },
}  # fmt: skip
ZAMBA2 = {
    "model_type": "zamba2", "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 38,
    "layers_block_type": (["mamba"] * 5 + ["hybrid"]) * 6 + ["mamba"] * 2, "mamba_d_state": 64, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_ngroups": 1, "n_mamba_heads": 64, "intermediate_size": 8192, "num_attention_heads": 32,
    "num_key_value_heads": 32, "num_mem_blocks": 1, "use_shared_attention_adapter": True, "adapter_rank": 128,
    "add_bias_linear": False, "attention_head_dim": 128, "attention_hidden_size": 4096, "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}  # fmt: skip
RECURRENT_GEMMA = {
    "model_type": "recurrent_gemma", "vocab_size": 256000, "hidden_size": 2560, "num_hidden_layers": 26,
    "intermediate_size": 15360, "num_attention_heads": 10, "num_key_value_heads": 1, "lru_width": 2560,
    "attention_window_size": 2048, "conv1d_width": 4, "block_types": ["recurrent", "recurrent", "attention"],
}  # fmt: skip
FALCON_MAMBA = {
    "model_type": "falcon_mamba", "vocab_size": 65024, "hidden_size": 4096, "intermediate_size": 8192,
    "num_hidden_layers": 64, "state_size": 16, "conv_kernel": 4, "expand": 16, "time_step_rank": 256,
    "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
CODESTRAL = {
    "model_type": "mamba2", "vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64, "num_heads": 128,
    "head_dim": 64, "state_size": 128, "conv_kernel": 4, "expand": 2, "n_groups": 8, "use_bias": False,
    "use_conv_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
MAMBA_130M = {
    "model_type": "mamba", "vocab_size": 50280, "hidden_size": 768, "intermediate_size": 1536,
    "num_hidden_layers": 24, "state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": 48,
    "use_bias": False, "use_conv_bias": True,
}  # fmt: skip
LONGCAT = {
    "model_type": "longcat_flash", "vocab_size": 131072, "hidden_size": 6144, "num_layers": 28,
    "num_attention_heads": 64, "ffn_hidden_size": 12288, "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "moe_topk": 12, "n_routed_experts": 512,
    "zero_expert_num": 256, "expert_ffn_hidden_size": 2048, "attention_bias": False, "tie_word_embeddings": False,
}  # fmt: skip
MIMO = {
    "model_type": "mimo_v2_flash", "vocab_size": 152576, "hidden_size": 4096, "intermediate_size": 16384,
    "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128,
    "swa_num_attention_heads": 64, "swa_num_key_value_heads": 8, "swa_head_dim": 192, "swa_v_head_dim": 128,
    "sliding_window": 128, "sliding_window_size": 128, "add_swa_attention_sink_bias": True, "attention_bias": False,
    "hybrid_layer_pattern": [int(bool(i and (i + 1) % 6)) for i in range(48)], "n_routed_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "moe_layer_freq": [0] + [1] * 47,
    "n_shared_experts": None, "tie_word_embeddings": False,
}  # fmt: skip
LING_MINI = {
    "model_type": "bailing_moe", "vocab_size": 157184, "hidden_size": 2048, "intermediate_size": 5120,
    "num_hidden_layers": 20, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
    "num_experts": 256, "num_experts_per_tok": 8, "num_shared_experts": 1, "moe_intermediate_size": 512,
    "moe_shared_expert_intermediate_size": 512, "first_k_dense_replace": 1, "use_qk_norm": True, "use_bias": False,
    "use_qkv_bias": False, "moe_router_enable_expert_bias": True, "tie_word_embeddings": False,
}  # fmt: skip


def test_ling_mini_by_hand():
    """Its code is published with the weights: no class of transformers counts it."""
    model = spec_from_config(LING_MINI, name="ling", source="m")
    attention = 2048 * (16 + 4 + 4) * 128 + 16 * 128 * 2048 + 2 * 128
    expert = 3 * 2048 * 512
    sparse = 257 * expert + 256 * 2048
    layers = 20 * (attention + 2 * 2048) + 19 * sparse + 3 * 2048 * 5120
    assert parameters(model).total == layers + 2 * 157184 * 2048 + 2048 == 16_255_638_528
    assert parameters(model).active == 16_255_638_528 - 19 * 248 * expert
    assert cache_elements(model).full == 20 * 2 * 4 * 128


PUBLISHED = {
    # name: config, parameters, elements per token, state elements per sequence
    "Kimi-Linear-48B-A3B": (KIMI, 49_122_675_072, 7 * 576, 20 * 32 * (128 * 128 + 3 * 128 * 4)),
    "Zamba2-1.2B": (ZAMBA2, 1_205_078_912, 6 * 2 * 4096, 38 * (4096 * 64 + (4096 + 2 * 64) * 4)),
    "recurrentgemma-2b": (RECURRENT_GEMMA, 2_682_862_080, 8 * 2 * 256, 18 * 2560 * 4),
    "falcon-mamba-7b": (FALCON_MAMBA, 7_272_665_088, 0, 64 * 8192 * (16 + 4)),
    "Mamba-Codestral-7B": (CODESTRAL, 7_285_403_648, 0, 64 * (8192 * 128 + (8192 + 2 * 8 * 128) * 4)),
    "mamba-130m": (MAMBA_130M, 129_135_360, 0, 24 * 1536 * (16 + 4)),
    "LongCat-Flash": (LONGCAT, 560_664_958_976, 28 * 2 * 576, 0),
    "MiMo-V2-Flash": (MIMO, 308_778_768_832, 9 * 4 * 320 + 39 * 8 * 320, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published(name):
    config, total, token, state = PUBLISHED[name]
    model = spec_from_config(config, name=name, source=name)
    assert parameters(model).total == total
    assert (cache_elements(model).per_token, state_elements(model)) == (token, state)


def test_kimi_is_three_billion_active():
    model = spec_from_config(KIMI, name="kimi", source="m")
    idle = 26 * (256 - 8) * 3 * 2304 * 1024
    assert parameters(model).active == 49_122_675_072 - idle == 3_484_453_248


def test_mimo_slides_with_twice_the_heads():
    model = spec_from_config(MIMO, name="mimo", source="m")
    assert cache_elements(model).windowed == {129: 39 * 8 * 320}


def test_longcat_counts_attentions_not_layers_in_num_hidden_layers():
    config = {**LONGCAT, "num_hidden_layers": 56}
    del config["num_layers"]
    assert spec_from_config(config, name="l", source="m").n_layers == 28
    notes = spec_from_config(LONGCAT, name="l", source="m").notes
    assert any(note.startswith("256 of the experts are identities") for note in notes)


@pytest.mark.parametrize(
    ("config", "drop", "says"),
    [
        (KIMI, "linear_attn_config", "linear_attn_config missing"),
        (ZAMBA2, "layers_block_type", "layers_block_type missing"),
        (CODESTRAL, "num_hidden_layers", "num_hidden_layers missing"),
        (CODESTRAL, "hidden_size", "hidden_size missing"),
    ],
)
def test_what_is_missing_is_named(config, drop, says):
    rest = {key: value for key, value in config.items() if key != drop}
    with pytest.raises(SourceError, match=says):
        spec_from_config(rest, name="m", source="m")


def test_what_the_class_takes_is_noted():
    rest = {key: value for key, value in LONGCAT.items() if key != "kv_lora_rank"}
    notes = spec_from_config(rest, name="m", source="m").notes
    assert any(note.startswith("kv_lora_rank is not in the config: 512") for note in notes)
