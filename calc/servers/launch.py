"""The command that starts the server of a report, ready to copy."""

from __future__ import annotations

import shlex
from fractions import Fraction

from calc.errors import CalcError
from calc.model.spec import TYPED_IN, ModelSpec
from calc.servers.cache_layers import COMPRESSED
from calc.servers.llamacpp.builds import FLASH_WORDS, UNIFIED, build_of
from calc.servers.records import ServerReport
from calc.servers.serving import cache_of_checkpoint, quantized_online
from calc.units import MIB

VLLM_CACHE = {"fp8": "fp8", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
SGLANG_CACHE = {"fp8": "fp8_e4m3", "fp8_e4m3": "fp8_e4m3", "fp8_e5m2": "fp8_e5m2"}
LLAMACPP_CACHE = {"bf16": "f16", "fp16": "f16", "fp32": "f32"}
ALL_LAYERS = 999
"""More layers than any model has: llama.cpp then uses all of them."""
NAMELESS = "your-model"
WITHOUT_BF16 = ("NVIDIA V100", "NVIDIA T4", "NVIDIA P100", "NVIDIA P40")
"""Compute capability below 8.0."""


def launch_command(report: ServerReport) -> str | None:
    """A shell command; for transformers, Python code that loads the model with this cache. None if it does not
    start."""
    if not report.starts:
        return None
    engine = report.options.engine
    if engine == "transformers":
        return _transformers(report)
    sizes = report.options.pp_layers
    partition = f"VLLM_PP_LAYER_PARTITION={','.join(map(str, sizes))} " if sizes else ""
    makers = {"vllm": _vllm, "sglang": _sglang, "llamacpp": _llamacpp}
    return partition + shlex.join(makers[engine](report))


def served_name(model: ModelSpec) -> str:
    """What the server loads: the Hugging Face id of a catalog model, else the folder or file it was read from.

    A model with other sizes is in no known repository.
    """
    from calc.sources.catalog import models

    if model.edited or model.name == TYPED_IN:
        return NAMELESS
    name = model.name
    try:
        entry = models().get(name)
    except CalcError:
        entry = None
    if entry is not None:
        return entry.hf_id
    source = model.source.partition(",")[0]
    return source.removesuffix("/config.json") if source.endswith(("/config.json", ".gguf")) else name


def _words(pairs: list[tuple[str, int | str | Fraction | None]]) -> list[str]:
    return [word for flag, value in pairs if value is not None for word in (flag, _text(value))]


def _text(value: int | str | Fraction) -> str:
    return f"{float(value):g}" if isinstance(value, Fraction) else str(value)


def _above_one(value: int) -> int | None:
    return value if value > 1 else None


def _dtype(report: ServerReport) -> str | None:
    """The dtype of weights and activations, if it is not the checkpoint's or the device lacks bfloat16."""
    said = {"fp32": "float32", "fp16": "float16"}.get(report.study.weight_format.name)
    return said or ("float16" if report.study.device.name.startswith(WITHOUT_BF16) else None)


def _vllm_cache(report: ServerReport) -> str | None:
    """The cache format; also given if it overrides the checkpoint's own."""
    asked = VLLM_CACHE.get(report.study.kv_format.name)
    own = cache_of_checkpoint(report.options)
    return "bfloat16" if asked is None and own not in (None, report.study.kv_format.name) else asked


def _rows_block(report: ServerReport) -> int | None:
    """Tokens per block of compressed attention, as its kernels require."""
    from calc.servers.vllm_compressed import ROWS_BLOCK

    mixers = (mixer for layer in report.study.model.groups for mixer in layer.mixers)
    return ROWS_BLOCK if any(mixer.kind == "compressor" for mixer in mixers) else None


def _vllm(report: ServerReport) -> list[str]:
    study, options = report.study, report.options
    guessed = f'{{"num_speculative_tokens": {options.speculative_tokens or 3}, "method": "mtp"}}'
    words = _words(
        [
            ("--max-model-len", options.max_model_len or study.context),
            ("--tensor-parallel-size", _above_one(options.tp)),
            ("--pipeline-parallel-size", _above_one(options.pp)),
            ("--decode-context-parallel-size", _above_one(options.dcp)),
            ("--gpu-memory-utilization", None if options.kv_pool_bytes else report.utilization),
            ("--max-num-batched-tokens", report.max_num_batched_tokens),
            ("--max-num-seqs", report.max_num_seqs),
            ("--block-size", options.block_size or _rows_block(report)),
            ("--kv-cache-memory-bytes", options.kv_pool_bytes),
            ("--kv-cache-dtype", _vllm_cache(report)),
            ("--quantization", quantized_online(study)),
            ("--dtype", _dtype(report)),
            ("--speculative-config", guessed if options.speculative_layers else None),
        ]
    )
    flags = ["--enforce-eager"] if options.enforce_eager else []
    flags += ["--disable-hybrid-kv-cache-manager"] if options.disable_hybrid else []
    flags += ["--enable-prefix-caching"] if options.prefix_caching_of_states else []
    return ["vllm", "serve", served_name(study.model), *words, *flags]


def _sglang(report: ServerReport) -> list[str]:
    study, options = report.study, report.options
    words = _words(
        [
            ("--model-path", served_name(study.model)),
            ("--context-length", options.max_model_len or study.context),
            ("--tp-size", _above_one(options.tp)),
            ("--dp-size", _above_one(options.dp_attention)),
            ("--mem-fraction-static", report.utilization),
            ("--chunked-prefill-size", report.max_num_batched_tokens),
            ("--max-running-requests", options.max_num_seqs),
            ("--page-size", options.block_size),
            ("--kv-cache-dtype", SGLANG_CACHE.get(study.kv_format.name)),
            ("--quantization", quantized_online(study)),
            ("--dtype", _dtype(report)),
        ]
    )
    flags = ["--enable-dp-attention"] if options.dp_attention > 1 else []
    flags += ["--disable-cuda-graph"] if options.enforce_eager else []
    flags += ["--disable-hybrid-swa-memory"] if options.disable_hybrid else []
    flags += ["--speculative-algorithm", "NEXTN"] if options.speculative_layers else []
    return ["python", "-m", "sglang.launch_server", *words, *flags]


def _mix(report: ServerReport) -> str:
    """The part of a file name that names the mix, if one was given."""
    weights = report.study.weight_format
    mixed = weights.stored is not None and report.study.model.stored is None
    return f"-{weights.name.removeprefix('gguf-')}" if mixed else ""


def _llamacpp(report: ServerReport) -> list[str]:
    study, options, build = report.study, report.options, build_of(report.version)
    name = served_name(study.model)
    file = name if name.endswith(".gguf") else f"{name.rpartition('/')[2]}{_mix(report)}.gguf"
    cache = study.kv_format
    keys, values = (LLAMACPP_CACHE.get(each.name, each.name) for each in cache.pair or (cache, cache))
    slots, layers = report.max_num_seqs or 1, report.n_gpu_layers or 0
    words = _words(
        [
            ("--model", file),
            ("--ctx-size", (options.max_model_len or study.context) * slots),
            ("--parallel", slots),
            ("--ubatch-size", report.max_num_batched_tokens),
            ("--n-gpu-layers", ALL_LAYERS if layers > study.model.n_layers else layers),
            ("--n-cpu-moe", report.n_cpu_moe or None),
            ("--tensor-split", ",".join(_text(share) for share in options.tensor_split) or None),
            ("--cache-type-k", keys),
            ("--cache-type-v", values),
            ("--cache-ram", None if options.cache_ram_bytes is None else options.cache_ram_bytes // MIB),
        ]
    )
    flags = ["--flash-attn", "on"] if build >= FLASH_WORDS else ["--flash-attn"]
    flags += ["--no-kv-offload"] if options.kv_on_host else []
    flags += ["--swa-full"] if options.swa_full else []
    shared = not any(group.kind == COMPRESSED for group in report.groups)  # else every slot has its own cells
    flags += ["--kv-unified"] if slots > 1 and build >= UNIFIED and shared else []  # one cache for all, as counted
    return ["llama-server", *words, *flags]


def _transformers(report: ServerReport) -> str:
    study, options = report.study, report.options
    kind = _dtype(report) or "bfloat16"
    placed = 'tp_plan="auto"' if options.tp > 1 else 'device_map="cuda"'
    name = served_name(study.model)
    chunk = options.max_num_batched_tokens
    chunked = f", prefill_chunk_size={chunk}" if chunk else ""
    length = options.max_model_len or study.context
    return "\n".join(
        [
            "import torch",
            "from transformers import AutoModelForCausalLM, DynamicCache",
            f"model = AutoModelForCausalLM.from_pretrained({name!r}, dtype=torch.{kind}, {placed})",
            "cache = DynamicCache(config=model.config)",
            f"# model.generate(**inputs, past_key_values=cache, max_length={length}{chunked})",
        ]
    )
