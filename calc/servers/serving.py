"""The study as a server runs it, with the formats that it chooses if none is given."""

from __future__ import annotations

from dataclasses import replace

from calc.model.storage import FORMATS
from calc.model.study import Study
from calc.servers.generations import is_volta, lacks_fp8
from calc.servers.records import ServerOptions
from calc.servers.versions import SGLANG_CACHE_OF_CHECKPOINT, VLLM_CACHE_OF_CHECKPOINT, parse_version

SINCE = {"vllm": VLLM_CACHE_OF_CHECKPOINT, "sglang": SGLANG_CACHE_OF_CHECKPOINT}

E4M3 = ("fp8", "fp8_e4m3")

ONLINE = {"fp8": "fp8", "fp8_e4m3": "fp8"}
"""Quantization while loading, by the requested weight format."""


def quantized_online(study: Study) -> str | None:
    """The --quantization that turns an unquantized checkpoint into the study's weights; None if there is none."""
    return None if study.model.stored is not None else ONLINE.get(study.weight_format.name)


def as_served(study: Study, options: ServerOptions, *, weights_given: bool, cache_given: bool) -> Study:
    """The study with the formats that a server chooses if none is given.

    vLLM, SGLang and llama.cpp's converter load float32 checkpoints in 16 bits (``--dtype auto``).
    """
    if study.weight_format.bytes_per_element >= 4 and not weights_given and options.engine != "transformers":
        model = replace(study.model, stored=None) if study.model.stored is not None else study.model
        study = replace(study, model=model, weight_format=FORMATS["bf16"])
    if not cache_given and (name := cache_of_checkpoint(options) or _cache_of_model(study, options)):
        return replace(study, kv_format=FORMATS[name])
    return cache_as_weights(study, given=cache_given)


def _cache_of_model(study: Study, options: ServerOptions) -> str | None:
    """The server's cache format for the model's attention, if there is only one."""
    compressed = any(mixer.kind == "compressor" for layer in study.model.groups for mixer in layer.mixers)
    return "fp8" if compressed and options.engine == "vllm" else None


def cache_of_checkpoint(options: ServerOptions) -> str | None:
    """The checkpoint's own cache format if the server's version uses it automatically, else None."""
    facts, since = options.facts, SINCE.get(options.engine, {}).get(options.facts.quantizer)
    if facts.cache_format is None or since is None:
        return None
    taken = options.version is None or parse_version(options.version) >= since
    return facts.cache_format if taken else None


def cache_as_weights(study: Study, *, given: bool) -> Study:
    """By default, a server's cache has the dtype of the activations: 4 bytes with float32 weights."""
    if given or study.weight_format.bytes_per_element < 4:
        return study
    return replace(study, kv_format=FORMATS["fp32"])


def fp8_remark(study: Study, options: ServerOptions) -> str | None:
    """The note that the device has no fp8 (E4M3) instructions, and what works there."""
    if study.kv_format.name not in E4M3 or options.engine != "vllm" or not lacks_fp8(study.device):
        return None
    return (
        f"{study.device.name} has no instructions for fp8 (E4M3): only vLLM's FlashInfer kernels support it there; "
        "--kv-format fp8_e5m2 works with all kernels"
    )


def fp8_refusal(study: Study, options: ServerOptions) -> str | None:
    """The refusal that no kernel supports an fp8 (E4M3) cache on the device."""
    if study.kv_format.name not in E4M3 or options.engine != "vllm" or not is_volta(study.device):
        return None
    return f"it has no kernel for an fp8 (E4M3) cache on {study.device.name}: --kv-format fp8_e5m2 works"


def scales_remark(study: Study, options: ServerOptions) -> str | None:
    """The note that a Quark checkpoint has scales for an fp8 cache, which must be requested."""
    scaled = options.facts.cache_scales
    if scaled is None or options.engine != "vllm" or study.kv_format.name == scaled:
        return None
    return f"the checkpoint has scales for a {scaled} cache, which vLLM uses only with --kv-format {scaled}"
