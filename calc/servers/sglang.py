"""SGLang: the pool is a share of the memory that was free before the weights were loaded, divided into single tokens.

Sources: model_runner.py (profile_max_num_token), server_args.py (mem_fraction_static), memory_pool.py; start-up logs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import Any

from calc.explain.terms import Term, derive
from calc.model.study import DeviceSpec, Study
from calc.servers.budget import block_terms, plain_bytes, pool_from_free, visible_bytes
from calc.servers.cache_layers import LATENT, RECURRENT, CacheLayers, cache_layers
from calc.servers.records import CacheGroup, ServerOptions, ServerReport
from calc.servers.sglang_budget import SglangSetting, graph_batch, static_fraction, tier
from calc.servers.versions import NEWEST, parse_version
from calc.servers.vllm_budget import capture_sizes, cuda_graph_bytes, forward_peak
from calc.servers.vllm_cache import heads_bytes, index_bytes, recurrent_page_bytes
from calc.servers.vllm_options import check_heads
from calc.servers.weights import stage_weight_bytes, widest_dense
from calc.units import GIB, MIB

SWA_RATIO = Fraction(4, 5)
"""--swa-full-tokens-ratio: window tokens per full token."""
STATE_RATIO = Fraction(9, 10)
"""--mamba-full-memory-ratio: pool of states to pool of tokens."""
INDEX_ELEMENT_BYTES = 2
CONTEXT_BYTES, ROCM_CONTEXT_BYTES = int(0.61 * GIB), int(2.76 * GIB)
"""Used before the weights: the CUDA context (139.20 of 139.81 GiB free in a log), ROCm's (188.32 of 191.98 with TP
8)."""
GROUP_BYTES = int(0.9 * GIB)
"""Used if several GPUs share the model: buffers of the communicator."""


def token_bytes(
    layer: CacheLayers, *, attention_tp: int, kv_element_bytes: int | Fraction, scaled_index: bool = False
) -> int:
    """Bytes per token and layer on a rank. Raises SpecError if the KV heads cannot be divided this way.

    `scaled_index`: index keys of latent attention in fp8 with scales (DSATokenToKVPool), as in CUDA and ROCm builds.
    """
    if layer.kind == LATENT:
        index = layer.index_elements * INDEX_ELEMENT_BYTES
        return ceil(layer.key_dim * kv_element_bytes) + (index_bytes(layer) if scaled_index else index)
    own = heads_bytes(layer, tp=attention_tp, kv_element_bytes=kv_element_bytes)
    return own + layer.index_elements * INDEX_ELEMENT_BYTES


def _states(layers: tuple[CacheLayers, ...], options: ServerOptions, plain: int) -> int:
    """Bytes of recurrent states per sequence on a rank."""
    each = options.state_element_bytes or options.facts.state_element_bytes or plain
    return sum(
        layer.layers
        * int(
            recurrent_page_bytes(
                state_elements=layer.state_elements,
                conv_channels=layer.conv_channels,
                conv_rows=layer.conv_kernel - 1,
                state_element_bytes=each,
                conv_element_bytes=2,
                tp=options.tp // options.dp_attention,
            )
        )
        for layer in layers
        if layer.kind == RECURRENT
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The options with every default filled in."""

    version: str
    total: int
    visible: str | None
    free: int
    plain: int
    length: int
    chunk: int
    graph_batch: int
    fraction: Fraction
    page: int


