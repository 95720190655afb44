"""Encoders and projectors: published models by hand or by transformers' classes, and every class on the meta device."""

import contextlib
import io
import json
from dataclasses import replace

import pytest

from calc.commands.memory import memory_document
from calc.fit.memory import memory_report
from calc.hf import spec_from_config
from calc.hf.projectors import MODELS, encoder_params
from calc.model.count import parameters
from calc.model.edit import edit
from calc.model.study import Study
from calc.sources.catalog import find_device

SIGLIP = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "image_size": 896, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
GEMMA3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "sliding_window": 1024,
    },
    "vision_config": SIGLIP,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip


class TestByHand:
    def test_gemma_3_4b(self):
        """416.9 M of SigLIP (27 layers, 4,096 places) and 2.95 M of the projector: 4.30 B with the text model."""
        h, inner = 1152, 4304
        layer = 4 * h * (h + 1) + inner * (h + 1) + h * (inner + 1) + 4 * h
        tower = h * (3 * 14 * 14 + 1) + 64 * 64 * h + 27 * layer + 2 * h
        assert encoder_params(GEMMA3_4B, 2560) == tower + h * 2560 + h == 419_816_304

    def test_llava_1_5_7b(self):
        """CLIP ViT-L/14 at 336: 303.5 M; 21.0 M of the projector."""
        h = 1024
        layer = 4 * h * (h + 1) + 4096 * (h + 1) + h * 4097 + 4 * h
        tower = h + 588 * h + 577 * h + 24 * layer + 4 * h
        config = {"model_type": "llava", "vision_config": CLIP, "text_config": {}}
        assert encoder_params(config, 4096) == tower + 4096 * (h + 1) + 4096 * 4097 == 324_487_168

    def test_qwen2_5_vl_7b(self):
        """Published: 8.29 B, of which 7.62 B are the text model."""
        vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
        config = {"model_type": "qwen2_5_vl", "vision_config": vision}
        assert encoder_params(config, 3584) == 676_550_144
        assert 7_615_616_512 + 676_550_144 == 8_292_166_656


class TestWhereItIsShown:
    model = spec_from_config(GEMMA3_4B, name="gemma", source="gemma")

    def test_the_text_model_stays_what_it_was(self):
        assert parameters(self.model).total == 3_880_263_168
        assert self.model.encoder_params == 419_816_304
        assert any("another 419,816,304 parameters (839,632,608 B in 16 bits)" in note for note in self.model.notes)

    def test_json(self):
        study = Study(model=self.model, device=find_device("h100-sxm"))
        found = json.loads(json.dumps(memory_document(memory_report(study))))["parameters"]
        assert found["encoders"] == {"parameters": 419_816_304, "bytes": 839_632_608}
        assert found["total"] == 3_880_263_168

    def test_an_edited_model_keeps_them(self):
        plain = {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
        plain |= {"num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064}
        model = spec_from_config(
            {"model_type": "llava", "text_config": plain, "vision_config": CLIP}, name="m", source="m"
        )
        assert edit(model, n_layers=16).encoder_params == model.encoder_params == 324_487_168


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma3n", "vision_config": {}},
        {"model_type": "kimi_k3", "vision_config": {"vt_hidden_size": 1024}},
        {"model_type": "gemma3", "vision_config": {"model_type": "something_else"}},
        {"model_type": "gemma3", "vision_config": SIGLIP | {"hidden_size": "x"}},
        {"model_type": "gemma3", "vision_config": SIGLIP | {"image_size": 0}},
        {"model_type": "gemma3", "vision_config": None},
        {"model_type": "gemma3"},
        {"model_type": "internvl", "downsample_ratio": 0.25, "vision_config": {}},
    ],
)
def test_what_is_not_determined_is_not_counted(config):
    assert encoder_params(config, 2560) is None


def test_what_is_not_known_is_said():
    model = spec_from_config(GEMMA3_4B | {"vision_config": {"model_type": "other"}}, name="m", source="m")
    assert model.encoder_params == 0
    assert any("the sizes of its image or audio encoders are not known" in note for note in model.notes)


def test_a_head_that_is_said_in_two_ways_is_noted():
    inner = {**GEMMA3_4B["text_config"], "tie_word_embeddings": True}
    model = spec_from_config({**GEMMA3_4B, "text_config": inner, "tie_word_embeddings": False}, name="m", source="m")
    said = "tie_word_embeddings is false, but text_config says true: true is used"
    assert model.tied
    assert said in model.notes
    assert said not in spec_from_config({**GEMMA3_4B, "text_config": inner}, name="m", source="m").notes


