"""vLLM: what it reserves on the GPU that limits the batch, and what its start-up log says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from types import MappingProxyType
from typing import Any

from calc.errors import SpecError
from calc.explain.terms import Term, derive
from calc.model.pipeline import stage_layers
from calc.model.study import Study
from calc.servers.budget import block_terms, pool_from_total, summed_band
from calc.servers.cache_layers import COMPRESSED, FULL, LATENT, RECURRENT, CacheLayers, cache_layers, expanded
from calc.servers.expert_padding import padding_bytes
from calc.servers.generations import BLACKWELL, generation
from calc.servers.records import Band, ServerOptions, ServerReport
from calc.servers.versions import (
    VLLM_GRAPHS_IN_BUDGET,
    VLLM_HYBRID,
    VLLM_LATENT,
    VLLM_MLA_SMALL_BLOCKS,
    VLLM_SPARSE_FP8_ROWS,
    VLLM_TOKENS_FROM_CONCURRENCY,
    VLLM_V1,
    VLLM_WHOLE_BLOCKS,
    Version,
    steps_at_once,
)
from calc.servers.vllm_budget import (
    StepSetting,
    activation_band,
    activation_bytes,
    capture_sizes,
    cuda_graph_band,
    cuda_graph_bytes,
    non_torch_band,
    non_torch_bytes,
)
from calc.servers.vllm_cache import CacheSetting, CacheShape, cache_shape, printed_tokens
from calc.servers.vllm_options import Resolved, check_heads, check_shared_tokens, check_stages, resolve
from calc.servers.vllm_v0 import CONTEXT_BYTES, unreturned_bytes
from calc.servers.weights import stage_weight_bytes
from calc.units import format_bytes

KEPT_PLAIN = 2
"""From this many bytes per element upwards, a cache is not quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One rank of a pipeline stage. Pool and blocks are negative if it does not start.

    `activation` includes half of the `unreturned` bytes, because the actual amount is not known.
    """

    number: int
    weights: int
    activation: int
    unreturned: int
    non_torch: int
    graphs: int
    pool: int
    shape: CacheShape

    @property
    def blocks(self) -> int:
        """Whole blocks in its pool."""
        return self.pool // self.shape.block_bytes


def vllm_layers(study: Study, version: Version, *stage: int) -> tuple[CacheLayers, ...]:
    """What the layers of a stage cache in `version`."""
    cached = cache_layers(study.model, *stage)
    return cached if version >= VLLM_LATENT else expanded(cached)


def stage_cache_layers(
    study: Study, version: Version, stage: tuple[int, int], speculative_layers: int
) -> tuple[CacheLayers, ...]:
    """What the layers of a stage cache; draft layers, on the last stage, cache what its attention layers do."""
    cached = vllm_layers(study, version, *stage)
    if not speculative_layers or stage[1] != study.model.n_layers:
        return cached
    whole = next((k for k in reversed(cached) if k.kind in (FULL, LATENT)), cached[-1])
    target = next((k for k in cached if k.mixer == "window_row"), whole)
    return tuple(replace(k, layers=k.layers + speculative_layers) if k is target else k for k in cached)


def _block_size(study: Study, options: ServerOptions, version: Version) -> tuple[int, str]:
    if options.block_size is not None:
        return options.block_size, ""
    latent = [cached for cached in vllm_layers(study, version) if cached.kind == LATENT]
    if any(cached.index_elements for cached in latent):
        return 64, "blocks of 64 tokens, as sparse latent attention requires"
    if latent and version < VLLM_MLA_SMALL_BLOCKS:
        return 64, "blocks of 64 tokens, as FlashMLA requires for latent attention"
    return 16, ""


def _state_element_bytes(options: ServerOptions, plain: int) -> int:
    return options.state_element_bytes or options.facts.state_element_bytes or plain


def _cache_setting(study: Study, options: ServerOptions, known: Resolved) -> CacheSetting:
    hybrid = known.version >= VLLM_HYBRID and not options.disable_hybrid
    return CacheSetting(
        tp=options.tp,
        dcp=options.dcp,
        block_size=_block_size(study, options, known.version)[0],
        kv_element_bytes=study.kv_format.bytes_per_element,
        max_model_len=known.max_model_len,
        in_flight_tokens=known.batched_tokens * steps_at_once(known.version, options.pp),
        state_element_bytes=_state_element_bytes(options, known.plain),
        speculative_tokens=known.speculative_tokens,
        states_cached=options.prefix_caching_of_states,
        hybrid=hybrid,
        scaled_rows=_scaled_rows(study, known.version),
    )


def _scaled_rows(study: Study, version: Version) -> bool:
    """Whether fp8 rows of sparse latent attention have scales and a rotary part in 16 bits (fp8_ds_mla)."""
    quantized = study.kv_format.bytes_per_element < KEPT_PLAIN
    plain = version >= VLLM_SPARSE_FP8_ROWS and (
        generation(study.device) == BLACKWELL or study.device.name.startswith("AMD")
    )
    return quantized and not plain


def _stage(study: Study, options: ServerOptions, known: Resolved, number: int, stage: tuple[int, int]) -> Stage:
    model, tp = study.model, options.tp
    weights = _weights(study, options, known, stage)
    activation = activation_bytes(model, _step(options, known, last=stage[1] == model.n_layers))
    non_torch = non_torch_bytes(known.version, tp=tp, pp=options.pp, hidden_size=model.hidden_size)
    unreturned = unreturned_bytes(
        model,
        known.version,
        tp=tp,
        batched_tokens=known.batched_tokens,
        element_bytes=known.plain,
        room_bytes=known.total_bytes - CONTEXT_BYTES - weights - activation - non_torch,
    )
    activation += unreturned // 2
    graphs = cuda_graph_bytes(
        n_layers=stage[1] - stage[0], sizes=capture_sizes(known.max_num_seqs), eager=options.enforce_eager
    )
    inside = graphs if known.version >= VLLM_GRAPHS_IN_BUDGET else 0
    derived = ceil(known.total_bytes * known.utilization) - weights - activation - non_torch - inside
    cached = stage_cache_layers(study, known.version, stage, options.speculative_layers)
    return Stage(
        number=number,
        weights=weights,
        activation=activation,
        unreturned=unreturned,
        non_torch=non_torch,
        graphs=graphs,
        pool=derived if options.kv_pool_bytes is None else options.kv_pool_bytes,
        shape=_shape(cached, _cache_setting(study, options, known), known.version),
    )


def _weights(study: Study, options: ServerOptions, known: Resolved, stage: tuple[int, int]) -> int:
    """Weights of a rank of the stage, including padding of experts."""
    held = stage_weight_bytes(
        study.model,
        study.weight_format,
        tp=options.tp,
        stage=stage,
        plain=known.plain,
        facts=options.facts,
        speculative_layers=options.speculative_layers,
    )
    return held + padding_bytes(study, known.version, tp=options.tp, stage=stage)


def _step(options: ServerOptions, known: Resolved, *, last: bool) -> StepSetting:
    """The step of the profile run, on the `last` stage or another stage."""
    return StepSetting(
        version=known.version,
        tp=options.tp,
        batched_tokens=known.batched_tokens,
        max_num_seqs=known.max_num_seqs,
        element_bytes=known.plain,
        last=last,
        split=options.pp > 1,
        facts=options.facts,
    )


def _shape(cached: tuple[CacheLayers, ...], setting: CacheSetting, version: Version) -> CacheShape:
    if any(layer.kind == COMPRESSED for layer in cached):
        from calc.servers.vllm_compressed import compressed_shape

        if setting.kv_element_bytes >= KEPT_PLAIN:
            raise SpecError("kv_format", "vLLM only supports compressed attention in fp8: use --kv-format fp8")
        return compressed_shape(cached, setting, version)
    return cache_shape(cached, setting)


def vllm_report(study: Study, options: ServerOptions) -> ServerReport:
    """vLLM's budget, pool, blocks, tokens and concurrency. Raises SpecError for options that it would refuse."""
    check_heads(study, options.tp)
    check_shared_tokens(study, options)
    check_stages(study, options.pp, options.pp_layers)
    known = resolve(study, options)
    ranges = stage_layers(study.model.n_layers, options.pp, options.pp_layers)
    stages = [_stage(study, options, known, i, stage) for i, stage in enumerate(ranges)]
    bound = min(stages, key=lambda stage: (stage.blocks, stage.pool))
    blocks, shape = max(0, bound.blocks), bound.shape
    concurrency = _concurrency(shape, blocks, known, options)
    tokens = printed_tokens(
        shape,
        blocks,
        dcp=options.dcp,
        max_model_len=known.max_model_len,
        from_concurrency=known.version >= VLLM_TOKENS_FROM_CONCURRENCY,
    )
    return ServerReport(
        study=study,
        options=options,
        name="vllm",
        version=known.version_text,
        block_size=shape.block_size,
        weight_bytes_per_gpu=bound.weights,
        activation_bytes=bound.activation,
        non_torch_bytes=bound.non_torch,
        cuda_graph_bytes=bound.graphs,
        kv_pool_bytes=bound.pool,
        kv_blocks=blocks,
        kv_tokens=tokens,
        max_concurrency=float(concurrency),
        kv_request_bytes=shape.blocks_per_request * shape.block_bytes,
        groups=shape.groups,
        assumptions=(*known.assumptions, *_remarks(study, options, known, bound, len(stages))),
        bands=MappingProxyType(_bands(options, known, bound)),
        steps=_terms(options, known, bound, blocks),
        utilization=known.utilization,
        max_num_batched_tokens=known.batched_tokens,
        max_num_seqs=known.max_num_seqs,
    )


