"""Types of 2026 by published configs: totals by hand from the modelling code, or of transformers' classes."""

from typing import ClassVar

import pytest

from calc.errors import SourceError
from calc.hf import spec_from_config
from calc.model.cache import cache_elements, fp32_elements, index_elements, request_term, state_elements
from calc.model.count import model_tensors, parameters
from calc.model.layers import layers_document, layers_from_document
from calc.model.storage import FORMATS


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


RATIOS = [0, 0, *[4, 128] * 20, 4, 0]
V4_FLASH = {
    "model_type": "deepseek_v4", "hidden_size": 4096, "num_hidden_layers": 43, "num_attention_heads": 64,
    "num_key_value_heads": 1, "head_dim": 512, "qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_groups": 8,
    "o_lora_rank": 1024, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 6, "vocab_size": 129280, "hc_mult": 4, "hc_sinkhorn_iters": 20, "index_head_dim": 128,
    "index_n_heads": 64, "index_topk": 512, "num_hash_layers": 3, "sliding_window": 128, "compress_ratios": RATIOS,
    "num_nextn_predict_layers": 1, "max_position_embeddings": 1048576, "tie_word_embeddings": False,
    "attention_bias": False, "expert_dtype": "fp4",
}  # fmt: skip
V4_PRO = V4_FLASH | {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "n_routed_experts": 384,
    "q_lora_rank": 1536, "o_groups": 16, "moe_intermediate_size": 3072, "index_topk": 1024,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0],
}  # fmt: skip


class TestDeepseekV4:
    """Totals of DeepseekV4ForCausalLM of transformers 5.24 on the meta device; the cache by the reference model."""

    @pytest.mark.parametrize(("config", "total"), [(V4_FLASH, 284_332_230_231), (V4_PRO, 1_572_997_179_491)])
    def test_parameters(self, config, total):
        assert parameters(read(config)).total == total

    def test_cache(self):
        """43 windows of rows of 512; 21 layers with a row for 4 tokens and a key of 128, 20 with one for 128."""
        spec = read(V4_FLASH)
        kept = cache_elements(spec)
        assert (kept.full, kept.latent, kept.windowed) == (0, 21 * 128 + 20 * 4, {128: 43 * 512})
        assert index_elements(spec) == 21 * 32
        rows = 1024 // 4 * 21 + 1024 // 128 * 20 + 128 * 43
        assert request_term(spec, FORMATS["bf16"], 1024).value == 2 * 512 * rows

    def test_what_a_request_keeps_whatever_its_length(self):
        """fp32 values and weights of two groups of 4 tokens, twice as wide, with the indexer's; of 128 tokens."""
        waiting = 21 * 8 * 2 * 2 * (512 + 128) + 20 * 128 * 2 * 512
        spec = read(V4_FLASH)
        assert fp32_elements(spec) == waiting == 3_051_520
        assert state_elements(spec) == 0

    def test_layer_types_say_the_same(self):
        types = ["sliding_attention"] * 2
        types += ["compressed_sparse_attention", "heavily_compressed_attention"] * 20 + ["compressed_sparse_attention"]
        plain = {k: v for k, v in V4_FLASH.items() if k != "compress_ratios"}
        assert read(plain | {"layer_types": types}).layers == read(V4_FLASH).layers
        rates = {"compressed_sparse_attention": 8, "heavily_compressed_attention": 64}
        other = read(plain | {"layer_types": types, "compress_rates": rates})
        assert cache_elements(other).latent == 21 * 64 + 20 * 8

    def test_experts_in_fp4(self):
        """MXFP4 experts, 17 bytes for 32; matrices in fp8 with a scale byte per block; the rest in 2 bytes."""
        quantized = {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
        stored = read(V4_FLASH | {"quantization_config": quantized}).stored
        experts = 43 * 256 * 3 * 4096 * 2048
        matrices = 43 * (4096 * (1024 + 512) + 1024 * 32_768 + 8192 * 4096 + 4096 * 8192 + 3 * 4096 * 2048)
        matrices += 21 * 8192 * 1024
        rest = 284_332_230_231 - experts - matrices
        assert stored.total_bytes == experts // 32 * 17 + matrices + matrices // 128**2 + 2 * rest
        # NVIDIA's file: experts in NVFP4 instead; what its list leaves out stays as DeepSeek stored it.
        layers = {f"layers.{i}.ffn.experts": {"quant_algo": "NVFP4", "group_size": 16} for i in range(43)}
        nvidia = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers, "ignore": ["*.attn.*", "head", "mtp.*"]}
        other = read(V4_FLASH | {"quantization_config": quantized | nvidia}).stored
        assert other.total_bytes - stored.total_bytes == experts // 16 * 9 + 8 * 43 * 256 * 3 - experts // 32 * 17

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"compress_ratios": [0, 2] * 22}, "compress_ratios has 2: kvscope knows 0, 4 and 128"),
            ({"compress_ratios": None}, "layer_types missing"),
            ({"mlp_layer_types": ["dense"] * 43}, "mlp_layer_types has"),
            ({"layer_types": ["full_attention"] * 43}, "layer_types has"),
        ],
    )
    def test_refused(self, change, words):
        with pytest.raises(SourceError, match=words):
            read(V4_FLASH | change)

    def test_tables_that_choose_experts_are_said(self):
        assert any("2,327,040 entries" in note for note in read(V4_FLASH).notes)


