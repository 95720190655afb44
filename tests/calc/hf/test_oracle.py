"""Published configs against counts that do not come from here: transformers' classes on the meta device."""

import csv
import json
from pathlib import Path

import pytest

from calc.hf import spec_from_config
from calc.model.cache import cache_elements, state_elements
from calc.model.count import parameters

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def rows():
    if not DATA.is_dir():
        return []
    with (DATA / "oracle.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def counts(model):
    """Parameters, active ones, elements per token of full and of sliding layers, windows, state elements."""
    total = parameters(model)
    kept = cache_elements(model)
    cache = (kept.full + kept.latent, sum(kept.windowed.values()), set(kept.windowed), state_elements(model))
    return (total.total, total.active, *cache)


@pytest.mark.skipif(not DATA.is_dir(), reason="the collected configs are not beside the project")
@pytest.mark.parametrize("row", rows(), ids=lambda row: row["file"].removesuffix(".json"))
def test_config(row):
    config = json.loads((DATA / "configs" / row["file"]).read_text())
    model = spec_from_config(config, name="m", source=row["file"])
    # transformers repeats Falcon's KV heads in its cache: the column of formulas has what is needed.
    full = "kv_elements_per_token_full_attention_layers"
    if row["model_type"] == "falcon":
        full = "kv_formula_elements_per_token"
    assert counts(model) == (
        int(row["total_params"]),
        int(row["active_params_per_token"] or row["total_params"]),
        int(row[full]),
        int(row["kv_elements_per_token_sliding_layers"]),
        {int(row["window"])} if row["window"] else set(),
        int(row["linear_state_elements_per_sequence"]),
    )
    assert model.tied == (row["tied"] == "True")
    assert model.n_layers == int(row["num_layers"])


GEMMA2_2B = {
    "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "sliding_window": 4096,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "first_k_dense_replace": 3, "moe_layer_freq": 1, "n_routed_experts": 256, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "tie_word_embeddings": False,
}  # fmt: skip
GPT_OSS_20B = {
    "model_type": "gpt_oss", "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 24,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 201088, "sliding_window": 128,
    "num_local_experts": 32, "num_experts_per_tok": 4, "attention_bias": True, "tie_word_embeddings": False,
}  # fmt: skip
FALCON_7B = {
    "model_type": "falcon", "hidden_size": 4544, "n_layer": 32, "n_head": 71, "num_kv_heads": 71, "vocab_size": 65024,
    "multi_query": True, "parallel_attn": True, "new_decoder_architecture": False, "bias": False,
}  # fmt: skip
PUBLISHED = {
    "gemma-2-2b": (GEMMA2_2B, 2_614_341_888, 2_614_341_888, (26_624, 26_624), 0),
    "deepseek-v3": (DEEPSEEK_V3, 671_026_404_352, 37_552_282_624, (35_136, 0), 0),
    "gpt-oss-20b": (GPT_OSS_20B, 20_914_757_184, 4_187_440_704, (12_288, 12_288), 0),
    "falcon-7b": (FALCON_7B, 6_921_720_704, 6_921_720_704, (4_096, 0), 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_totals(name):
    config, total, active, cache, state = PUBLISHED[name]
    found = counts(spec_from_config(config, name=name, source=name))
    assert (found[0], found[1], found[2:4], found[5]) == (total, active, cache, state)
