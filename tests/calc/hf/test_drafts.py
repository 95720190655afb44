"""Draft heads: totals of SpecForge's own classes on the meta device (its 45 public configs, commit a6b6b02, without
the embedding, which its checkpoints leave to the target), the pieces by hand, and what is refused."""

import json

import pytest

from calc.errors import SourceError
from calc.hf import spec_from_config
from calc.model.cache import cache_elements
from calc.model.count import model_tensors, parameters
from calc.model.layers import layers_document, layers_from_document

KEYS = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size")


def draft(architecture, sizes, vocab, model_type="llama", **more):
    """From "layers heads kv_heads hidden inner"."""
    config = {"architectures": [architecture], "model_type": model_type, "vocab_size": vocab, **more}
    config |= dict(zip(KEYS, map(int, sizes.split()), strict=True))
    return {"rms_norm_eps": 1e-5, "tie_word_embeddings": False, **config}


def total(config):
    spec = spec_from_config(config, name="m", source="m")
    assert sum(tensor.params for tensor in model_tensors(spec)) == parameters(spec).total
    return parameters(spec).total


def eagle3(sizes, vocab, rows=32_000, **more):
    return draft("LlamaForCausalLMEagle3", sizes, vocab, draft_vocab_size=rows, **more)


def block(architecture, sizes, vocab, layers=(1, 9, 17, 25, 33), **own):
    more = {"dflash_config": {"target_layer_ids": list(layers), "mask_token_id": 1, **own}, "block_size": 16}
    return draft(architecture, sizes, vocab, "qwen3", head_dim=128, num_target_layers=36, **more)


DSPARK = {"projector_type": "dspark", "markov_rank": 256, "enable_confidence_head": True}
DSPARK |= {"confidence_head_with_markov": True, "attention_mode": "gqa", "markov_head_type": "vanilla"}
DOMINO = {"projector_type": "domino", "emb_dim": 256, "gru_hidden_dim": 1024}
QWEN3_8B = "5 32 8 4096 12288"
SPECFORGE = {
    "llama3-8B-eagle3": (eagle3("1 32 8 4096 14336", 128_256), 424_689_664),
    "llama3-70B-eagle3": (eagle3("1 64 8 8192 28672", 128_256), 1_403_027_456),
    "deepseek-v3-671b-eagle3": (
        eagle3("1 56 8 7168 40960", 129_280, eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 29, 57]}),
        1_447_849_984,
    ),
    "gpt-oss-20B-eagle3": (eagle3("1 64 8 2880 17280", 201_088, head_dim=64), 307_641_600),
    "phi4-eagle3": (eagle3("1 40 10 5120 17920", 100_352, model_type="phi3"), 622_612_480),
    "qwq-32B-eagle3": (eagle3("1 40 8 5120 27648", 152_064, model_type="qwen2"), 766_791_680),
    "qwen3-30B-A3B-eagle3": (eagle3("1 32 4 2048 12288", 151_936, head_dim=128), 182_984_704),
    "qwen3-30B-A3B-eagle3.1": (eagle3("1 32 4 2048 12288", 151_936, head_dim=128, fc_norm=True), 182_990_848),
    "longcat-flash-eagle3": (eagle3("1 64 16 6144 12288", 131_072, 131_072, head_dim=128), 1_346_396_160),
    "qwen3-8b-peagle": (
        draft("PEagleDraftModel", QWEN3_8B.replace("5", "4"), 151_936, head_dim=128, draft_vocab_size=32_000),
        978_374_656,
    ),
    "qwen3-8b-dflash": (block("DFlashDraftModel", QWEN3_8B, 151_936), 1_048_626_432),
    "qwen3-8b-domino": (block("DominoDraftModel", QWEN3_8B, 151_936, **DOMINO), 1_104_561_408),
    "qwen3-8b-dspark": (block("DSparkDraftModel", QWEN3_8B, 151_936, **DSPARK), 1_126_422_017),
}


@pytest.mark.parametrize("name", SPECFORGE)
def test_as_specforge_builds_it(name):
    config, expected = SPECFORGE[name]
    assert total(config) == expected


H, V, FFN = 4096, 128_256, 14_336
LAYER = 2 * H * (H + 1024) + 3 * H * FFN + 2 * H
"""A layer of Llama-3-8B."""
EAGLE3 = LAYER + (H + 2048) * H + H + 3 * H * H + H
"""Its first layer reads the embedding as well, a third norm, fc from three hidden states, a last norm."""