class TestStep:
    """Step3p7ForConditionalGeneration of transformers 5.23 on the meta device, without its vision model."""

    text: ClassVar = {
        "model_type": "step3p5", "hidden_size": 4096, "intermediate_size": 11264, "num_hidden_layers": 45,
        "num_attention_heads": 64, "num_attention_groups": 8, "head_dim": 128, "vocab_size": 128815,
        "layer_types": ["full_attention"] * 48, "moe_num_experts": 288, "moe_top_k": 8, "moe_intermediate_size": 1280,
        "share_expert_dim": 1280, "tie_word_embeddings": False, "num_nextn_predict_layers": 3,
    }  # fmt: skip

    def test_parameters(self):
        assert parameters(read({"model_type": "step3p7", "text_config": self.text})).total == 195_843_833_088

    def test_sliding_layers_have_heads_of_their_own_number(self):
        types = (["full_attention", *["sliding_attention"] * 3] * 2)[:8]
        other = {"layer_types": types, "num_hidden_layers": 8, "vocab_size": 1000, "moe_layers_enum": "3,4,6"}
        other |= {"sliding_window": 512, "attention_other_setting": {"num_attention_heads": 96}}
        spec = read(self.text | other)
        assert parameters(spec).total == 15_148_783_616
        assert cache_elements(spec).windowed == {512: 6 * 2 * 8 * 128}
        assert cache_elements(spec).full == 2 * 2 * 8 * 128

    def test_without_gates(self):
        plain = read(self.text | {"use_head_wise_attn_gate": False})
        assert parameters(read(self.text)).total - parameters(plain).total == 45 * 4096 * 64

    def test_which_layers_have_experts_must_be_numbers(self):
        with pytest.raises(SourceError, match="moe_layers_enum must be a list of layer numbers"):
            read(self.text | {"moe_layers_enum": "3,x"})


def test_glm_5_2():
    """nvidia/GLM-5.2-NVFP4: its layers are all sparse, and only some have an indexer of their own."""
    sizes = {
        "model_type": "glm_moe_dsa", "hidden_size": 6144, "intermediate_size": 12288, "num_hidden_layers": 78,
        "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 154880, "kv_lora_rank": 512,
        "q_lora_rank": 2048, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
        "index_head_dim": 128, "index_n_heads": 32, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "tie_word_embeddings": False,
        "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 75,
        "indexer_types": [["full", "shared"][i > 2 and (i - 2) % 4 != 0] for i in range(78)],
    }  # fmt: skip
    total = parameters(read(sizes)).total
    assert parameters(read(sizes | {"layer_types": ["deepseek_sparse_attention"] * 78})).total == total
    assert total == 743_377_000_704


