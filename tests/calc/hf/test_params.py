"""params.json of Mistral and Meta: totals of the published models, and what is refused."""

import json

import pytest

from calc.errors import SourceError
from calc.hf import read_hf_config, spec_from_config
from calc.model.cache import cache_elements
from calc.model.count import parameters
from calc.sources import load_model

MISTRAL = {
    "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
    "norm_eps": 1e-05, "vocab_size": 32768, "rope_theta": 1000000.0,
}  # fmt: skip
MIXTRAL = MISTRAL | {"vocab_size": 32000, "moe": {"num_experts_per_tok": 2, "num_experts": 8}}
LARGE_3 = {
    "dim": 7168, "n_layers": 61, "head_dim": 128, "hidden_dim": 16384, "n_heads": 128, "n_kv_heads": 128,
    "norm_eps": 1e-06, "vocab_size": 131072, "tied_embeddings": False, "max_position_embeddings": 262144,
    "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "kv_lora_rank": 512, "v_head_dim": 128,
    "yarn": {"original_max_position_embeddings": 8192, "factor": 36, "apply_scale": False, "beta": 32, "alpha": 1},
    "moe": {
        "expert_parallel": 1, "expert_model_parallel": 1, "route_every_n": 1, "first_k_dense_replace": 3,
        "num_expert_groups": 1, "num_expert_groups_per_tok": 1, "num_experts": 128, "num_experts_per_tok": 4,
        "num_shared_experts": 1, "expert_hidden_dim": 4096, "routed_scale": 1.0,
    },
}  # fmt: skip
LLAMA_3_8B = {
    "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256, "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024, "norm_eps": 1e-05, "rope_theta": 500000.0,
}  # fmt: skip
LLAMA_3_70B = LLAMA_3_8B | {"dim": 8192, "n_layers": 80, "n_heads": 64, "multiple_of": 4096}
LLAMA_405B = LLAMA_3_70B | {"dim": 16384, "n_layers": 126, "n_heads": 128, "ffn_dim_multiplier": 1.2}
LLAMA_2_7B = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05, "vocab_size": 32000}

PUBLISHED = {
    "mistral-7b-v0.3": (MISTRAL, 7_248_023_552),
    "mixtral-8x7b": (MIXTRAL, 46_702_792_704),
    "llama-3-8b": (LLAMA_3_8B, 8_030_261_248),
    "llama-3-70b": (LLAMA_3_70B, 70_553_706_496),
    "llama-3.1-405b": (LLAMA_405B | {"use_scaled_rope": True}, 405_853_388_800),
    "llama-2-7b": (LLAMA_2_7B, 6_738_415_616),
}


def written(folder, params):
    folder.mkdir(exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_total(name, tmp_path):
    params, total = PUBLISHED[name]
    model = load_model(str(written(tmp_path / name, params)))
    assert (model.name, parameters(model).total) == (name, total)
    assert read_hf_config(tmp_path / name / "params.json").layers == model.layers


def test_mistral_large_3_is_laid_out_as_deepseek_v3(tmp_path):
    model = load_model(str(written(tmp_path / "large", LARGE_3)))
    same = {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 16384, "num_hidden_layers": 61,
        "num_attention_heads": 128, "vocab_size": 131072, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128, "kv_lora_rank": 512, "v_head_dim": 128, "n_routed_experts": 128,
        "num_experts_per_tok": 4, "n_shared_experts": 1, "moe_intermediate_size": 4096, "first_k_dense_replace": 3,
        "tie_word_embeddings": False,
    }  # fmt: skip
    assert model.layers == spec_from_config(same, name="m", source="m").layers
    assert model.max_context == 262_144
    assert cache_elements(model).latent == 61 * 576


def test_fp8_in_mistrals_words(tmp_path):
    """A byte for each linear weight and two scales of 4 bytes; embedding, head and norms in 2 bytes."""
    quantized = {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}}
    stored = load_model(str(written(tmp_path / "m", MISTRAL | quantized))).stored
    rest = 2 * 32_768 * 4096 + 65 * 4096
    assert stored.total_bytes == 7_248_023_552 - rest + 2 * rest + 32 * 7 * 8


def test_windows(tmp_path):
    one = load_model(str(written(tmp_path / "one", MISTRAL | {"sliding_window": 4096})))
    assert cache_elements(one).windowed == {4096: 32 * 2048}
    some = load_model(str(written(tmp_path / "some", MISTRAL | {"sliding_window": [None, 1024, 1024, 1024]})))
    assert (cache_elements(some).full, cache_elements(some).windowed) == (8 * 2048, {1024: 24 * 2048})


def test_an_encoder_is_said(tmp_path):
    encoder = {"hidden_size": 1664, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 8192}
    model = load_model(str(written(tmp_path / "m", MISTRAL | {"vision_encoder": encoder})))
    assert parameters(model).total == 7_248_023_552
    assert any("only the text model is counted" in note for note in model.notes)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (LLAMA_2_7B | {"vocab_size": -1}, "vocab_size is -1"),
        (LLAMA_3_8B | {"multiple_of": 0}, "multiple_of must be a whole number"),
        (LLAMA_3_8B | {"ffn_dim_multiplier": "x"}, "ffn_dim_multiplier must be a number"),
        (LLAMA_3_8B | {"vision_num_cross_attention_layers": 8}, "vision_num_cross_attention_layers"),
        (LLAMA_3_8B | {"moe_args": {"num_experts": 16}}, "moe_args.num_experts"),
        (MISTRAL | {"sliding_window": [None, 1, 2]}, "sliding_window must be a list that the layers repeat"),
        (MISTRAL | {"sliding_window": [1, 2]}, "sliding_window must have one size"),
        (MISTRAL | {"quantization": {"qformat_weight": "int3"}}, "does not know this quantization"),
        ({key: value for key, value in MISTRAL.items() if key != "hidden_dim"}, "intermediate_size missing"),
    ],
)
def test_refused(params, words, tmp_path):
    with pytest.raises(SourceError, match=words):
        load_model(str(written(tmp_path / "m", params)))
