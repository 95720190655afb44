"""What vLLM makes of its options: what it refuses, and the defaults that it fills in."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from calc.errors import SpecError
from calc.model.pipeline import partition_problem, stage_layers
from calc.model.shares import unshared_tokens
from calc.model.study import Study
from calc.servers.budget import plain_bytes, visible_bytes
from calc.servers.cache_layers import cache_layers
from calc.servers.layouts import default_version
from calc.servers.records import ServerOptions
from calc.servers.versions import (
    MEASURED_VLLM,
    VLLM_V1,
    Version,
    default_batched_tokens,
    default_max_seqs,
    default_utilization,
    is_large,
    parse_version,
)
from calc.servers.vllm_v0 import batched_tokens

SPECULATIVE_TOKENS = 3
"""Draft tokens per step in every log of a recurrent model with speculation; --speculative-tokens overrides it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The options with every default filled in, and a sentence for each default."""

    version: Version
    version_text: str
    utilization: Fraction
    batched_tokens: int
    max_num_seqs: int
    total_bytes: int
    large: bool
    max_model_len: int
    plain: int
    speculative_tokens: int
    assumptions: tuple[str, ...]


def resolve(study: Study, options: ServerOptions) -> Resolved:
    """Defaults by version and device."""
    text = options.version or default_version("vllm", study.model)
    version, said = parse_version(text), []
    if options.version is None:
        why = (
            "this one was measured part by part"
            if text == MEASURED_VLLM
            else "older versions do not support this model"
        )
        said.append(f"vLLM {text}, because no version was given and {why}")
    total, visible = visible_bytes(study.device)
    said += [visible] if visible else []
    large = is_large(study.device.name, total)
    length = options.max_model_len or study.context
    utilization = options.gpu_memory_utilization or default_utilization(version)
    if options.gpu_memory_utilization is None:
        said.append(f"--gpu-memory-utilization {float(utilization):g}, the default of this version")
    tokens = options.max_num_batched_tokens or _batched_tokens(study, options, version, large, total)
    if options.max_num_batched_tokens is None:
        tokens = max(tokens, options.facts.item_tokens)
        why = "the longest image or video" if tokens == options.facts.item_tokens else "this version and device size"
        said.append(f"--max-num-batched-tokens {tokens:,}, the server's default for {why}")
    seqs = options.max_num_seqs or default_max_seqs(version, large=large)
    if options.max_num_seqs is None:
        said.append(f"--max-num-seqs {seqs:,}, the default for this version and device size")
    guessed = options.speculative_tokens or (SPECULATIVE_TOKENS if options.speculative_layers else 0)
    return Resolved(
        version=version,
        version_text=text,
        utilization=utilization,
        batched_tokens=tokens,
        max_num_seqs=seqs,
        total_bytes=total,
        large=large,
        max_model_len=length,
        plain=plain_bytes(study, options),
        speculative_tokens=guessed,
        assumptions=tuple(said),
    )


def _batched_tokens(study: Study, options: ServerOptions, version: Version, large: bool, total: int) -> int:
    if version >= VLLM_V1:
        return default_batched_tokens(version, large=large, memory_bytes=total)
    windowed = any(cached.window is not None for cached in cache_layers(study.model))
    whole = windowed or options.facts.multimodal or options.speculative_layers > 0
    return batched_tokens(version, options.max_model_len or study.context, whole_prompts=whole)


def check_heads(study: Study, tp: int) -> None:
    """Raise SpecError if the query heads of a layer are not divisible by `tp`."""
    for layer in study.model.groups:
        for mixer in layer.mixers:
            heads = getattr(mixer, "n_heads", tp)
            if heads % tp:
                raise SpecError("tp", f"{heads:,} query heads are not divisible by TP {tp:,}")


def check_shared_tokens(study: Study, options: ServerOptions) -> None:
    """Raise SpecError if vLLM cannot share tokens (since 0.10.2): no rank repeats KV heads (config/model.py), or a
    layer keeps a window or a state. Without the hybrid cache manager, windows are kept as all tokens are."""
    tp, dcp = options.tp, options.dcp
    if dcp == 1:
        return
    for mixer in {mixer for layer in study.model.groups for mixer in layer.mixers}:
        kept_whole = mixer.window is not None and options.disable_hybrid
        if not kept_whole and (problem := unshared_tokens(mixer)):
            raise SpecError("dcp", f"--dcp {dcp:,}: {problem}")
        n_kv_heads = getattr(mixer, "n_kv_heads", 0)
        if mixer.cache_elements and n_kv_heads and dcp > tp // n_kv_heads:
            times = f"{tp // n_kv_heads:,} times" if tp > n_kv_heads else "once"
            raise SpecError("dcp", f"--dcp {dcp:,}: TP {tp:,} holds each of the {n_kv_heads:,} KV heads {times}")


def check_stages(study: Study, pp: int, sizes: tuple[int, ...] | None) -> None:
    """Raise SpecError if a stage would have no layer or nothing to cache, or if the layers do not add up."""
    if pp > study.model.n_layers:
        raise SpecError("pp", f"{study.model.n_layers:,} layers are fewer than the {pp:,} pipeline stages")
    if problem := partition_problem(study.model.n_layers, pp, sizes):
        raise SpecError("pp_layers", problem)
    for number, stage in enumerate(stage_layers(study.model.n_layers, pp, sizes)):
        if not cache_layers(study.model, *stage):
            raise SpecError("pp", f"stage {number + 1} of {pp:,} has no layer with a cache: there would be no pool")