VARIED = {
    "gemma3": [{"vision_config": SIGLIP, "text_config": {"hidden_size": 2560, "num_hidden_layers": 2}}],
    "qwen2_vl": [{"vision_config": {"depth": 3, "embed_dim": 640, "hidden_size": 1536, "mlp_ratio": 4}}],
    "qwen2_5_vl": [{"vision_config": {"depth": 3, "hidden_size": 1280, "out_hidden_size": 2048}}],
    "qwen3_vl": [{"vision_config": {"hidden_size": 1024, "depth": 4, "deepstack_visual_indexes": [1, 2]}}],
    "gemma4": [
        {"vision_config": {"hidden_size": 1152, "num_hidden_layers": 5, "num_attention_heads": 16, "head_dim": 72,
                           "num_key_value_heads": 16}},
        {"vision_config": {}, "audio_config": {"hidden_size": 512}},
    ],
    "gemma4_unified": [
        {"vision_config": {"mm_embed_dim": 512, "output_proj_dims": 512, "mm_posemb_size": 100, "patch_size": 8},
         "audio_config": {"audio_embed_dim": 320, "output_proj_dims": 320}},
        {"vision_config": {}},
    ],
    "qwen4_exp": [{"vision_config": {"depth": 3, "out_hidden_size": 512}, "text_config": {
        "num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2, "num_experts": 16}}],
    "cohere_compass": [{"vision_config": {"depth": 4, "deepstack_visual_indexes": [1]}, "text_config": {
        "num_hidden_layers": 2, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}}}],
    "llava": [{"vision_feature_layer": [-2, -5]}, {"vision_config": {"model_type": "pixtral", "patch_size": 16}}],
    "llava_next": [{"vision_config": {"model_type": "siglip_vision_model"}, "multimodal_projector_bias": False}],
    "mistral3": [{"spatial_merge_size": 3, "multimodal_projector_bias": True}],
    "internvl": [
        {"vision_config": {"hidden_size": 3200, "num_attention_heads": 25, "use_qk_norm": True, "num_hidden_layers": 3,
                           "norm_type": "rms_norm", "intermediate_size": 12800}},
        {"vision_config": {"attention_bias": True}},
    ],
    "llama4": [{"vision_config": {"hidden_size": 1408, "image_size": 336, "vision_output_dim": 4096}}],
    "mllama": [{"vision_config": {"image_size": 560, "num_hidden_layers": 3}}],
    "glm4v": [{"vision_config": {"attention_bias": True, "out_hidden_size": 2048, "depth": 3}}],
    "smolvlm": [{"vision_config": {"hidden_size": 768, "image_size": 512, "patch_size": 16}, "scale_factor": 4}],
    "voxtral": [{"audio_config": {"hidden_size": 640, "intermediate_size": 2560, "num_attention_heads": 10}}],
    "cohere2_vision": [{"alignment_intermediate_size": 1024, "downsample_factor": 3}],
    "kimi_k25": [{"vision_config": {"num_hidden_layers": 3}}],
    "minimax_m3_vl": [{"projector_hidden_size": 1024, "vision_config": {"num_hidden_layers": 3}}],
}  # fmt: skip
"""Changes of a class's default config, each on its own."""
NOT_BY_DEFAULT = ("gemma4", "gemma4_unified", "qwen4_exp", "cohere_compass")
"""Their default config has no encoder, or no class can be built from it."""
NO_CLASS = frozenset(("internvl_chat",))
"""Types that transformers has no class for."""


def built(model_type, config):
    """Parameters of all that is no text model, of the class on the meta device."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto

    names = {
        **modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    with quiet[0], quiet[1], torch.device("meta"):
        model = getattr(transformers, names[model_type])(config)
    text = ("language_model", "lm_head", "text_model")
    return sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in text))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", sorted(set(MODELS) - NO_CLASS))
def test_every_model_is_as_its_class(model_type):
    from transformers import CONFIG_MAPPING

    plain = [] if model_type in NOT_BY_DEFAULT else [{}]
    for changes in [*plain, *VARIED.get(model_type, [])]:
        config = CONFIG_MAPPING[model_type](**changes)
        written = json.loads(json.dumps(config.to_dict(), default=str))
        assert encoder_params(written, config.get_text_config().hidden_size) == built(model_type, config), changes


def test_a_server_loads_them_once(tmp_path):
    """An index of files has them in already."""
    from calc.model.storage import FORMATS
    from calc.model.stored_format import stored_format
    from calc.servers.facts import facts_from_config
    from calc.servers.weights import stage_weight_bytes
    from calc.sources import load_model

    (tmp_path / "config.json").write_text(json.dumps(GEMMA3_4B))
    plain = load_model(str(tmp_path))
    of_text = 2 * parameters(plain).total
    index = {"metadata": {"total_size": of_text + 839_632_608}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    indexed = load_model(str(tmp_path))
    facts = facts_from_config(GEMMA3_4B)

    def loaded(model, weight_format):
        return stage_weight_bytes(model, weight_format, tp=1, stage=(0, model.n_layers), plain=2, facts=facts)

    without = loaded(replace(plain, encoder_params=1), FORMATS["bf16"])
    assert loaded(plain, FORMATS["bf16"]) - without == pytest.approx(839_632_608, abs=4)
    assert loaded(indexed, stored_format(indexed)) == pytest.approx(loaded(plain, FORMATS["bf16"]), rel=0.02)
