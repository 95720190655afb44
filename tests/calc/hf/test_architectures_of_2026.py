"""Types of 2026 by published configs: totals by hand from the modelling code, or of transformers' classes."""

import pytest

from calc.hf import spec_from_config
from calc.model.cache import cache_elements, index_elements, state_elements
from calc.model.count import model_tensors, parameters
from calc.model.layers import layers_document, layers_from_document


def read(config):
    """The model, whose tensors, formulas and document say the same."""
    spec = spec_from_config(config, name="m", source="m")
    assert sum(tensor.params for tensor in model_tensors(spec)) == parameters(spec).total
    assert layers_from_document(layers_document(spec.layers)) == spec.layers
    return spec


FULL_K3 = [*range(4, 93, 4), 93]
KIMI_K3 = {
    "model_type": "kimi_k3",
    "text_config": {
        "model_type": "kimi_linear", "hidden_size": 7168, "intermediate_size": 33792, "num_hidden_layers": 93,
        "num_attention_heads": 96, "num_key_value_heads": 96, "vocab_size": 163840, "tie_word_embeddings": False,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "first_k_dense_replace": 1, "moe_layer_freq": 1, "moe_intermediate_size": 3072, "num_experts": 896,
        "num_experts_per_token": 16, "num_shared_experts": 2, "routed_expert_hidden_size": 3584,
        "latent_moe_use_norm": True, "mla_use_output_gate": True, "attn_res_block_size": 12,
        "linear_attn_config": {
            "full_attn_layers": FULL_K3, "kda_layers": [i for i in range(1, 93) if i not in FULL_K3],
            "head_dim": 128, "num_heads": 96, "short_conv_kernel_size": 4, "use_full_rank_gate": True,
        },
    },
}  # fmt: skip


class TestKimiK3:
    """modeling_kimi_linear.py as published with Kimi K3: experts of a smaller width, gates that are whole."""

    def test_parameters(self):
        """By hand; public: 2.8 T, 104 B active."""
        h, inner = 7168, 96 * 128
        delta = 4 * h * inner + 3 * inner * 4 + 128 * (h + inner) + h * inner + h * 96 + inner + 96 + 128
        latent = 1536 * (h + 96 * 192 + 1) + h * 576 + 512 + 512 * 96 * 256 + 2 * 96 * 128 * h
        experts = 896 * 3 * 3584 * 3072 + 3 * h * 6144 + 896 * (h + 1) + 2 * h * 3584 + 3584
        total = 2 * 163_840 * h + h + 69 * delta + 24 * latent + 92 * experts + 3 * h * 33_792 + 93 * 2 * h
        found = parameters(read(KIMI_K3))
        assert found.total == total == 2_779_481_795_168
        assert found.active == total - 92 * 880 * 3 * 3584 * 3072 == 105_361_336_928

    def test_cache(self):
        spec = read(KIMI_K3)
        assert cache_elements(spec).latent == 24 * 576 == 13_824
        assert state_elements(spec) == 69 * (96 * 128 * 128 + 3 * 96 * 128 * 4)

    def test_stored_as_published(self):
        """MXFP4 experts, 17 bytes for 32; the rest in 2 bytes. Public: 1.56 TB on disk."""
        group = {"targets": ["Linear"], "format": "mxfp4-pack-quantized"}
        group["weights"] = {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group", "symmetric": True}
        ignored = ["re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*"]
        quantized = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
        quantized |= {"config_groups": {"group_0": group}, "ignore": [*ignored, "re:.*lm_head.*"]}
        text = KIMI_K3["text_config"] | {"quantization_config": quantized}
        assert read(KIMI_K3 | {"text_config": text}).stored.total_bytes == 1_559_937_995_968

    def test_what_mixes_residuals_is_said(self):
        assert any("2,680,832 parameters" in note for note in read(KIMI_K3).notes)

    @pytest.mark.parametrize(
        ("key", "less"),
        [("mla_use_output_gate", 24 * 96 * 128 * 7168), ("latent_moe_use_norm", 92 * 3584)],
    )
    def test_each_flag(self, key, less):
        plain = KIMI_K3 | {"text_config": KIMI_K3["text_config"] | {key: False}}
        assert parameters(read(KIMI_K3)).total - parameters(read(plain)).total == less

    def test_gates_of_a_rank(self):
        own = KIMI_K3["text_config"]["linear_attn_config"] | {"use_full_rank_gate": False}
        plain = KIMI_K3 | {"text_config": KIMI_K3["text_config"] | {"linear_attn_config": own}}
        less = 69 * (7168 * 12_288 - 128 * (7168 + 12_288))
        assert parameters(read(KIMI_K3)).total - parameters(read(plain)).total == less


SPARSE = [0] * 3 + [1] * 57
MINIMAX_M3 = {
    "model_type": "minimax_m3_vl",
    "text_config": {
        "architectures": ["MiniMaxM3SparseForCausalLM"], "hidden_size": 6144, "intermediate_size": 3072,
        "num_hidden_layers": 60, "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128,
        "vocab_size": 200064, "rms_norm_eps": 1e-6, "use_qk_norm": True, "tie_word_embeddings": False,
        "dense_intermediate_size": 12288, "shared_intermediate_size": 3072, "num_local_experts": 128,
        "num_experts_per_tok": 4, "n_shared_experts": 1, "moe_layer_freq": SPARSE, "num_mtp_modules": 1,
        "sparse_attention_config": {
            "use_sparse_attention": True, "sparse_index_dim": 128, "sparse_num_index_heads": 4,
            "sparse_topk_blocks": 16, "sparse_block_size": 128, "sparse_attention_freq": SPARSE,
        },
    },
}  # fmt: skip


def test_minimax_m3():
    """MiniMaxM3VLForCausalLM of transformers 5.24 on the meta device; the indexer's key is kept beside the cache."""
    spec = read(MINIMAX_M3)
    assert parameters(spec).total == 426_174_565_632
    assert cache_elements(spec).full == 60 * 2 * 4 * 128
    assert index_elements(spec) == 57 * 128
