"""Every decoder class of transformers that the reader answers, built on the meta device: the same parameter count.

A class that the reader refuses is no failure (it is named, never guessed), but the number it answers may not fall.
"""

import contextlib
import gc
import io

import pytest

from calc.errors import SourceError
from calc.params import parameters
from calc.sources.hf import spec_from_config

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MULTIMODAL = ("beam", "fuyu", "got_ocr2", "gemma3", "moss_transcribe_diarize", "llama4", "gemma4_unified")
"""Their causal class holds encoders as well, which the reader leaves out and says so."""


def decoders():
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in MULTIMODAL]


def parameters_of_class(model_type):
    """(config, parameters) of the class's own default config; None where it cannot be built."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    try:
        config = CONFIG_MAPPING[model_type]()
        with contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # a class whose defaults do not fit together, or that needs another package
        return None
    total = sum(parameter.numel() for parameter in model.parameters())
    del model
    gc.collect()
    return config, total


def test_every_class_that_is_answered_is_exact():
    exact, wrong = [], {}
    for model_type in decoders():
        built = parameters_of_class(model_type)
        if built is None:
            continue
        config, total = built
        if config.is_encoder_decoder or not getattr(config, "is_decoder", True):
            continue
        try:
            ours = parameters(spec_from_config(config.to_dict(), name=model_type, source=model_type)).total
        except SourceError:
            continue
        if ours == total:
            exact.append(model_type)
        else:
            wrong[model_type] = ours - total
    assert not wrong
    assert len(exact) >= 85
