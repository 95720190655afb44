"""One record for each model_type, one place for each default, and no size that goes unread."""

import json
from pathlib import Path

import pytest

from calc.errors import UnsupportedArchitecture
from calc.hf import architectures, spec_from_config
from calc.hf.architectures import ARCHITECTURES, BY_MODEL_TYPE, LINEAGES
from calc.hf.fallback import NOT_COUNTED, NOT_DECODERS
from calc.hf.unread import NO_SIZE
from calc.model.count import parameters

ROOT = Path(__file__).resolve().parents[3]
CLASSES = json.loads((ROOT / "assets" / "class_defaults.json").read_text())["classes"]
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
}  # fmt: skip
MLA = {
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
EXPERTS = {"num_experts": 8, "num_experts_per_token": 2, "moe_intermediate_size": 512, "moe_layer_freq": 1}
KIMI = LLAMA | MLA | EXPERTS | {
    "model_type": "kimi_linear", "num_hidden_layers": 2, "first_k_dense_replace": 1,
    "linear_attn_config": {"full_attn_layers": [2], "kda_layers": [1], "head_dim": 128, "num_heads": 32,
                           "short_conv_kernel_size": 4},
}  # fmt: skip


def spec(config):
    return spec_from_config(config, name="m", source="m")


class TestRecords:
    def test_a_model_type_has_one_record(self):
        names = [name for record in ARCHITECTURES for name in record.names]
        assert len(names) == len(set(names)) == len(BY_MODEL_TYPE)
        assert not set(names) & (NOT_COUNTED | NOT_DECODERS)

    def test_every_module_of_a_lineage_is_listed(self):
        files = {path.stem for path in Path(architectures.__file__).parent.glob("*.py")} - {"__init__"}
        assert {lineage.__name__.rpartition(".")[2] for lineage in LINEAGES} == files

    def test_a_default_that_transformers_states_is_not_repeated(self):
        for record in ARCHITECTURES:
            of_class = next((CLASSES[name] for name in record.names if name in CLASSES), {})
            assert not set(record.defaults) & set(of_class), record.names


class TestUnreadSizes:
    """What no reader takes account of is refused by name, whether or not the model_type is known."""

    @pytest.mark.parametrize("key", ["memory_vocab_size", "memory_heads", "ssm_state_size", "num_memory_slots"])
    @pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2", "gpt2", "brand_new"])
    def test_refused_for_every_type(self, model_type, key):
        with pytest.raises(UnsupportedArchitecture, match=f"does not know what {key} means"):
            spec({**LLAMA, "model_type": model_type, key: 64})

    def test_several_of_a_known_type(self):
        assert parameters(spec(KIMI)).total > 0
        with pytest.raises(UnsupportedArchitecture, match="memory_heads, routed_memory_size mean"):
            spec(KIMI | {"routed_memory_size": 3584, "memory_heads": 12})

    @pytest.mark.parametrize("key", ["attention_output_gate", "use_attn_sinks", "extra_norm", "output_bias"])
    def test_a_flag_that_adds_a_part(self, key):
        """A gate of each head, say: true it adds weights, false it is what the class has anyway."""
        with pytest.raises(UnsupportedArchitecture, match=f"does not know what {key} means"):
            spec(LLAMA | {key: True})
        assert parameters(spec(LLAMA | {key: False})).total == 8_030_261_248

    def test_a_flag_for_what_the_class_always_has(self):
        sizes = LLAMA | {"model_type": "qwen3", "head_dim": 128}
        assert parameters(spec(sizes | {"use_qk_norm": True})).total == parameters(spec(sizes)).total

    def test_a_flag_of_a_section(self):
        section = KIMI["linear_attn_config"] | {"use_output_gate": True}
        with pytest.raises(UnsupportedArchitecture, match=r"linear_attn_config\.use_output_gate"):
            spec(KIMI | {"linear_attn_config": section})

    def test_a_section_that_nothing_reads(self):
        with pytest.raises(UnsupportedArchitecture, match=r"depth_config\.num_layers"):
            spec(LLAMA | {"depth_config": {"num_layers": 4, "name": "x"}})

    def test_a_key_of_a_section_that_is_read_in_part(self):
        section = KIMI["linear_attn_config"] | {"num_gates": 3}
        with pytest.raises(UnsupportedArchitecture, match=r"linear_attn_config\.num_gates"):
            spec(KIMI | {"linear_attn_config": section})

    @pytest.mark.parametrize("key", sorted(set().union(*NO_SIZE.values())))
    def test_what_says_no_size_changes_nothing(self, key):
        if key in ("n_positions", "n_ctx", "quantization_config", "quantization"):
            return
        assert spec(LLAMA | {key: 2}) == spec(LLAMA)

    @pytest.mark.parametrize("value", [0, None, False, True, "64", 0.5, [], [0, 0], ["full"], {}])
    def test_what_is_no_number_above_zero_is_no_size(self, value):
        assert spec(LLAMA | {"num_memory_slots": value}) == spec(LLAMA)

    def test_encoders_and_token_ids_are_passed_over(self):
        more = {
            "mm_hidden_size": 1024,
            "vision_config": {"hidden_size": 1152},
            "eos_token_id": 2,
            "pad_num_token_id": 3,
        }
        assert parameters(spec(LLAMA | more)).total == 8_030_261_248

    def test_keys_of_experts_mean_nothing_without_experts(self):
        assert spec(LLAMA | EXPERTS | {"num_experts": 0}) == spec(LLAMA)

    def test_latent_attention_without_its_rank_is_refused(self):
        without = {key: value for key, value in MLA.items() if key not in ("kv_lora_rank", "v_head_dim")}
        with pytest.raises(UnsupportedArchitecture, match="qk_nope_head_dim"):
            spec(LLAMA | without | {"model_type": "kimi_k2"})


def test_falcon_under_its_first_name_has_one_norm_per_layer():
    """6,921,720,704: the 7B form of transformers' FalconForCausalLM, whose config first said RefinedWebModel."""
    config = {
        "model_type": "RefinedWebModel", "hidden_size": 4544, "n_layer": 32, "n_head": 71, "multi_query": True,
        "parallel_attn": True, "bias": False, "alibi": False, "vocab_size": 65024, "tie_word_embeddings": True,
    }  # fmt: skip
    assert parameters(spec(config)).total == 6_921_720_704


def test_a_nemotron_without_experts_needs_none_of_their_keys():
    """Its class writes the keys of experts into every config, whatever the pattern."""
    config = LLAMA | {
        "model_type": "nemotron_h", "num_hidden_layers": 3, "hybrid_override_pattern": "*-*", "head_dim": 128,
    }  # fmt: skip
    experts = {"n_routed_experts": 8, "moe_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64}
    state = {"mamba_num_heads": 8, "mamba_head_dim": 64, "n_groups": 8, "ssm_state_size": 128, "conv_kernel": 4}
    assert spec(config | experts | state) == spec(config)
    with pytest.raises(UnsupportedArchitecture, match="memory_heads"):
        spec(config | {"memory_heads": 2})
