"""Damaged and hostile configs: one sentence that starts with the path, or a model; never a traceback, never a hang."""

import json
import math
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calc.errors import SourceError
from calc.hf import read_hf_config, spec_from_config
from calc.hf.architectures import BY_MODEL_TYPE
from calc.hf.fallback import NOT_COUNTED
from calc.model.count import parameters
from tests.examples import examples

CONFIGS = Path(__file__).resolve().parents[4] / "shared" / "data" / "configs"
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
}  # fmt: skip
DEEPSEEK = {
    **LLAMA, "model_type": "deepseek_v3", "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 64, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "moe_layer_freq": 1,
}  # fmt: skip
HYBRID = {
    **LLAMA, "model_type": "qwen3_next", "layer_types": ["linear_attention", "full_attention"] * 16,
    "linear_num_key_heads": 16, "linear_key_head_dim": 128, "linear_num_value_heads": 32,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "num_experts": 64, "num_experts_per_tok": 8,
    "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512, "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}  # fmt: skip
EVERYTHING = {
    **HYBRID, **DEEPSEEK, "head_dim": 128, "state_size": 16, "conv_kernel": 4, "expand": 2, "time_step_rank": 256,
    "num_heads": 128, "n_groups": 8, "mamba_n_heads": 128, "mamba_d_head": 64, "mamba_d_state": 128,
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_ngroups": 1, "mamba_n_groups": 1, "n_mamba_heads": 128,
    "num_mem_blocks": 2, "adapter_rank": 128, "layers_block_type": ["hybrid", "mamba"] * 16, "conv_L_cache": 3,
    "linear_num_heads": 32, "linear_head_dim": 128, "layer_group_size": 6, "short_conv_kernel_size": 4,
    "block_types": ["recurrent", "attention"], "attention_window_size": 2048, "conv1d_width": 4, "lru_width": 4096,
    "hc_mult": 4, "gated_norm_rank": 16, "index_n_heads": 16, "index_head_dim": 128, "sliding_window": 128,
    "hybrid_layer_pattern": [0, 1] * 16, "ffn_hidden_size": 8192, "expert_ffn_hidden_size": 1024, "moe_topk": 4,
    "num_layers": 32, "mlp_layer_types": ["dense"] + ["sparse"] * 31, "mamba_dt_rank": "auto",
    "attn_layer_period": 4, "attn_layer_offset": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip
"""Keys of all kinds of models at once: any model_type finds what it asks for."""
TYPES = sorted({*BY_MODEL_TYPE, *NOT_COUNTED, "t5", "brand_new"})


def published():
    if not CONFIGS.is_dir():
        return []
    return [json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))]


REAL = [LLAMA, DEEPSEEK, HYBRID, EVERYTHING, *published()]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 10**4, 10**9, 10**12, 10**13, 10**40, -(10**30)]),
    st.sampled_from([0.5, -1.0, math.inf, math.nan, 1e300]),
    st.sampled_from(["", "auto", "llama", "x" * 2000, "\x1b[31mred", "\ud800", "4096", "M" * 40]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["attention", "0", "head_dim"]), inner),
    max_leaves=8,
)


def answer(config):
    """The model, or None where it is refused in one sentence. Anything else is the failure that is looked for."""
    try:
        model = spec_from_config(config, name="fuzzed", source="m/config.json")
    except SourceError as error:
        message = str(error)
        assert message.startswith("m/config.json: ")
        assert not {"\n", "\x1b"} & {*message}
        assert len(message) < 700
        return None
    assert parameters(model).total > 0
    return model


@st.composite
def mutated(draw):
    """A real config with a few keys dropped, replaced, or moved to another model_type."""
    config = dict(draw(st.sampled_from(REAL)))
    for key in draw(st.lists(st.sampled_from(sorted(config)), max_size=3)):
        action = draw(st.sampled_from(["drop", "null", "replace", "replace", "nest", "scale"]))
        value = config.get(key)
        if action == "drop":
            config.pop(key, None)
        elif action == "nest":
            config[key] = [value] * draw(st.integers(0, 3))
        elif action == "scale" and isinstance(value, int):
            config[key] = value * draw(st.sampled_from([2, 3, 10, 10**6]))
        else:
            config[key] = None if action == "null" else draw(values)
    if draw(st.booleans()):
        config["model_type"] = draw(st.sampled_from(TYPES))
    return config


fuzz = examples(200, suppress_health_check=list(HealthCheck))


@fuzz
@given(mutated())
def test_a_mutated_config_is_a_model_or_one_sentence(config):
    answer(config)


@fuzz
@given(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(sorted(EVERYTHING)), values, max_size=4))
def test_any_model_type_with_any_keys(model_type, more):
    answer({**EVERYTHING, **more, "model_type": model_type})


@given(st.dictionaries(st.text(max_size=20), values, max_size=6))
@settings(deadline=None)
def test_any_object_is_a_model_or_one_sentence(config):
    answer(config)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", TYPES)
def test_every_key_of_a_type_may_be_missing_or_wrong(model_type):
    config = {**EVERYTHING, "model_type": model_type}
    for key in config:
        answer({k: v for k, v in config.items() if k != key})
        for wrong in (None, -1, "x", [], 10**30, [None] * 40):
            answer({**config, key: wrong})


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"model_type": ' * 50_000,
        '{"vocab_size": ' + "9" * 100_000 + "}",
        '{"model_type": "llama", "hidden_size": 1e999}',
        '{"a": "\\ud800"}',
        "null",
        "[1, 2]",
        '"llama"',
        "",
        '{"model_type": "llama"',
        "\x00" * 1000,
    ],
    ids=range(11),
)
def test_files_that_are_no_config(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(SourceError) as caught:
        read_hf_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 2


def test_deep_nesting_of_text_parts_is_not_followed_without_end():
    config = LLAMA
    for _ in range(5000):
        config = {"model_type": "llava", "text_config": config}
    assert answer(config) != answer(LLAMA)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_routed_experts", "moe_layer_freq", "first_k_dense_replace"])
def test_a_huge_count_costs_neither_time_nor_memory(key):
    tracemalloc.start()
    started = time.process_time()
    answer({**DEEPSEEK, key: 10**12})
    answer({**HYBRID, "model_type": "qwen3_next", key: 10**12, "layer_types": None, "full_attention_interval": 4})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 2
    assert peak < 64 * 2**20
