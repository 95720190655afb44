"""transformers: no pool of blocks, but a cache that grows.

transformers 5: cache_utils.py (DynamicCache: full layers keep every token, sliding ones window - 1 and the new one).
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

from calc.errors import SpecError
from calc.model.count import parameters
from calc.model.study import Study
from calc.servers.budget import plain_bytes, visible_bytes
from calc.servers.cache_layers import COMPRESSED, LATENT, RECURRENT, CacheLayers, cache_layers
from calc.servers.records import CacheGroup, ServerOptions, ServerReport
from calc.servers.vllm_budget import forward_peak
from calc.servers.weights import widest_dense
from calc.units import GIB

VERSION = "5.23"
"""Whose classes were read."""
CONTEXT_BYTES = int(0.5 * GIB)
"""A CUDA context with its kernels loaded."""
AS_ACTIVATIONS = ("lightning attention", "compressor")
"""Recurrences that keep their states in the dtype of the activations; others use float32."""


def row_bytes(layer: CacheLayers, each: int | Fraction) -> int:
    """Bytes per token (or row) and layer for all heads, including an indexer's key."""
    if layer.kind == LATENT:
        return ceil((layer.key_dim + layer.index_elements) * each)
    return ceil((layer.n_kv_heads * (layer.key_dim + layer.value_dim) + layer.index_elements) * each)


def state_bytes(layer: CacheLayers, element_bytes: int) -> int:
    """State bytes per sequence and layer: the recurrence and the inputs of its convolution."""
    return (layer.state_elements + layer.conv_channels * layer.conv_kernel) * element_bytes


def _groups(cached: tuple[CacheLayers, ...]) -> tuple[CacheGroup, ...]:
    return tuple(CacheGroup(kind=k.kind, layers=k.layers, block_tokens=1, blocks_per_request=1) for k in cached)


def _request_bytes(
    study: Study, options: ServerOptions, cached: tuple[CacheLayers, ...], plain: int, length: int
) -> int:
    """What one request of full length takes, on all devices together."""
    each = study.kv_format.bytes_per_element
    heads = study.model.group_size if options.facts.repeated_kv else 1
    rows = sum(k.layers * _kept_tokens(k, length) * row_bytes(k, each) * heads for k in cached if k.kind != RECURRENT)
    return rows + sum(k.layers * state_bytes(k, plain if k.mixer in AS_ACTIVATIONS else max(plain, 4)) for k in cached)


def transformers_report(study: Study, options: ServerOptions) -> ServerReport:
    """A dynamic cache: the size of one full-length request, and how many fit into the rest of the device."""
    model, tp = study.model, options.tp
    total, visible = visible_bytes(study.device)
    plain, length = plain_bytes(study, options), options.max_model_len or study.context
    cached = cache_layers(model)
    if tp > 1 and any(k.n_kv_heads % tp for k in cached if k.kind not in (LATENT, RECURRENT)):
        raise SpecError(
            "tp", f"transformers divides whole KV heads and repeats none: they are not divisible by TP {tp}"
        )
    weights = -(-int(_model_bytes(study, plain)) // tp)
    prompt = options.max_num_batched_tokens or length
    activation = int(
        forward_peak(
            batched_tokens=prompt,
            intermediate_size=widest_dense(model),
            tp=tp,
            hidden_size=model.hidden_size,
            element_bytes=plain,
        )
    )
    request = -(-_request_bytes(study, options, cached, plain, length) // tp)
    pool = total - weights - activation - CONTEXT_BYTES if options.kv_pool_bytes is None else options.kv_pool_bytes
    tokens = int(max(0, pool) * length // request) if request else 0
    return ServerReport(
        study=study,
        options=options,
        name="transformers",
        version=options.version or VERSION,
        block_size=1,
        weight_bytes_per_gpu=weights,
        activation_bytes=activation,
        non_torch_bytes=CONTEXT_BYTES,
        cuda_graph_bytes=0,
        kv_pool_bytes=pool,
        kv_blocks=tokens,
        kv_tokens=tokens,
        max_concurrency=max(0, pool) / request if request else 0.0,
        kv_request_bytes=request,
        groups=_groups(cached),
        assumptions=(*([visible] if visible else []), *_assumed(options, prompt)),
        bands={
            "activation_bytes": (activation // 2, activation * 2),
            "non_torch_bytes": (CONTEXT_BYTES // 2, CONTEXT_BYTES * 2),
        },
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_num_seqs=options.max_num_seqs,
    )


def _assumed(options: ServerOptions, prompt: int) -> Iterator[str]:
    yield "no pool is reserved and the cache grows: the figure is what fits in the rest of the device"
    yield f"one prompt of {prompt:,} tokens at a time, with logits for its last token only"
    yield "attention without a score matrix (sdpa or flash); eager attention takes more"
    if options.facts.repeated_kv:
        yield "the class of this model caches K and V once per query head"


def _kept_tokens(layer: CacheLayers, length: int) -> int:
    if layer.kind == COMPRESSED:
        return length // layer.ratio
    return length if layer.window is None else min(length, max(1, layer.window - 1))


def _model_bytes(study: Study, plain: int) -> int:
    if study.weight_format.stored is not None:
        return study.weight_format.stored.total_bytes
    each = study.weight_format.bytes_per_element
    counts = parameters(study.model)
    if each >= plain:
        return ceil(counts.total * each)
    outside = counts.embedding + counts.head + counts.norms + counts.positions
    return ceil((counts.total - outside) * each) + outside * plain
