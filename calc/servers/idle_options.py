"""Options without effect: for another server, or for layers that the model does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from calc.errors import SpecError
from calc.model.study import Study
from calc.servers.cache_layers import RECURRENT, CacheLayers, cache_layers
from calc.servers.records import ServerOptions
from calc.servers.versions import VLLM_HYBRID, parse_version

Cached = tuple[CacheLayers, ...]

WORDS: Mapping[str, str] = {
    "prefix_caching_of_states": "--prefix-caching",
    "kv_pool_bytes": "--kv-pool",
    "cache_ram_bytes": "--cache-ram",
}
"""Options whose command-line name differs from their field name."""
UNDERSTOOD: Mapping[str, tuple[str, ...]] = {
    "gpu_memory_utilization": ("vllm", "sglang"),
    "block_size": ("vllm", "sglang"),
    "max_num_seqs": ("vllm", "sglang", "llamacpp"),
    "enforce_eager": ("vllm", "sglang"),
    "speculative_layers": ("vllm", "sglang"),
    "speculative_tokens": ("vllm",),
    "prefix_caching_of_states": ("vllm",),
    "disable_hybrid": ("vllm", "sglang"),
    "pp": ("vllm",),
    "pp_layers": ("vllm",),
    "dcp": ("vllm",),
    "dp_attention": ("sglang",),
    "kv_pool_bytes": ("vllm", "sglang", "transformers"),
    "n_gpu_layers": ("llamacpp",),
    "n_cpu_moe": ("llamacpp",),
    "kv_on_host": ("llamacpp",),
    "tensor_split": ("llamacpp",),
    "swa_full": ("llamacpp",),
    "cache_ram_bytes": ("llamacpp",),
}
"""The servers on which each option has an effect."""

DEFAULTS = ServerOptions()
INSTEAD = dict.fromkeys(("pp", "pp_layers", "dcp", "dp_attention"), "--tp is the number of devices")


def check_options(study: Study, options: ServerOptions) -> None:
    """Raise SpecError for a given option without effect."""
    for name, servers in UNDERSTOOD.items():
        if not _given(options, name):
            continue
        if options.engine not in servers:
            if options.engine == "sglang" and name in ("pp", "pp_layers"):
                raise SpecError(
                    name, f"{_word(name)} is not supported with --policy sglang: its pipeline memory is not known"
                )
            instead = INSTEAD.get(name, "remove it")
            raise SpecError(name, f"{_word(name)} has no effect with --policy {options.engine}: {instead}")
        if (lacking := _LACKING.get(name)) and (why := lacking(options, cache_layers(study.model))):
            raise SpecError(name, f"{_word(name)} has no effect {why}: remove it")


def _given(options: ServerOptions, name: str) -> bool:
    return bool(getattr(options, name) != getattr(DEFAULTS, name))


def _word(name: str) -> str:
    return WORDS.get(name, f"--{name.replace('_', '-')}")


def _no_windows(options: ServerOptions, cached: Cached) -> str:
    if not any(layer.window is not None for layer in cached):
        return "for a model without window layers"
    old = options.engine == "vllm" and options.version is not None and parse_version(options.version) < VLLM_HYBRID
    return "before vLLM 0.9.1, where window layers always cache the whole context" if old else ""


def _no_states(options: ServerOptions, cached: Cached) -> str:
    return "" if any(layer.kind == RECURRENT for layer in cached) else "for a model without recurrent layers"


def _no_draft(options: ServerOptions, cached: Cached) -> str:
    return "" if options.speculative_layers or not _no_states(options, cached) else "without --speculative-layers"


_LACKING: Mapping[str, Callable[[ServerOptions, Cached], str]] = {
    "disable_hybrid": _no_windows,
    "swa_full": _no_windows,
    "prefix_caching_of_states": _no_states,
    "speculative_tokens": _no_draft,
}