class TestByHand:
    sizes = "1 32 8 4096 14336"

    def test_the_official_configs_name_an_ordinary_class(self):
        assert total(draft("LlamaForCausalLM", self.sizes, V, draft_vocab_size=32_000)) == EAGLE3 + 32_000 * H

    def test_without_a_draft_vocabulary_the_head_has_every_token(self):
        assert total(draft("Eagle3LlamaForCausalLM", self.sizes, V)) == EAGLE3 + V * H

    def test_a_narrower_draft_embeds_by_itself(self):
        config = eagle3(self.sizes, V, target_hidden_size=8192)
        assert total(config) == EAGLE3 + 3 * H * H + 32_000 * H + V * H

    def test_hidden_states_that_are_not_combined(self):
        config = eagle3(self.sizes, V, eagle_config={"use_aux_hidden_state": False})
        assert total(config) == EAGLE3 - 3 * H * H + 32_000 * H

    def test_more_layers_are_plain_ones(self):
        assert total(eagle3("3 32 8 4096 14336", V)) == EAGLE3 + 2 * LAYER + 32_000 * H

    def test_latent_attention(self):
        """deepseek_eagle3.py of vLLM: both projections into a latent read the embedding as well."""
        more = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
        config = draft("Eagle3DeepseekV2ForCausalLM", "1 64 64 7168 18432", 163_840, "deepseek_v3", v_head_dim=128)
        config |= more | {"draft_vocab_size": 163_840}
        h, queries = 7168, 64 * 192
        latent = 2 * h * (1536 + 576) + 1536 * (queries + 1) + 512 + 512 * 64 * 256 + 64 * 128 * h
        assert total(config) == latent + 3 * h * 18_432 + 3 * h + 3 * h * h + h + 163_840 * h

    def test_speculators_hold_a_copy_of_the_embedding(self):
        layer = draft("", self.sizes, V)
        layer.pop("architectures")
        config = {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3", "draft_vocab_size": 32_000}
        config |= {"transformer_layer_config": layer, "speculators_config": {"proposal_methods": []}}
        assert total(config) == EAGLE3 + 32_000 * H + V * H

    @pytest.mark.parametrize(
        ("name", "bias"), [("EagleLlamaForCausalLM", 0), ("LlamaForCausalLMEagle", H), ("EAGLEModel", 0)]
    )
    def test_eagle(self, name, bias):
        """One norm less than a layer, fc from two hidden sizes, embedding and head of the target."""
        assert total(draft(name, self.sizes, V)) == LAYER - H + 2 * H * H + bias

    def test_vllm_keeps_eagles_layers_in_a_section(self):
        layer = draft("", self.sizes, V)
        assert total({"model_type": "eagle", "model": layer | {"architectures": ["LlamaForCausalLM"]}}) == (
            LAYER - H + 2 * H * H
        )

    @pytest.mark.parametrize(("kind", "more"), [("gated", 256 * (H + 257)), ("rnn", 3 * 256 * (512 + H + 1))])
    def test_markov_heads(self, kind, more):
        plain = block("DSparkDraftModel", QWEN3_8B, 151_936, **DSPARK)
        other = block("DSparkDraftModel", QWEN3_8B, 151_936, **DSPARK | {"markov_head_type": kind})
        assert total(other) - total(plain) == more

    def test_prediction_layer_of_deepseek_v3(self):
        """README of DeepSeek-V3: 11.5B of its own; a layer with experts, eh_proj, three norms."""
        latent = {"kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
        config = draft("DeepseekV3ForCausalLMNextN", "1 128 128 7168 18432", 129_280, "deepseek_v3", v_head_dim=128)
        config |= latent | {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8}
        config |= {"moe_intermediate_size": 2048, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1}
        h = 7168
        experts = 257 * 3 * h * 2048 + 256 * h
        assert total(config) == 187_107_328 + experts + 2 * h + 2 * h * h + 2 * h + h


class TestWhatIsSaid:
    def test_notes(self):
        notes = spec_from_config(SPECFORGE["llama3-8B-eagle3"][0], name="m", source="m").notes
        assert any("a draft head for speculative decoding (EAGLE-3), not a complete model" in note for note in notes)
        assert any("another 525,336,576 parameters" in note for note in notes)
        assert any("take another 384,256 B" in note for note in notes)

    def test_its_cache_is_that_of_its_layers(self):
        spec = spec_from_config(SPECFORGE["llama3-8B-eagle3"][0], name="m", source="m")
        assert cache_elements(spec).per_token == 2 * 8 * 128
        assert layers_from_document(layers_document(spec.layers)) == spec.layers

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"architectures": ["MedusaModel"], "model_type": "medusa"}, "MedusaModel"),
            ({"model_type": "mlp_speculator", "architectures": ["MLPSpeculatorPreTrainedModel"]}, "a complete model"),
            ({"model_type": "gemma4_unified_assistant", "num_hidden_layers": 4}, "gemma4_unified_assistant"),
            (draft("Qwen3NextMTP", "1 16 2 2048 512", 151_936, "qwen3_next"), "not known"),
            (eagle3("1 32 8 4096 14336", 128_256) | {"hidden_size": None}, "hidden_size missing"),
        ],
    )  # fmt: skip
    def test_refused(self, config, words):
        with pytest.raises(SourceError, match=words):
            spec_from_config(config, name="m", source="m")

    def test_a_vision_model_that_is_called_eagle_is_whole(self):
        config = draft("Eagle2_5_VLForConditionalGeneration", "2 32 8 4096 14336", V)
        assert total(config) == 2 * LAYER + 2 * V * H + H


@pytest.mark.parametrize("policy", ["equal-split", "replicated", "vllm", "sglang", "llamacpp"])
@pytest.mark.parametrize("name", ["llama3-8B-eagle3", "qwen3-8b-dspark"])
def test_every_policy_answers(name, policy, tmp_path, capsys):
    """A model without an embedding, and one without a head besides."""
    from calc.__main__ import main

    file = tmp_path / "config.json"
    file.write_text(json.dumps(SPECFORGE[name][0]))
    assert main(["memory", "--model", str(file), "--device", "h100-sxm", "--policy", policy, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["total"] == SPECFORGE[name][1]
