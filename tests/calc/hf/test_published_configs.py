"""Published configs, cut to the keys that matter: totals of the published weights or of transformers' classes.

None of these counts comes from here. Sliding and full elements per token follow from the models' own descriptions.
"""

import pytest

from calc.errors import SourceError, UnsupportedArchitecture
from calc.hf import spec_from_config
from calc.model.cache import cache_elements
from calc.model.count import parameters


def config(model_type, sizes, **more):
    """From "layers heads kv_heads hidden inner vocab", 0 for a key that the config leaves out."""
    keys = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size")
    numbers = zip((*keys, "vocab_size"), map(int, sizes.split()), strict=True)
    return {"model_type": model_type, **{key: value for key, value in numbers if value}, **more}


def inner(model_type, text, key="text_config", **outer):
    return {"model_type": model_type, key: text, "vision_config": {"hidden_size": 1152}, **outer}


MQA2 = {"multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128}
CHATGLM = {
    "model_type": "chatglm",
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "num_attention_heads": 32,
    "add_qkv_bias": True,
    "add_bias_linear": False,
    **MQA2,
}
MLA = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
GLM5 = config("glm_moe_dsa", "78 64 64 6144 12288 154880", head_dim=64, kv_lora_rank=512, q_lora_rank=2048)
GLM5 |= {"qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "first_k_dense_replace": 3}
GLM5 |= {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048}
LLAMA4 = config("llama4_text", "48 40 8 5120 8192 202048", head_dim=128, intermediate_size_mlp=16384)
LLAMA4 |= {"interleave_moe_layer_step": 2, "num_local_experts": 128, "num_experts_per_tok": 1}
OPENELM = {
    "model_type": "openelm",
    "num_transformer_layers": 16,
    "model_dim": 1280,
    "head_dim": 64,
    "num_query_heads": [12] * 5 + [16] * 7 + [20] * 4,
    "num_kv_heads": [3] * 5 + [4] * 7 + [5] * 4,
    "ffn_multipliers": [0.5, 0.73, 0.97, 1.2, 1.43, 1.67, 1.9, 2.13, 2.37, 2.6, 2.83, 3.07, 3.3, 3.53, 3.77, 4.0],
    "ffn_dim_divisor": 256,
    "normalize_qk_projections": True,
    "share_input_output_layers": True,
    "vocab_size": 32000,
}
GEMMA3N = config("gemma3n_text", "35 8 2 2048 0 262400", head_dim=256, intermediate_size=[16384] * 35)
GEMMA3N |= {"hidden_size_per_layer_input": 256, "altup_num_inputs": 4, "laurel_rank": 64, "num_kv_shared_layers": 15}
GEMMA3N |= {"sliding_window": 512, "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7}
GEMMA4_E2B = config("gemma4_text", "35 8 1 1536 6144 262144", head_dim=256, num_kv_shared_layers=20)
GEMMA4_E2B |= {"hidden_size_per_layer_input": 256, "sliding_window": 512, "enable_moe_block": False}
VISION_90B = [3 + 5 * i for i in range(20)]

PUBLISHED = {
    "chatglm3-6b": (CHATGLM | {"num_layers": 28, "padded_vocab_size": 65024}, 6_243_584_000, 14_336, 0),
    "glm-4-9b-chat": (CHATGLM | {"num_layers": 40, "padded_vocab_size": 151552}, 9_399_951_360, 20_480, 0),
    "baichuan-7b": (config("baichuan", "32 32 0 4096 11008 64000"), 7_000_559_616, 262_144, 0),
    "baichuan2-13b": (config("baichuan", "40 40 0 5120 13696 125696"), 13_896_668_160, 409_600, 0),
    "qwen-7b": (config("qwen", "32 32 0 4096 22016 151936", kv_channels=128), 7_721_324_544, 262_144, 0),
    "internlm-7b": (config("internlm", "32 32 0 4096 11008 103168", bias=True), 7_321_948_160, 262_144, 0),
    "minicpm-2b": (config("minicpm", "40 36 36 2304 5760 122753"), 2_724_880_896, 184_320, 0),
    "stablelm-3b": (config("stablelm", "32 32 32 2560 6912 50304", use_qkv_bias=False), 2_795_443_200, 163_840, 0),
    "stablelm-2-12b": (
        config("stablelm", "40 32 8 5120 13824 100352", qk_layernorm=True, use_parallel_residual=True),
        12_143_185_920,
        102_400,
        0,
    ),
    "openelm-270m": (OPENELM, 271_527_168, 8_064, 0),
    "minicpm3-4b": (
        config("minicpm3", "62 40 40 2560 6400 73448", **MLA | {"kv_lora_rank": 256, "q_lora_rank": 768})
        | {"qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": None},
        4_073_875_968,
        17_856,
        0,
    ),
    "gemma-3-4b": (
        inner("gemma3", config("gemma3_text", "34 0 0 2560 10240 0", sliding_window=1024)),
        3_880_263_168,
        10_240,
        59_392,
    ),
    "gemma-3-27b": (
        inner("gemma3", config("gemma3_text", "62 32 16 5376 21504 0", head_dim=128, sliding_window=1024)),
        27_009_346_304,
        40_960,
        212_992,
    ),
    "gemma-3n-e4b": (inner("gemma3n", GEMMA3N), 6_835_235_568, 4_096, 16_384),
    "gemma-4-e2b": (inner("gemma4", GEMMA4_E2B, tie_word_embeddings=True), 4_055_259_904, 2_048, 6_656),
    "llava-1.5-7b": (inner("llava", {"model_type": "llama", "vocab_size": 32064}), 6_738_939_904, 262_144, 0),
    "llama-3.2-11b-vision": (
        inner(
            "mllama",
            config("mllama_text_model", "40 32 8 4096 14336 128256", cross_attention_layers=VISION_90B[:8]),
        ),
        9_775_192_080,
        65_536,
        0,
    ),
    "llama-4-maverick": (inner("llama4", LLAMA4), 400_711_848_960, 24_576, 73_728),
    "glm-5": (GLM5, 743_911_199_232, 44_928, 0),
    "qwen2.5-vl-7b": (
        config("qwen2_5_vl", "28 28 4 3584 18944 152064", use_sliding_window=False, vision_config={"depth": 32}),
        7_615_616_512,
        28_672,
        0,
    ),
    "voxtral-mini-3b": (
        inner("voxtral", config("llama", "30 32 8 3072 8192 131072", head_dim=128)),
        4_014_136_320,
        61_440,
        0,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_total_and_cache(name):
    published, total, full, sliding = PUBLISHED[name]
    model = spec_from_config(published, name=name, source=name)
    assert parameters(model).total == total
    elements = cache_elements(model)
    kept = (elements.full + elements.latent, sum(elements.windowed.values()))
    assert kept == (full, sliding)


class TestKeysLeftOut:
    """A class's default is used where published configs leave keys out, and said so; never for the core sizes."""

    def test_inner_config(self):
        model = spec_from_config(PUBLISHED["gemma-3-4b"][0], name="m", source="m")
        assert model.max_context == 131_072
        for note in ("vocab_size is not in the config: 262208", "num_attention_heads is not in the config: 8"):
            assert any(each.startswith(note) for each in model.notes)

    def test_top_level_sizes_are_never_filled_in(self):
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"):
            with pytest.raises(SourceError, match=f"{key} missing"):
                spec_from_config({k: v for k, v in GLM5.items() if k != key}, name="m", source="m")

    def test_a_rank_that_may_have_been_null_is_asked_for(self):
        with pytest.raises(SourceError, match="q_lora_rank missing"):
            spec_from_config({k: v for k, v in GLM5.items() if k != "q_lora_rank"}, name="m", source="m")

    def test_layers_that_a_class_repeats(self):
        sizes = config("qwen3_next", "48 16 2 2048 5120 151936", head_dim=256, num_experts=512, num_experts_per_tok=10)
        sizes |= {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "decoder_sparse_step": 1}
        model = spec_from_config(sizes, name="m", source="m")
        assert parameters(model).total == 79_674_391_296
        assert any(note.startswith("layer_types is not in the config: linear_attention") for note in model.notes)


def test_the_first_llavas_name_their_language_model_by_the_architecture():
    sizes = config("llava", "28 28 4 3584 18944 152064", mm_vision_tower="clip", tie_word_embeddings=False)
    plain = spec_from_config(sizes | {"architectures": ["LlavaLlamaForCausalLM"]}, name="m", source="m")
    qwen = spec_from_config(sizes | {"architectures": ["LlavaQwenForCausalLM"]}, name="m", source="m")
    assert (plain.qkv_bias, qwen.qkv_bias) == (False, True)
    assert parameters(qwen).total == 7_615_616_512
    assert [note.partition(",")[0] for note in qwen.notes] == [
        "only the text model is counted: the sizes of its image or audio encoders are not known"
    ]


class TestUnknownTypes:
    """A model_type that no table has is read by its fields only where they leave nothing open."""

    PLAIN = config("newcomer", "32 32 8 4096 14336 128256", rms_norm_eps=1e-5, tie_word_embeddings=False)

    def test_read_with_the_assumption_in_a_note(self):
        model = spec_from_config(self.PLAIN, name="m", source="m")
        assert parameters(model).total == 8_030_261_248
        assert any('does not know model_type "newcomer"' in note for note in model.notes)

    @pytest.mark.parametrize("missing", ["num_key_value_heads", "rms_norm_eps", "intermediate_size"])
    def test_refused_where_a_size_is_open(self, missing):
        with pytest.raises(UnsupportedArchitecture, match=missing):
            spec_from_config({k: v for k, v in self.PLAIN.items() if k != missing}, name="m", source="m")

    @pytest.mark.parametrize("key", ["altup_num_inputs", "ssm_state_size", "memory_heads", "index_n_heads"])
    def test_refused_where_a_key_hints_at_more(self, key):
        with pytest.raises(UnsupportedArchitecture, match=key):
            spec_from_config({**self.PLAIN, key: 4}, name="m", source="m")

    @pytest.mark.parametrize("model_type", ["bert", "t5", "whisper", "roberta"])
    def test_no_decoder(self, model_type):
        with pytest.raises(UnsupportedArchitecture, match=f'"{model_type}" is not a decoder-only'):
            spec_from_config({**self.PLAIN, "model_type": model_type}, name="m", source="m")
