"""Why a server would not start, whatever its memory, and notes if it starts anyway.

vLLM (``_get_and_verify_max_len``) and SGLang (``ModelConfig``) refuse a context beyond the model's limit unless an
environment variable allows it. llama.cpp caps every slot at the model's limit, and transformers continues without a
warning.
"""

from __future__ import annotations

from collections.abc import Mapping

from calc.model.study import DeviceSpec
from calc.servers.budget import visible_bytes
from calc.servers.cache_layers import RECURRENT
from calc.servers.records import ServerReport
from calc.servers.versions import VLLM_STATE_PER_SEQUENCE, parse_version
from calc.units import format_decimal

ALLOWED_BY = {
    "vllm": ("--max-model-len", "VLLM_ALLOW_LONG_MAX_MODEL_LEN"),
    "sglang": ("--context-length", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"),
}
"""The option that sets the context, and the variable that allows one beyond the model's limit."""
OVERHEADS = ("activation_bytes", "non_torch_bytes", "cuda_graph_bytes")

ACCELERATORS = ("Google", "AWS", "Intel Gaudi")
"""Devices with special builds, whose memory is not counted like a GPU's."""
NOT_ON: Mapping[str, tuple[str, ...]] = {
    "vllm": (*ACCELERATORS, "Apple", "NVIDIA P40", "NVIDIA P100", "NVIDIA Tesla P", "AMD MI50", "AMD Instinct MI50"),
    "sglang": (
        *ACCELERATORS, "Apple", "Intel", "NVIDIA P40", "NVIDIA P100", "NVIDIA Tesla P", "NVIDIA V100", "AMD MI50",
        "AMD Instinct MI50", "AMD RX", "AMD Radeon", "AMD Ryzen",
    ),
    "trtllm": (*ACCELERATORS, "Apple", "Intel", "AMD", "NVIDIA P40", "NVIDIA P100", "NVIDIA Tesla P", "NVIDIA V100"),
    "transformers": ACCELERATORS,
    "llamacpp": ACCELERATORS,
}  # fmt: skip
"""Name prefixes of devices that a server's GPU builds do not support: vLLM needs compute capability 7.0, SGLang 7.5 or
an Instinct."""


def runs_on(engine: str, device: DeviceSpec) -> bool:
    """Whether the GPU builds of `engine` run on `device`."""
    return not device.name.startswith(NOT_ON[engine])


def device_refusal(report: ServerReport) -> str | None:
    """The refusal that the server does not run on the device."""
    device = report.study.device
    return None if runs_on(report.options.engine, device) else f"it does not run on {device.name}"


def context_refusal(report: ServerReport) -> str | None:
    """The refusal that the context is longer than the model's limit."""
    most, asked = report.study.model.max_context, report.context
    if most is None or asked <= most or report.options.engine not in ALLOWED_BY:
        return None
    option, variable = ALLOWED_BY[report.options.engine]
    return (
        f"{option} {asked:,} is longer than the model's context limit of {most:,} tokens "
        f"({variable}=1 or rotary scaling in the config lifts it)"
    )


def context_remark(report: ServerReport) -> str | None:
    """The note on a context beyond the model's limit if the server does not refuse it."""
    most, asked = report.study.model.max_context, report.context
    if most is None or asked <= most or report.options.engine in ALLOWED_BY:
        return None
    said = f"the context of {asked:,} tokens is longer than the model's limit of {most:,}"
    capped = report.options.engine == "llamacpp"
    return f"{said}: {'llama.cpp caps each slot there' if capped else 'later positions were never trained'}"


def pool_refusal(report: ServerReport) -> str | None:
    """The refusal that the requested pool is larger than what the other parts leave, even at their low ends."""
    asked = report.options.kv_pool_bytes
    if asked is None:
        return None
    held = sum(report.bands.get(name, (getattr(report, name),))[0] for name in OVERHEADS)
    left = visible_bytes(report.study.device)[0] - report.weight_bytes_per_gpu - held
    if asked <= left:
        return None
    return f"--kv-pool of {format_decimal(asked)} is more than the {format_decimal(max(0, left))} left per GPU"


def state_refusal(report: ServerReport) -> str | None:
    """The refusal that there are fewer blocks than sequences per step, each of which needs one for its recurrent
    state."""
    options, most, blocks = report.options, report.max_num_seqs, report.kv_blocks
    asked = options.engine == "vllm" and not options.enforce_eager and parse_version(report.version)
    if not asked or asked < VLLM_STATE_PER_SEQUENCE or most is None or not 0 < blocks < most:
        return None
    if not any(group.kind == RECURRENT for group in report.groups):
        return None
    return f"--max-num-seqs {most:,} is more than the {blocks:,} blocks for recurrent states: use {blocks:,} or less"


def refusal(report: ServerReport) -> str | None:
    """Why the server of `report` would not start, whatever its cache holds; None if it would start."""
    checks = (device_refusal, context_refusal, pool_refusal, state_refusal)
    return next((said for check in checks if (said := check(report)) is not None), None)


def tokens_remark(report: ServerReport) -> str | None:
    """Why the pool holds more requests than its number of tokens suggests: some layers keep less than the context."""
    if report.options.engine != "vllm" or int(report.max_concurrency) * report.context <= report.kv_tokens:
        return None
    return (
        f"the log of {report.version} says {report.kv_tokens:,} tokens, as if every layer kept the whole context; "
        "windows and states keep less, so more full-length requests fit"
    )