RING_MINI = {
    "model_type": "bailing_moe_linear", "first_k_dense_replace": 1, "group_norm_size": 4, "head_dim": 128,
    "hidden_size": 2048, "intermediate_size": 5120, "layer_group_size": 5, "moe_intermediate_size": 512,
    "moe_router_enable_expert_bias": True, "moe_shared_expert_intermediate_size": 512, "n_group": 8,
    "num_attention_heads": 16, "num_experts": 256, "num_experts_per_tok": 8, "num_hidden_layers": 20,
    "num_key_value_heads": 4, "num_shared_experts": 1, "use_qk_norm": True, "vocab_size": 157184,
    "tie_word_embeddings": False, "linear_silu": False,
}  # fmt: skip


class TestBailingLinear:
    """Ring-mini-linear-2.0 by hand from modeling_bailing_moe_linear_v2.py; public: 16.4 B, 1.6 B active."""

    def test_parameters(self):
        h, inner = 2048, 16 * 128
        linear = 3 * h * inner + h * inner + h * inner + inner + 2 * 128
        full = h * (inner + 2 * 4 * 128) + inner * h + 2 * 128
        experts = 257 * 3 * h * 512 + 256 * h
        total = 2 * 157_184 * h + h + 16 * linear + 4 * full + 20 * 2 * h + 3 * h * 5120 + 19 * experts
        found = parameters(read(RING_MINI))
        assert found.total == total == 16_423_443_456
        assert found.active == total - 19 * 248 * 3 * h * 512 == 1_600_773_120

    def test_cache_and_state(self):
        spec = read(RING_MINI)
        assert cache_elements(spec).full == 4 * 2 * 4 * 128
        assert state_elements(spec) == 16 * 16 * 128 * 128

    def test_layers_after_the_last_whole_group_are_full(self):
        spec = read(RING_MINI | {"num_hidden_layers": 22})
        assert [not mixer.cache_elements for layer in spec.layers for mixer in layer.mixers][19:] == [False] * 3

    def test_ring_2_5_has_latent_layers_under_the_model_type_of_ling_3(self):
        latent = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
        spec = read(RING_MINI | latent | {"model_type": "bailing_hybrid", "v_head_dim": 128})
        assert cache_elements(spec).latent == 4 * 576
        assert state_elements(spec) == 16 * 16 * 128 * 128


LARGE_4 = {
    "model_type": "mistral_large4_text", "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 72,
    "num_attention_heads": 64, "num_key_value_heads": 64, "vocab_size": 204800, "kv_lora_rank": 512,
    "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 128,
    "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 6144, "first_k_dense_replace": 1,
    "index_head_dim": 128, "index_n_heads": 32, "index_topk": 2048, "tie_word_embeddings": False,
}  # fmt: skip
MUSE = {
    "model_type": "muse_spark_text", "hidden_size": 8192, "intermediate_size": 16384, "num_hidden_layers": 62,
    "num_attention_heads": 128, "num_key_value_heads": 16, "head_dim": 64, "vocab_size": 202048,
    "sliding_window": 2048, "moe_intermediate_size": 4096, "num_local_experts": 256, "num_experts_per_tok": 8,
    "moe_hidden_size": 4096, "mlp_layer_types": ["sparse"] * 62, "tie_word_embeddings": False,
    "layer_types": ["full_attention" if i % 4 == 1 else "sliding_attention" for i in range(62)],
}  # fmt: skip
MOLMO = {
    "model_type": "molmo2_text", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "additional_vocab_size": 128, "tie_word_embeddings": False, "rope_scaling_layers": list(range(9)),
}  # fmt: skip


