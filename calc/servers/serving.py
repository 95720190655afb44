"""The study as a server takes it: the formats that it chooses by itself where none is given."""

from __future__ import annotations

from dataclasses import replace

from calc.model.spec import Study
from calc.model.storage import FORMATS
from calc.servers.records import ServerOptions


def as_served(study: Study, options: ServerOptions, *, weights_given: bool, cache_given: bool) -> Study:
    """The study with the formats that a server chooses by itself where none is given.

    vLLM, SGLang and llama.cpp's converter load float32 checkpoints in 16 bits (``--dtype auto``).
    """
    if study.weight_format.bytes_per_element >= 4 and not weights_given and options.engine != "transformers":
        model = replace(study.model, stored=None) if study.model.stored is not None else study.model
        study = replace(study, model=model, weight_format=FORMATS["bf16"])
    return cache_as_weights(study, given=cache_given)


def cache_as_weights(study: Study, *, given: bool) -> Study:
    """A server's cache takes the type of the activations where none is given: 4 bytes with float32 weights."""
    if given or study.weight_format.bytes_per_element < 4:
        return study
    return replace(study, kv_format=FORMATS["fp32"])
