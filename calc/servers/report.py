"""One entry point for all servers: the report of the server that the options name."""

from __future__ import annotations

from dataclasses import replace

from calc.errors import SpecError
from calc.model.storage import FORMATS, GGML_FORMATS
from calc.model.stored import is_as_stored
from calc.model.study import Study
from calc.servers.idle_options import check_options
from calc.servers.layouts import check_layouts
from calc.servers.records import ServerOptions, ServerReport
from calc.servers.refusals import context_remark, refusal, tokens_remark
from calc.servers.serving import cache_of_checkpoint, fp8_refusal, fp8_remark, quantized_online, scales_remark
from calc.servers.versions import version_remark


def server_report(study: Study, options: ServerOptions) -> ServerReport:
    """The report of `options.engine` on `study`; a negative pool and a refusal to start are answers.

    Raises SpecError for a parallelism that the server does not have, and for an option without effect.
    """
    check_layouts(study.model, options.engine, options.version)
    check_options(study, options)
    report = _counted(study, options)
    stored = (_online(study, options), _own_cache(study, options), _other_file(study), _left_in_16_bits(study))
    cache = (None if fp8_refusal(study, options) else fp8_remark(study, options), scales_remark(study, options))
    asked = (version_remark(options.engine, options.version), context_remark(report), tokens_remark(report))
    remarks = [remark for remark in (*stored, *cache, *asked) if remark]
    return replace(
        report, refusal=fp8_refusal(study, options) or refusal(report), assumptions=(*report.assumptions, *remarks)
    )


def _online(study: Study, options: ServerOptions) -> str | None:
    """The note that all linear layers are quantized, if the server does it while loading."""
    method = quantized_online(study) if options.engine in ("vllm", "sglang") else None
    if method is None:
        return None
    return f"every linear layer in fp8, as --quantization {method} makes it; a published file may keep some in 16 bits"


def _own_cache(study: Study, options: ServerOptions) -> str | None:
    """The note that the cache has the checkpoint's own format, if it does."""
    own = cache_of_checkpoint(options)
    return f"the cache is in {own}, as the checkpoint says" if own == study.kv_format.name else None


def _other_file(study: Study) -> str | None:
    """The note that the weights come from another file than the model's own, if a mix or checkpoint was named."""
    named = study.weight_format.stored is not None and not is_as_stored(study.model, study.weight_format)
    return f"assumes a file or repository with the weights as {study.weight_format.name}" if named else None


def _left_in_16_bits(study: Study) -> str | None:
    """The note that a file with individually chosen modules is larger than one with the same format for all."""
    if study.weight_format.name not in ("nf4", "fp4") or study.model.stored is not None:
        return None
    return (
        "every linear layer in 4 bits; a file of dynamic quantization (unsloth) leaves some in 16 bits, which its "
        "config lists (llm_int8_skip_modules): give that as --model"
    )


LLAMACPP_CACHE = ("fp32", "bf16", "fp16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Formats in which llama.cpp caches K and V (common/arg.cpp, kv_cache_types)."""


def _check_cache(study: Study, options: ServerOptions) -> None:
    """Raise SpecError for a named cache format that the server does not support; bytes per element are accepted."""
    cache = study.kv_format
    if options.engine == "llamacpp":
        named = (each.name for each in cache.pair or (cache,) if each.name in FORMATS)
        unknown = [name for name in named if name not in LLAMACPP_CACHE]
        if unknown:
            raise SpecError("kv_format", f"llama.cpp has no {unknown[0]} cache: use one of {', '.join(LLAMACPP_CACHE)}")
    elif cache.name in GGML_FORMATS:
        raise SpecError("kv_format", f"{options.engine} has no {cache.name} cache: this is a format of llama.cpp")


def _counted(study: Study, options: ServerOptions) -> ServerReport:
    _check_cache(study, options)
    if study.kv_format.pair is not None and options.engine != "llamacpp":
        raise SpecError(
            "kv_format",
            f"{options.engine} caches K and V in one format, not {study.kv_format.name}: only llamacpp allows two",
        )
    if options.engine == "vllm":
        from calc.servers.vllm import vllm_report

        return vllm_report(study, options)
    if options.engine == "sglang":
        from calc.servers.sglang import sglang_report

        return sglang_report(study, options)
    if options.engine == "transformers":
        from calc.servers.transformers import transformers_report

        return transformers_report(study, options)
    from calc.servers.llamacpp.report import llamacpp_report

    return llamacpp_report(study, options)