class TestClassesOfTransformers:
    """Totals of the classes of transformers 5.23 on the meta device, without their encoders."""

    @pytest.mark.parametrize(
        ("config", "total"),
        [(LARGE_4, 1_050_118_202_880), (MUSE, 819_990_536_192), (MOLMO, 8_191_259_648)],
        ids=["mistral_large4", "muse_spark", "molmo2"],
    )
    def test_parameters(self, config, total):
        assert parameters(read(config)).total == total

    def test_layers_without_positions_keep_no_rotary_key(self):
        spec = read(LARGE_4)
        assert cache_elements(spec).latent == 54 * 576 + 18 * 512
        assert index_elements(spec) == 72 * 128

    def test_layers_that_share_a_latent_are_refused(self):
        with pytest.raises(SourceError, match="kv_source_layers lists layers that share a latent"):
            read(LARGE_4 | {"kv_source_layers": [0, *range(71)]})
        assert read(LARGE_4 | {"kv_source_layers": list(range(72))}) == read(LARGE_4)

    def test_shared_indexers(self):
        types = ["full", "shared"] * 36
        less = 36 * (4096 * 6144 + 128 * 6144 + 2 * 128 + 32 * 6144 + 2 * 6144 + 2 * 32)
        total = parameters(read(LARGE_4)).total
        assert total - parameters(read(LARGE_4 | {"indexer_types": types})).total == less


INKLING_SMALL = {
    "model_max_length": 1048576, "torch_dtype": "bfloat16", "hidden_size": 4096, "num_hidden_layers": 42,
    "vocab_size": 201024, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "d_rel": 16,
    "rel_extent": 1024, "q_bias": False, "o_bias": False, "log_scaling_n_floor": 128000, "use_embed_norm": True,
    "local_layer_ids": [i for i in range(42) if (i + 1) % 6], "dense_mlp_idx": 2, "use_sconv": True,
    "sconv_kernel_size": 4, "unpadded_vocab_size": 200058, "swa_head_dim": 128, "swa_num_attention_heads": 32,
    "swa_num_key_value_heads": 8, "sliding_window_size": 512, "n_routed_experts": 256, "num_experts_per_tok": 6,
    "n_shared_experts": 2, "shared_expert_sink": True, "dense_intermediate_size": 16384, "intermediate_size": 2048,
    "use_gate_bias": True, "norm_after_topk": True, "use_global_scale": True,
}  # fmt: skip
"""text_config of thinkingmachines/Inkling-Small as a public port's test has it; its total by InklingForCausalLM."""


class TestInkling:
    def test_the_published_keys(self):
        spec = read({"model_type": "inkling_mm_model", "text_config": INKLING_SMALL, "vision_config": {"a": 1}})
        assert parameters(spec).total == 263_655_189_034
        assert cache_elements(spec).full == 7 * 2 * 8 * 128
        assert cache_elements(spec).windowed == {512: 35 * 2 * 8 * 128}
        assert state_elements(spec) == 42 * 4 * 2 * (8 * 128 + 4096)
        assert spec.max_context == 1_048_576
        assert not any("conv_kernel_size" in note for note in spec.notes)


GLM_53_FLASH = {
    "model_type": "glm5_next_text", "vocab_size": 154880, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 45, "num_attention_heads": 64, "num_key_value_heads": 64, "first_k_dense_replace": 3,
    "moe_intermediate_size": 2048, "n_routed_experts": 288, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "mhc": True, "hc_mult": 4, "hc_sinkhorn_iters": 20,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 256, "qk_rope_head_dim": 0, "v_head_dim": 256,
    "index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048, "index_kpool": 4, "num_nextn_predict_layers": 1,
    "layer_types": ["linear_attention" if (i + 1) % 4 else "deepseek_sparse_attention" for i in range(45)],
    "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 42,
    "linear_attn_config": {"num_heads": 64, "head_dim": 128, "short_conv_kernel_size": 4, "gate_lower_bound": -5.0,
                           "kda_layers": [0, 1, 2], "full_attn_layers": [3]},
}  # fmt: skip
"""text_config of zai-org/GLM-5.3-Flash as a public port's test has it; its total by transformers' class."""