def _concurrency(shape: CacheShape, blocks: int, known: Resolved, options: ServerOptions) -> Fraction:
    if known.version < VLLM_WHOLE_BLOCKS and len(shape.groups) == 1:
        return Fraction(blocks * shape.block_size * options.dcp, known.max_model_len)
    return Fraction(blocks, shape.blocks_per_request)


def _remarks(study: Study, options: ServerOptions, known: Resolved, bound: Stage, n_stages: int) -> list[str]:
    said = []
    if block := _block_size(study, options, known.version)[1]:
        said.append(block)
    if any(group.kind == RECURRENT for group in bound.shape.groups):
        each = _state_element_bytes(options, known.plain)
        said.append(
            f"recurrent states in {each} bytes per element; a state's page is padded to that of an attention block"
        )
    if known.speculative_tokens and options.speculative_tokens is None:
        said.append(f"{known.speculative_tokens} draft tokens per step, because no number was given")
    if any(layer.kind == COMPRESSED for layer in vllm_layers(study, known.version)):
        said.append(
            "rows of 584 bytes as in FlashMLA, index keys in fp8; the states of tokens without a row are in window "
            "pages"
        )
    if bound.shape.padding_layers:
        said.append(f"{bound.shape.padding_layers} padding layers make the groups equal")
    if n_stages > 1:
        said.append(f"stage {bound.number + 1} of {n_stages} limits the batch: the report is for its GPU")
    if options.kv_pool_bytes is not None:
        said.append("the pool was given; the other parts are estimates")
    elif known.version < VLLM_GRAPHS_IN_BUDGET and not options.enforce_eager:
        said.append("in this version, CUDA graphs are captured after the pool and outside --gpu-memory-utilization")
    if options.facts.encoder_hidden:
        size = f"{options.facts.image_tokens:,} tokens"
        said.append(f"the largest image, {size}, is encoded in the profile run; a longer video takes more")
    if known.version < VLLM_V1:
        said.append("only a few logs show the profile run of the V0 engine")
    if bound.unreturned:
        most = format_bytes(bound.unreturned)
        said.append(
            f"before 0.6.4, tensors that NCCL was still reading counted as used, up to {most}: half is assumed, and "
            "the band ranges from none to all"
        )
    return said


