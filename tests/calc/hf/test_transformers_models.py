"""Every decoder class of transformers that the reader answers, built on the meta device: parameters and cache.

A class that the reader refuses is no failure (it is named, never guessed), but the number it answers may not fall.
"""

import contextlib
import io

import pytest

from calc.errors import SourceError
from calc.hf import spec_from_config
from calc.model.cache import cache_elements
from calc.model.count import parameters

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MULTIMODAL = ("beam", "fuyu", "got_ocr2", "gemma3", "moss_transcribe_diarize", "llama4", "gemma4_unified")
"""Their causal class holds encoders as well, which the reader leaves out and says so."""
ELSEWISE = {
    "phi4_multimodal": "holds encoders as well",
    "longcat_flash": "the class makes room for experts that are identities; the published files hold none of it",
}
ROWS_APART = ("deepseek_v4",)
"""Their class keeps rows that are key and value at once, and compressed ones beside them."""
SIZES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
DEPTH = 6
"""Layers that a class is built with: enough for every pattern of layers."""
VARIED = {
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
    "use_bias": True,
    "bias": True,
    "head_dim": 48,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
    "qk_layernorm": True,
    "use_qk_norm": True,
    "use_parallel_residual": True,
    "new_decoder_architecture": True,
    "word_embed_proj_dim": 512,
    "do_layer_norm_before": False,
    "attention_k_eq_v": True,
    "sliding_window": 64,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "n_shared_experts": 2,
    "first_k_dense_replace": 2,
    "decoder_sparse_step": 2,
}
"""Changes of a config; those whose keys a class has are made."""
ODD = {
    "nemotron_h": ("tie_word_embeddings", "attention_bias", "mlp_bias"),
    "afmoe": ("attention_bias",),
    "helium": ("head_dim",),
    "gemma4": ("tie_word_embeddings",),
    "gemma4_unified": ("tie_word_embeddings",),
    "internlm3": ("attention_bias", "mlp_bias", "bias"),
    "zamba": ("tie_word_embeddings",),
    "kimi_linear": ("tie_word_embeddings",),
    "bailing_hybrid": ("tie_word_embeddings",),
}
"""Keys that a class takes no full account of (a bias of all but one projection, say); no published model sets them."""


def decoders():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in MULTIMODAL]


def configured(model_type, changes):
    """The class's config with `changes`; None where they do not fit together, or it is no decoder."""
    from transformers import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[model_type](**changes)
    except Exception:
        return None
    return None if config.is_encoder_decoder or not getattr(config, "is_decoder", True) else config


def built(config):
    """The class on the meta device; None where it cannot be built, for want of another package say."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
    try:
        with quiet[0], quiet[1], torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
            model.tie_weights()
    except Exception:
        return None
    return model


def counted(model):
    return sum(parameter.numel() for parameter in model.parameters())


def cached(model, n_tokens=3):
    """Elements per token in full and in sliding layers after a pass on the meta device; None where none runs there."""
    import torch

    try:
        with torch.device("meta"), torch.no_grad():
            output = model.bfloat16()(torch.zeros((1, n_tokens), dtype=torch.long), use_cache=True)
        layers = output.past_key_values.layers
    except Exception:  # a class that looks at values
        return None
    kinds = {False: 0, True: 0}
    for layer in layers:
        if getattr(layer, "keys", None) is not None:
            kinds[bool(layer.is_sliding)] += (layer.keys.numel() + layer.values.numel()) // n_tokens
    return kinds[False], kinds[True]


def ours(config, name):
    """(parameters, (full, sliding) elements per token); None where the reader refuses the config."""
    try:
        model = spec_from_config(config.to_dict(), name=name, source=name)
    except SourceError:
        return None
    kept = cache_elements(model)
    return parameters(model).total, (kept.full + kept.latent, sum(kept.windowed.values()))


def difference(model_type, changes, *, cache):
    """ "" where the reader agrees with the class, None where either gives no answer."""
    config = configured(model_type, changes)
    answer = None if config is None else ours(config, model_type)
    model = None if answer is None else built(config)
    if model is None:
        return None
    found, kept = counted(model), cached(model) if cache else None
    if answer[0] != found:
        return f"{answer[0] - found:+,} parameters"
    return "" if kept is None or kept == answer[1] else f"cache {answer[1]}, the class keeps {kept}"


def shallow(model_type):
    """A class's default config as written, and the changes that make it DEPTH layers deep at most."""
    from transformers import CONFIG_MAPPING

    try:
        config = CONFIG_MAPPING[model_type]().to_dict()
    except Exception:
        return {}, {}
    deep = {key: min(config[key], DEPTH) for key in SIZES if isinstance(config.get(key), int)}
    layers = next((config[key] for key in deep), 0)
    lists = {key: v[:DEPTH] for key, v in config.items() if isinstance(v, list) and len(v) == layers > DEPTH}
    return config, {**deep, **lists}


def test_every_class_that_is_answered_is_exact():
    names = [model_type for model_type in decoders() if model_type not in ELSEWISE]
    found = {name: difference(name, shallow(name)[1], cache=name not in ROWS_APART) for name in names}
    assert not {model_type: what for model_type, what in found.items() if what}
    assert sum(what == "" for what in found.values()) >= 120


def test_a_changed_config_means_what_it_means_to_the_class():
    wrong, right = {}, 0
    for model_type in decoders():
        config, less = shallow(model_type)
        own = {key: v for key, v in VARIED.items() if key in config and key not in ODD.get(model_type, ())}
        if not own or model_type in ELSEWISE:
            continue
        what = difference(model_type, {**less, **own}, cache=False)
        right += what == ""
        if what:
            wrong[model_type] = what
    assert not wrong
    assert right >= 60


HEADS = ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION", "QUESTION_ANSWERING")
HOLD_MORE = ("qwen3_5", "qwen3_5_moe", "nemotron", "minicpm_ocr", "dots3_note")
"""Their bare or classifying class holds encoders as well, or cannot be built."""


def head_classes():
    """(model_type, class) of all classes of decoders without a head over tokens."""
    from transformers.models.auto import modeling_auto

    names = [f"MODEL_FOR_{head}_MAPPING_NAMES" for head in HEADS] + ["MODEL_MAPPING_NAMES"]
    known = set(decoders()) - {*ELSEWISE, *HOLD_MORE, "mllama", "mllama_text_model"}
    pairs = [pair for name in names for pair in getattr(modeling_auto, name).items()]
    return [(kind, named) for kind, named in pairs if kind in known and isinstance(named, str)]


def test_every_class_without_a_head_over_tokens():
    """Classifiers of sequences and tokens, of answers' places, and the bare models."""
    import torch
    import transformers

    wrong, right = {}, 0
    for model_type, named in head_classes():
        config = configured(model_type, shallow(model_type)[1])
        try:
            spec = spec_from_config({**config.to_dict(), "architectures": [named]}, name=named, source=named)
            quiet = (contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()))
            with quiet[0], quiet[1], torch.device("meta"):
                found = counted(getattr(transformers, named)(config))
        except Exception:  # a config that the reader refuses, or a class that cannot be built
            continue
        right += (difference := parameters(spec).total - found) == 0
        if difference:
            wrong[named] = difference
    assert not wrong
    assert right >= 200
