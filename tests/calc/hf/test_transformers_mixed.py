"""Latent, recurrent and expert models of transformers, built small: what their caches hold after real tokens.

Parameters, elements per cached token and state elements per sequence are measured on the running class, not read from
its code: twice the tokens, half of the difference each. Keys that a class leaves to itself are turned over one by one.
"""

import contextlib
import io
import itertools

import pytest

from calc.errors import SourceError
from calc.hf import spec_from_config
from calc.model.cache import cache_elements, index_elements, state_elements
from calc.model.count import parameters

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

SMALL = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 128, "num_hidden_layers": 4,
         "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
EQUAL_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
DIRECT = {**LATENT, "q_lora_rank": None}
INDEXER = {"index_n_heads": 2, "index_head_dim": 16, "index_topk": 64}
DEEPSEEK = {**EQUAL_HEADS, **EXPERTS, "n_routed_experts": 8, "n_shared_experts": 2, "n_group": 1, "topk_group": 1}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_expand": 2, "mamba_n_groups": 2}
DELTA = {"linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_num_value_heads": 4, "linear_value_head_dim": 12}
MIXED_TYPES = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
COMPASS_ROPE = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}

MODELS = {
    "mixtral": {**SMALL, **HEADS, "num_local_experts": 8, "num_experts_per_tok": 2},
    "olmoe": {**SMALL, **HEADS, "num_experts": 8, "num_experts_per_tok": 2},
    "qwen2_moe": {**SMALL, **HEADS, **EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 40,
                  "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "qwen3_moe": {**SMALL, **HEADS, **EXPERTS, "num_experts": 8, "head_dim": 12},
    "deepseek_v2": {**SMALL, **DEEPSEEK, **DIRECT, "first_k_dense_replace": 1},
    "deepseek_v3": {**SMALL, **DEEPSEEK, **LATENT, "first_k_dense_replace": 1, "num_experts_per_tok": 1},
    "glm4_moe": {**SMALL, **HEADS, **EXPERTS, "n_routed_experts": 8, "head_dim": 12, "n_group": 1, "topk_group": 1},
    "gpt_oss": {**SMALL, **HEADS, "num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 12},
    "minicpm3": {**SMALL, **EQUAL_HEADS, **LATENT},
    "jamba": {**SMALL, **HEADS, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 2,
              "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0, "use_mamba_kernels": False},
    "bamba": {**SMALL, **HEADS, **MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**SMALL, **HEADS, **MAMBA2, "mamba_d_ssm": 128, "head_dim": 12},
    "granitemoehybrid": {**SMALL, **HEADS, **MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2,
                         "shared_intermediate_size": 40, "layer_types": MIXED_TYPES},
    "nemotron_h": {**SMALL, **HEADS, "head_dim": 12, "hybrid_override_pattern": "M*-M", "mamba_num_heads": 8,
                   "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2},
    "qwen3_next": {**SMALL, **HEADS, **EXPERTS, **DELTA, "num_experts": 8, "head_dim": 16,
                   "shared_expert_intermediate_size": 40, "layer_types": MIXED_TYPES},
    "qwen3_5_text": {**SMALL, **HEADS, **DELTA, "head_dim": 16, "layer_types": MIXED_TYPES},
    "lfm2": {**SMALL, **HEADS, "conv_L_cache": 3, "full_attn_idxs": [2], "block_multiple_of": 16},
    "lfm3": {**SMALL, **HEADS, "head_dim": 16, "conv_L_cache": 3, "sliding_window": 500,
             "layer_types": ["conv", "full_attention", "conv", "sliding_attention"]},
    "mamba": {**SMALL, "state_size": 8},
    "falcon_mamba": {**SMALL, "state_size": 8},
    "mamba2": {**SMALL, "num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2},
    "zamba": {**SMALL, **EQUAL_HEADS, "attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 7,
              "n_mamba_heads": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False,
              "attention_hidden_size": 128, "attention_head_dim": 32},
    "zamba2": {**SMALL, **EQUAL_HEADS, "n_mamba_heads": 8, "mamba_d_state": 16, "num_mem_blocks": 2, "adapter_rank": 4,
               "use_shared_attention_adapter": True, "num_hidden_layers": 7,
               "layers_block_type": ["linear_attention", "hybrid"] * 3 + ["linear_attention"]},
    "kimi_linear": {**SMALL, **EQUAL_HEADS, **DIRECT, "linear_num_heads": 4, "linear_head_dim": 16,
                    "layer_types": MIXED_TYPES, "num_experts": 8, "num_experts_per_token": 2,
                    "moe_intermediate_size": 24},
    "bailing_hybrid": {**SMALL, **EQUAL_HEADS, **DIRECT, "head_dim": 16, "num_experts": 8, "num_experts_per_token": 2,
                       "moe_intermediate_size": 24, "layer_types": MIXED_TYPES, "num_expert_group": 1,
                       "topk_group": 1},
    "olmo_hybrid": {**SMALL, **EQUAL_HEADS, **DELTA, "linear_num_key_heads": 4, "layer_types": MIXED_TYPES},
    "minimax": {**SMALL, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": MIXED_TYPES},
    "mimo_v2_flash": {**SMALL, **HEADS, **EXPERTS, "num_key_value_heads": 1, "n_routed_experts": 8, "head_dim": 24,
                      "v_head_dim": 16, "sliding_window": 500},
    "laguna": {**SMALL, **HEADS, **EXPERTS, "num_experts": 8, "head_dim": 16, "shared_expert_intermediate_size": 24,
               "num_attention_heads_per_layer": [4, 8, 4, 2]},
    "axk2": {**SMALL, **DEEPSEEK, **LATENT, **INDEXER, "gated_norm_rank": 4},
    "hy_v4": {**SMALL, **DEEPSEEK, **LATENT, **INDEXER, "indexer_types": ["full", "full", "shared", "full"]},
    "glm_moe_dsa": {**SMALL, **DEEPSEEK, **LATENT, **INDEXER, "indexer_types": ["full", "full", "shared", "full"]},
    "deepseek_v32": {**SMALL, **DEEPSEEK, **LATENT, **INDEXER},
    "minimax_m3_vl_text": {**SMALL, **HEADS, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
                           "dense_intermediate_size": 40, "shared_intermediate_size": 24, "index_n_heads": 2,
                           "index_head_dim": 12, "index_block_size": 4, "index_topk_blocks": 2, "rotary_dim": 8,
                           "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
                           "layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "kolibri1": {**SMALL, **HEADS, **EXPERTS, "num_local_experts": 8, "head_dim": 16, "sliding_window": 500,
                 "shared_expert_intermediate_size": 24},
    "inkling_text": {**SMALL, **HEADS, "head_dim": 12, "swa_num_attention_heads": 6, "swa_num_key_value_heads": 3,
                     "swa_head_dim": 8, "sliding_window_size": 500, "d_rel": 4, "rel_extent": 64,
                     "local_layer_ids": [0, 2], "mlp_layer_types": ["dense", "sparse", "sparse", "dense"],
                     "moe_intermediate_size": 24, "n_routed_experts": 8, "num_experts_per_tok": 2},
    "inkling2_text": {**SMALL, **HEADS, "intermediate_size": 24, "moe_intermediate_size": 24, "head_dim": 12,
                      "swa_num_attention_heads": 6, "swa_num_key_value_heads": 3, "swa_head_dim": 8,
                      "sliding_window_size": 500, "d_rel": 4, "rel_extent": 64, "n_routed_experts": 8,
                      "num_experts_per_tok": 2, "n_layers_per_attn_res_block": 2,
                      "layer_types": ["hybrid", "hybrid_sliding", "hybrid_sliding", "hybrid"]},
    "qwen4_exp_text": {**SMALL, **HEADS, **EXPERTS, **DELTA, "num_experts": 8, "head_dim": 16, "hc_lowrank": 5,
                       "shared_expert_intermediate_size": 40, "layer_types": [*MIXED_TYPES[:3], "indexed_attention"],
                       "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 24, "indexer_budget": 64,
                       "indexer_compress_ratio": 4, "ple_layer_ids": [1, 2], "ngram_vocab_size_base": 1000},
    "glm5_next_text": {**SMALL, **DEEPSEEK, **LATENT, **INDEXER, "qk_rope_head_dim": 0, "linear_num_heads": 4,
                       "linear_head_dim": 16, "index_kpool": 4, "index_topk_pattern": "FSFF",
                       "layer_types": ["indexed_attention"] * 2 + ["linear_attention", "indexed_attention"]},
    "zaya": {**SMALL, **HEADS, **EXPERTS, "num_experts": 8, "head_dim": 16, "router_hidden_size": 12,
             "sliding_window": 500, "layer_types": ["hybrid", "hybrid_sliding", "hybrid", "hybrid"],
             "cca_time0": 3, "num_experts_per_tok": 1},
    "jetmoe": {**SMALL, "num_key_value_heads": 4, "kv_channels": 16, "num_local_experts": 4,
               "num_experts_per_tok": 2},
    "hrm_text": {**SMALL, "num_attention_heads": 4, "head_dim": 12, "num_hidden_layers": 2, "H_cycles": 2,
                 "L_cycles": 3},
    "dots3_note_text": {**SMALL, **DEEPSEEK, **LATENT, **INDEXER, "shared_experts_intermediate_size": 24,
                        "sliding_window": 500, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2,
                        "swa_kv_lora_rank": 20, "swa_q_lora_rank": 12, "swa_qk_nope_head_dim": 12,
                        "swa_v_head_dim": 8, "swa_head_dim": 16,
                        "layer_types": ["full_attention", "sliding_attention", "full_attention", "full_attention"]},
    "cohere_compass_text": {**SMALL, **HEADS, "sliding_window": 500, "rope_parameters": COMPASS_ROPE,
                            "layer_types": ["full_attention", "sliding_attention"] * 2},
    "muse_glimmer_text": {**SMALL, **HEADS, "head_dim": 12, "sliding_window": 500},
    "modernbert-decoder": {**SMALL, "num_attention_heads": 4, "local_attention": 1000, "norm_bias": True},
}  # fmt: skip
TURNED_OVER = ("attention_bias", "mlp_bias", "use_bias", "conv_bias", "use_conv_bias", "mamba_conv_bias",
               "mamba_proj_bias", "projectors_bias", "mamba_rms_norm", "add_bias_linear", "use_qk_norm",
               "use_sandwich_norm", "norm_bias", "classifier_bias", "use_attention_gate",
               "use_shared_attention_adapter")  # fmt: skip
"""Flags that may add weights; each is turned over by itself."""


def config_of(model_type, **more):
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type](**{**MODELS[model_type], **more})


BARE = {"glm5_next_text": "Glm5NextTextModel", "muse_glimmer_text": "MuseGlimmerTextModel"}
"""Their class with a head holds encoders as well."""
WITH_GATES, INDEXERS = ("glm5_next_text",), 2
"""Its indexers pool keys; the class keeps the gate of each key, and a flag, beside it."""


def built(config, *, meta):
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    made = AutoModel if config.model_type in BARE else AutoModelForCausalLM
    with contextlib.redirect_stdout(io.StringIO()), torch.device("meta" if meta else "cpu"):
        return made.from_config(config).eval()


def spec_of(config):
    named = {"architectures": [BARE[config.model_type]]} if config.model_type in BARE else {}
    return spec_from_config({**config.to_dict(), **named}, name=config.model_type, source=config.model_type)


def held(cache):
    """(elements of K, V or latents, elements of an indexer, elements of states) in a cache."""
    tokens = index = states = 0
    for layer in cache.layers:
        for name, value in vars(layer).items():
            tensors = [*value.values()] if isinstance(value, dict) else (value,)
            n = sum(t.numel() for t in tensors if hasattr(t, "numel"))
            if "state" in name:
                states += n
            elif ("index" in name and "position" not in name) or name == "idx_keys":
                index += n
            elif name in ("keys", "values"):
                tokens += n
    states += sum(state.numel() for state in getattr(cache, "linear_cache", []) if hasattr(state, "numel"))
    return tokens, index, states


def measured(model, n_tokens):
    import torch

    ids = torch.randint(3, 100, (1, n_tokens))
    with torch.no_grad():
        out = model(ids, use_cache=True)
    cache = out.past_key_values if "past_key_values" in out else out.cache_params
    return held(cache)


@pytest.mark.parametrize("model_type", MODELS)
def test_cache_and_parameters_of_the_running_class(model_type):
    config = config_of(model_type)
    model, ours = built(config, meta=False), spec_of(config)
    assert parameters(ours).total == sum(p.numel() for p in model.parameters())
    short, long = measured(model, 16), measured(model, 32)
    tokens = cache_elements(ours).per_token if ours.layers else 2 * ours.n_layers * ours.n_kv_heads * ours.head_dim
    index = index_elements(ours) if model_type not in WITH_GATES else 2 * index_elements(ours) + INDEXERS
    assert (tokens, index) == tuple((long[i] - short[i]) / 16 for i in (0, 1))
    assert state_elements(ours) == long[2] == short[2]


@pytest.mark.parametrize("model_type", MODELS)
def test_flags_and_ties(model_type):
    plain = config_of(model_type).to_dict()
    flags = [key for key in TURNED_OVER if isinstance(plain.get(key), bool)]
    wrong = {}
    for key in flags:
        config = config_of(model_type, **{key: not plain[key]})
        try:
            ours = parameters(spec_of(config)).total
        except SourceError:
            continue
        model = built(config, meta=True)
        if (theirs := sum(p.numel() for p in model.parameters())) != ours:
            wrong[key] = ours - theirs
    assert not wrong


def test_recurrent_gemma_keeps_its_states_in_the_modules():
    import torch
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING["recurrent_gemma"](**SMALL, **HEADS, lru_width=48, attention_window_size=500)
    model, ours = built(config, meta=False), spec_of(config)
    with torch.no_grad():
        model(torch.randint(3, 100, (1, 16)), use_cache=True)
    states = [
        state.numel()
        for module in model.modules()
        for state in (getattr(module, "conv1d_state", None), getattr(module, "recurrent_states", None))
        if state is not None
    ]
    assert parameters(ours).total == sum(p.numel() for p in model.parameters())
    assert state_elements(ours) == sum(states) == 3 * 48 * 4
    assert cache_elements(ours).windowed == {500: 2 * 2 * 16}


def test_rwkv_keeps_five_vectors_per_layer():
    import torch
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING["rwkv"](vocab_size=128, hidden_size=64, num_hidden_layers=3)
    model, ours = built(config, meta=False), spec_of(config)
    with torch.no_grad():
        state = model(torch.randint(3, 100, (1, 16)), use_cache=True).state
    assert parameters(ours).total == sum(p.numel() for p in model.parameters())
    assert state_elements(ours) == sum(part.numel() for part in state) == 3 * 5 * 64
    assert cache_elements(ours).per_token == 0


def test_longcat_but_for_the_identities():
    """The class has room for gate and up of experts that are identities; checkpoints (560 B) have none for them."""
    from transformers import CONFIG_MAPPING

    sizes = {**SMALL, **EQUAL_HEADS, **LATENT, "num_layers": 3, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 24}
    del sizes["num_hidden_layers"], sizes["intermediate_size"]
    config = CONFIG_MAPPING["longcat_flash"](**sizes, n_routed_experts=8, zero_expert_num=4, moe_topk=3, head_dim=8)
    model, ours = built(config, meta=False), spec_of(config)
    room = 3 * 4 * 2 * 24 * 64
    assert parameters(ours).total == sum(p.numel() for p in model.parameters()) - room
    short, long = measured(model, 16), measured(model, 32)
    assert cache_elements(ours).latent == (long[0] - short[0]) / 16 == 3 * 2 * (16 + 8)
    assert ours.n_layers == 3


def test_every_kind_of_part_is_tried():
    kinds = {
        part.kind
        for model_type in MODELS
        for layer in spec_of(config_of(model_type)).layers
        for part in itertools.chain(layer.mixers, layer.feed_forwards)
    }
    assert kinds >= {"latent", "mamba1", "mamba2", "gated_delta", "kimi_delta", "conv", "experts", "dense", "stated"}