def _bands(options: ServerOptions, known: Resolved, bound: Stage) -> dict[str, Band]:
    small = bound.weights // 200
    half = bound.unreturned // 2
    low, high = activation_band(known.version, bound.activation - half, large=known.large)
    parts = {
        "weight_bytes_per_gpu": (bound.weights, (bound.weights - small, bound.weights + small)),
        "activation_bytes": (bound.activation, (low, high + 2 * half)),
        "non_torch_bytes": (bound.non_torch, non_torch_band(known.version, bound.non_torch, tp=options.tp)),
        "cuda_graph_bytes": (bound.graphs, cuda_graph_band(bound.graphs)),
    }
    bands = {name: band for name, (_, band) in parts.items()}
    if options.kv_pool_bytes is None:
        if known.version < VLLM_GRAPHS_IN_BUDGET:
            del parts["cuda_graph_bytes"]
        bands["kv_pool_bytes"] = summed_band(bound.pool, parts)
    return bands


def _terms(options: ServerOptions, known: Resolved, bound: Stage, blocks: int) -> tuple[Term, ...]:
    terms: tuple[Term, ...] = ()
    if options.kv_pool_bytes is None:
        inside: dict[str, Any] = {}
        if known.version >= VLLM_GRAPHS_IN_BUDGET and bound.graphs:
            inside["cuda_graph_bytes"] = bound.graphs
        terms = (
            derive(
                "KV pool per GPU",
                pool_from_total,
                gives="kv_pool_bytes",
                unit="B",
                memory_bytes=known.total_bytes,
                utilization=known.utilization,
                weight_bytes=bound.weights,
                activation_bytes=bound.activation,
                non_torch_bytes=bound.non_torch,
                **inside,
            ),
        )
    if bound.pool < 0:
        return terms
    return (*terms, *block_terms(bound.pool, bound.shape.block_bytes, blocks, bound.shape.blocks_per_request))