def resolve(study: Study, options: ServerOptions) -> Known:
    """Defaults by device and version."""
    total, visible = visible_bytes(study.device)
    text = options.version or NEWEST["sglang"]
    setting = SglangSetting(
        total_mib=total // MIB,
        tp=options.tp,
        dp_attention=options.dp_attention,
        version=parse_version(text),
        latent=any(layer.kind == LATENT for layer in cache_layers(study.model)),
        multimodal=options.facts.multimodal,
        drafted=options.speculative_layers > 0,
    )
    chunk = options.max_num_batched_tokens or tier(setting).chunk
    context = ROCM_CONTEXT_BYTES if study.device.name.startswith("AMD") else CONTEXT_BYTES
    return Known(
        version=text,
        total=total,
        visible=visible,
        free=total - context - (GROUP_BYTES if options.tp > 1 else 0),
        plain=plain_bytes(study, options),
        length=options.max_model_len or study.context,
        chunk=chunk,
        graph_batch=graph_batch(setting),
        fraction=options.gpu_memory_utilization or static_fraction(setting, chunk),
        page=options.block_size or 1,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The pool and what it holds. `request_pages` is for a full-length request."""

    size: int
    page_bytes: int
    pages: int
    request_pages: int
    state_bytes: int
    concurrency: float


def _pool(study: Study, options: ServerOptions, known: Known, cached: tuple[CacheLayers, ...], derived: int) -> Pool:
    layers, states = _spread(cached, options, study), _states(cached, options, known.plain)
    given = options.kv_pool_bytes is not None
    size = derived if options.kv_pool_bytes is None else options.kv_pool_bytes
    for_tokens = int(size / (1 + STATE_RATIO)) if states and not given else size
    full = sum(each for each, window in layers if not window)
    sliding = sum(each for each, window in layers if window)
    page_bytes = (ceil(full + SWA_RATIO * sliding) if full else sliding) * known.page
    pages = max(0, for_tokens) // page_bytes if page_bytes else 0
    pages = max(0, pages - 1) if known.page > 1 else pages  # the first page is a dummy
    need = -(-known.length // known.page)
    concurrency = pages / need
    if states and not given and size > 0:
        concurrency = min(concurrency, (size - for_tokens) / states) if page_bytes else size / states
    return Pool(
        size=size,
        page_bytes=page_bytes,
        pages=pages,
        request_pages=need,
        state_bytes=states,
        concurrency=float(concurrency),
    )


def _weights(study: Study, options: ServerOptions, known: Known) -> int:
    return stage_weight_bytes(
        study.model,
        study.weight_format,
        tp=options.tp,
        stage=(0, study.model.n_layers),
        plain=known.plain,
        facts=options.facts,
        attention_tp=options.tp // options.dp_attention,
    )


def _activation(study: Study, options: ServerOptions, known: Known) -> int:
    peak = forward_peak(
        batched_tokens=known.chunk,
        intermediate_size=widest_dense(study.model),
        tp=options.tp,
        hidden_size=study.model.hidden_size,
        element_bytes=known.plain,
    )
    return int(peak)


def sglang_report(study: Study, options: ServerOptions) -> ServerReport:
    """SGLang's pool and tokens (of one data-parallel rank). Raises SpecError."""
    check_heads(study, options.tp // options.dp_attention)
    model, known = study.model, resolve(study, options)
    weights = _weights(study, options, known)
    cached = cache_layers(model)
    if options.speculative_layers:
        cached = (*cached[:-1], replace(cached[-1], layers=cached[-1].layers + options.speculative_layers))
    pool = _pool(study, options, known, cached, int(known.free * known.fraction) - weights)
    return ServerReport(
        study=study,
        options=options,
        name="sglang",
        version=known.version,
        block_size=known.page,
        weight_bytes_per_gpu=weights,
        activation_bytes=_activation(study, options, known),
        non_torch_bytes=known.total - known.free,
        cuda_graph_bytes=cuda_graph_bytes(
            n_layers=model.n_layers, sizes=capture_sizes(known.graph_batch), eager=options.enforce_eager
        ),
        kv_pool_bytes=pool.size,
        kv_blocks=pool.pages,
        kv_tokens=pool.pages * known.page,
        max_concurrency=pool.concurrency,
        kv_request_bytes=pool.request_pages * pool.page_bytes + pool.state_bytes,
        groups=tuple(_group(layer, known, pool) for layer in cached),
        assumptions=tuple(_remarks(options, known, cached, pool, scaled=_scales_index(study.device))),
        bands=_bands(options, pool.size),
        steps=_terms(options, known, weights, pool),
        utilization=known.fraction,
        max_num_batched_tokens=known.chunk,
        max_num_seqs=options.max_num_seqs,
    )


def _group(layer: CacheLayers, known: Known, pool: Pool) -> CacheGroup:
    need = 1 if layer.kind == RECURRENT else pool.request_pages
    return CacheGroup(kind=layer.kind, layers=layer.layers, block_tokens=known.page, blocks_per_request=need)


def _remarks(
    options: ServerOptions, known: Known, cached: tuple[CacheLayers, ...], pool: Pool, *, scaled: bool
) -> list[str]:
    said = [known.visible] if known.visible else []
    if options.gpu_memory_utilization is None:
        said.append(f"--mem-fraction-static {float(known.fraction):g}, the default of {known.version} for this device")
    said.append(f"pages of {known.page} tokens" if known.page > 1 else "tokens are allocated one by one (page size 1)")
    windows = {layer.window is not None for layer in cached if layer.kind != RECURRENT}
    if len(windows) > 1 and not options.disable_hybrid:
        said.append("window layers have their own pool: 0.8 tokens per token of the full layers")
    if any(layer.index_elements and layer.kind == LATENT for layer in cached):
        said.append(
            "index keys in fp8 with scales (132 B), as in CUDA builds"
            if scaled
            else "index keys in 16 bits, as in a log from Ascend; CUDA builds use fp8 with scales (132 B)"
        )
    elif any(layer.index_elements for layer in cached):
        said.append("index keys in 16 bits")
    if pool.state_bytes and options.kv_pool_bytes is None:
        said.append("the state pool has 0.9 times the bytes of the token pool (--mamba-full-memory-ratio)")
    if options.dp_attention > 1:
        each = options.tp // options.dp_attention
        said.append(
            f"attention over {each} GPUs; tokens are those of one of {options.dp_attention} data-parallel ranks"
        )
    return said


def _spread(cached: tuple[CacheLayers, ...], options: ServerOptions, study: Study) -> list[tuple[int, bool]]:
    """Bytes per token over all layers of a kind, and whether they keep a window."""
    attention_tp = options.tp // options.dp_attention
    each = study.kv_format.bytes_per_element
    return [
        (
            k.layers
            * token_bytes(
                k, attention_tp=attention_tp, kv_element_bytes=each, scaled_index=_scales_index(study.device)
            ),
            k.window is not None and not options.disable_hybrid,
        )
        for k in cached
        if k.kind != RECURRENT
    ]


def _scales_index(device: DeviceSpec) -> bool:
    """Whether the device's build keeps index keys in fp8; unknown for a typed-in memory."""
    return device.source != "typed in"


def _terms(options: ServerOptions, known: Known, weights: int, pool: Pool) -> tuple[Term, ...]:
    terms: tuple[Term, ...] = ()
    if options.kv_pool_bytes is None:
        share: dict[str, Any] = {"free_bytes": known.free, "utilization": known.fraction, "weight_bytes": weights}
        terms = (derive("KV pool per GPU", pool_from_free, gives="kv_pool_bytes", unit="B", **share),)
    if pool.size < 0 or not pool.page_bytes:
        return terms
    return (*terms, *block_terms(pool.size, pool.page_bytes, pool.pages, pool.request_pages))


def _bands(options: ServerOptions, pool: int) -> dict[str, tuple[int, int]]:
    """Error on either side of a computed pool: 5 % for a given share, 8 % for the default one."""
    margin = abs(pool) * (5 if options.gpu_memory_utilization is not None else 8) // 100
    return {} if options.kv_pool_bytes is not None else {"kv_pool_bytes": (pool - margin, pool + margin)}