class TestGlm53:
    def test_the_published_keys(self):
        spec = read({"model_type": "glm5_next", "text_config": GLM_53_FLASH, "vision_config": {"a": 1}})
        assert parameters(spec).total == 313_326_799_870
        assert cache_elements(spec).latent == 11 * 512
        assert state_elements(spec) == 34 * 64 * 128 * (128 + 3 * 4)

    def test_indexers_that_a_frequency_shares(self):
        """index_topk_freq 2 with offset 2: of the latent layers 3, 7, 11 … every one whose number less 1 is even."""
        every = parameters(read(GLM_53_FLASH)).total
        shared = read(GLM_53_FLASH | {"index_topk_freq": 4})
        own = sum((max(i - 1, 0) % 4) == 0 for i in range(3, 45, 4))
        each = 1536 * 32 * 128 + 4096 * (128 + 32) + 2 * 128 + 128 * (4 + 4096)
        assert every - parameters(shared).total == (11 - own) * each
        assert parameters(read(GLM_53_FLASH | {"index_topk_pattern": "F" * 45})).total == every


ERNIE_VL_28B = {
    "model_type": "ernie4_5_moe_vl", "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 28,
    "num_attention_heads": 20, "num_key_value_heads": 4, "vocab_size": 103424, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "use_bias": False, "tie_word_embeddings": True, "moe_num_experts": [64, 64],
    "moe_intermediate_size": [1536, 512], "moe_layer_start_index": [1, 1], "moe_layer_end_index": [29, 28],
    "moe_layer_interval": 1, "moe_k": 6, "moe_num_shared_experts": 2, "pixel_hidden_size": 1280,
    "spatial_conv_size": 2, "temporal_conv_size": 2, "vision_config": {"depth": 32},
}  # fmt: skip
"""ERNIE-4.5-VL-28B-A3B by its class's defaults, in the flat form of its first files."""


class TestErnieVl:
    def test_experts_of_images_are_held_and_not_used_by_text(self):
        """Ernie4_5_VLMoeForConditionalGeneration of transformers 5.23 without its encoder: 28.62 B."""
        spec = read(ERNIE_VL_28B)
        experts = 27 * 64 * 3 * 2560 * (1536 + 512)
        assert parameters(spec).total == 28_624_635_776
        assert parameters(spec).components["experts"] == experts
        idle = 27 * 3 * 2560 * ((64 - 6) * 1536 + 64 * 512)
        assert parameters(spec).total - parameters(spec).active == idle
        assert any("text tokens do not use them" in note for note in spec.notes)

    def test_one_number_for_both(self):
        assert parameters(read(ERNIE_VL_28B | {"moe_num_experts": 64})).total == 28_624_635_776
        with pytest.raises(SourceError, match="one number, or two: for text and for images"):
            read(ERNIE_VL_28B | {"moe_num_experts": [64, 64, 64]})


def test_voxtral_realtime_is_a_mistral_with_two_narrow_matrices_per_layer():
    """Mistral 7B's 7,241,732,096 parameters and 2 x 32 x 4,096 for each of 32 layers; every layer slides."""
    text = {
        "model_type": "voxtral_realtime_text", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "sliding_window": 8192,
    }  # fmt: skip
    spec = read({"model_type": "voxtral_realtime", "text_config": text, "tie_word_embeddings": False})
    assert parameters(spec).total == 7_241_732_096 + 32 * 64 * 4096
    assert cache_elements(spec).windowed == {8192: 32 * 2 * 8 * 128}
