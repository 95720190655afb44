"""Classes that are no language model: their head by hand, and against transformers' classes on the meta device."""

import pytest

from calc.hf import spec_from_config
from calc.model.cache import cache_elements
from calc.model.count import model_tensors, parameters

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05, "tie_word_embeddings": False,
}  # fmt: skip
BODY = 8_030_261_248 - 128_256 * 4096
"""Llama-3-8B without its head."""


def model(architecture, **changed):
    config = {**LLAMA_8B, "architectures": [architecture], **changed}
    return spec_from_config(config, name="m", source="m")


HEADS = {
    "a language model": ("LlamaForCausalLM", {}, BODY + 128_256 * 4096),
    "one label": ("LlamaForSequenceClassification", {"num_labels": 1}, BODY + 4096),
    "labels by name": ("LlamaForSequenceClassification", {"id2label": {"0": "a", "1": "b", "2": "c"}}, BODY + 3 * 4096),
    "labels of the class": ("LlamaForSequenceClassification", {}, BODY + 2 * 4096),
    "tied": ("LlamaForSequenceClassification", {"num_labels": 1, "tie_word_embeddings": True}, BODY + 4096),
    "tokens": ("LlamaForTokenClassification", {"num_labels": 5}, BODY + 5 * 4097),
    "questions": ("LlamaForQuestionAnswering", {}, BODY + 2 * 4097),
    "bare": ("LlamaModel", {}, BODY),
    "bidirectional": ("LlamaBidirectionalModel", {}, BODY),
    "an embedding model": ("NVEmbedModel", {}, BODY),
    "Qwen2.5-Math-RM": ("Qwen2ForRewardModel", {}, BODY + 4096 * 4097 + 4097),
    "Qwen2.5-Math-PRM": ("Qwen2ForProcessRewardModel", {}, BODY + 4096 * 4097 + 2 * 4097),
    "InternLM2-Reward": ("InternLM2ForRewardModel", {}, BODY + 4096),
    "another reward model": ("LlamaForRewardModel", {}, BODY),
    "ChatGLM's whole model": ("ChatGLMModel", {}, BODY + 128_256 * 4096),
}


@pytest.mark.parametrize("name", HEADS)
def test_head(name):
    architecture, changed, total = HEADS[name]
    spec = model(architecture, **changed)
    assert parameters(spec).total == total == sum(tensor.params for tensor in model_tensors(spec))
    assert parameters(spec).components["head"] + BODY + spec.other_params == total
    assert cache_elements(spec).per_token == 65_536


def test_notes_say_what_the_class_is():
    assert any(
        "a classifier with a head of 1 row" in note for note in model(*HEADS["one label"][:1], num_labels=1).notes
    )
    assert any("num_labels is not in the config: 2" in note for note in model("LlamaForSequenceClassification").notes)
    assert any("its score head is unknown" in note for note in model("LlamaForRewardModel").notes)
    assert any("kvscope does not know" in note for note in model("LlamaForSomethingElse").notes)
    assert not any("architectures" in note for note in model("LlamaForCausalLM").notes)


@pytest.mark.parametrize(
    ("architecture", "model_type"),
    [
        ("LlamaForCausalLM", "llama"), ("LlamaForSequenceClassification", "llama"), ("Qwen3MoeModel", "qwen3_moe"),
        ("RWForCausalLM", "falcon"), ("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),
        ("DeepseekV2ForCausalLM", "deepseek_v2"), ("Qwen3_5MoeForCausalLM", "qwen3_5_moe"),
    ],
)  # fmt: skip
def test_the_type_of_a_class(architecture, model_type):
    from calc.hf.build import _type_of_class

    assert _type_of_class([architecture]) == model_type


DEEPSEEK_OCR = {
    "model_type": "deepseek_vl_v2",
    "architectures": ["DeepseekOCRForCausalLM"],
    "language_config": {
        "architectures": ["DeepseekV2ForCausalLM"], "hidden_size": 1280, "intermediate_size": 6848,
        "kv_lora_rank": None, "q_lora_rank": None, "max_position_embeddings": 8192, "moe_intermediate_size": 896,
        "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "num_attention_heads": 10,
        "num_experts_per_tok": 6, "num_hidden_layers": 12, "num_key_value_heads": 10, "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0, "topk_group": 1, "use_mla": False, "v_head_dim": 0, "vocab_size": 129280,
        "first_k_dense_replace": 1,
    },
}  # fmt: skip


def test_a_language_model_that_only_its_class_names():
    """12 layers of plain attention (4 h^2), one dense, 11 with 66 experts of 896 and a router; two norms each."""
    spec = spec_from_config(DEEPSEEK_OCR, name="m", source="m")
    h = 1280
    by_hand = 2 * 129_280 * h + 12 * (4 * h * h + 2 * h) + 3 * h * 6848 + 11 * (66 * 3 * h * 896 + 64 * h) + h
    assert parameters(spec).total == by_hand == 2_934_734_080
    assert cache_elements(spec).full == 12 * 2 * 10 * 128


LATENT = {"use_mla": True, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}


def test_the_same_config_with_latent_attention():
    config = DEEPSEEK_OCR | {"language_config": DEEPSEEK_OCR["language_config"] | LATENT}
    assert cache_elements(spec_from_config(config, name="m", source="m")).latent == 12 * 576
