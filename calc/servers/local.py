"""transformers and llama.cpp: no pool of blocks, a cache that grows or that is allocated whole.

transformers 5: cache_utils.py (DynamicCache: full layers keep every token, sliding ones window - 1 and the new one).
llama.cpp: llama-kv-cache.cpp (contiguous, n_ctx cells), llama-kv-cache-iswa.cpp (window x sequences + ubatch, padded
to 256), and gguf-parser for the tied embedding that is held twice under full offload.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from calc.errors import SpecError
from calc.model.count import parameters
from calc.model.spec import Study
from calc.servers.budget import plain_bytes, visible_bytes
from calc.servers.cache_layers import LATENT, RECURRENT, CacheLayers, cache_layers
from calc.servers.records import CacheGroup, ServerOptions, ServerReport
from calc.servers.vllm_budget import forward_peak
from calc.servers.weights import widest_dense
from calc.units import GIB

CONTEXT_BYTES = int(0.5 * GIB)
"""A CUDA context with its kernels loaded."""
CELL_PADDING = 256
UBATCH = 512
MOST_SLOTS = 256


def row_bytes(layer: CacheLayers, each: int | Fraction) -> int:
    """Bytes per token and layer, all heads."""
    if layer.kind == LATENT:
        return ceil(layer.key_dim * each)
    return ceil(layer.n_kv_heads * (layer.key_dim + layer.value_dim) * each)


def state_bytes(layer: CacheLayers, element_bytes: int) -> int:
    """State bytes per sequence in one layer: the recurrence and the inputs of its convolution."""
    return (layer.state_elements + layer.conv_channels * layer.conv_kernel) * element_bytes


def window_cells(window: int, *, n_seq: int, n_ubatch: int, n_ctx: int) -> int:
    """Cells of a window layer in llama.cpp: room for all sequences and one batch, padded, at most the context.

    >>> window_cells(1024, n_seq=1, n_ubatch=512, n_ctx=131_072), window_cells(4096, n_seq=2, n_ubatch=512, n_ctx=8192)
    (1536, 8192)
    """
    return min(n_ctx, -(-(window * n_seq + n_ubatch) // CELL_PADDING) * CELL_PADDING)


def compute_buffer_bytes(*, n_ubatch: int, vocab_size: int, hidden_size: int) -> int:
    """llama.cpp's compute buffer with flash attention: logits and hidden states of a batch in float32.

    >>> compute_buffer_bytes(n_ubatch=512, vocab_size=128_256, hidden_size=4096) / 2**20
    258.5
    """
    return n_ubatch * (vocab_size + hidden_size) * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What is on a device besides the cache."""

    weights: int
    activation: int
    non_torch: int


def _groups(kept: tuple[CacheLayers, ...]) -> tuple[CacheGroup, ...]:
    return tuple(CacheGroup(kind=k.kind, layers=k.layers, block_tokens=1, blocks_per_request=1) for k in kept)


def transformers_report(study: Study, options: ServerOptions) -> ServerReport:
    """A dynamic cache: what one request of full length takes, and how many fit into the rest of the device."""
    model, tp = study.model, options.tp
    total, visible = visible_bytes(study.device)
    plain, length = plain_bytes(study, options), options.max_model_len or study.context
    kept, each = cache_layers(model), study.kv_format.bytes_per_element
    heads = model.group_size if options.facts.repeated_kv else 1
    request = sum(k.layers * _kept_tokens(k, length) * row_bytes(k, each) * heads for k in kept if k.kind != RECURRENT)
    request += sum(k.layers * state_bytes(k, max(plain, 4)) for k in kept if k.kind == RECURRENT)
    if tp > 1 and any(k.n_kv_heads % tp for k in kept if k.kind not in (LATENT, RECURRENT)):
        raise SpecError("tp", f"transformers splits whole KV heads and repeats none: they are not divisible by TP {tp}")
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
    request = -(-request // tp)
    pool = total - weights - activation - CONTEXT_BYTES
    pool = pool if options.kv_pool_bytes is None else options.kv_pool_bytes
    said = [visible] if visible else []
    said += ["no pool is reserved, the cache grows: the figure is what the rest of the device holds",
             f"one prompt of {prompt:,} tokens at a time, logits of its last token only",
             "attention without a score matrix (sdpa or flash); eager attention takes more"]  # fmt: skip
    if options.facts.repeated_kv:
        said.append("the class of this model caches K and V once per query head")
    return _report(
        study,
        options,
        name="transformers",
        held=Held(weights=weights, activation=activation, non_torch=CONTEXT_BYTES),
        pool=pool,
        request=request,
        length=length,
        tokens=int(max(0, pool) * length // request) if request else 0,
        said=said,
        kept=kept,
    )


def _kept_tokens(layer: CacheLayers, length: int) -> int:
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


def llamacpp_report(study: Study, options: ServerOptions) -> ServerReport:
    """A contiguous cache for all slots; several devices share the layers (--split-mode layer)."""
    model, n = study.model, options.tp
    total, visible = visible_bytes(study.device)
    length, ubatch = options.max_model_len or study.context, options.max_num_batched_tokens or UBATCH
    each = study.weight_format.bytes_per_element
    stored = study.weight_format.stored
    whole = ceil(parameters(model).total * each) if stored is None else stored.total_bytes
    if model.tied and n * options.pp == 1:
        whole += ceil(model.vocab_size * (model.embedding_size or model.hidden_size) * each)
    held = Held(
        weights=-(-whole // n),
        activation=compute_buffer_bytes(n_ubatch=ubatch, vocab_size=model.vocab_size, hidden_size=model.hidden_size),
        non_torch=CONTEXT_BYTES,
    )
    kept = cache_layers(model)
    room = total - held.weights - held.activation - held.non_torch

    def cache(slots: int) -> int:
        return -(-cache_bytes(kept, study.kv_format.bytes_per_element, length=length, slots=slots, ubatch=ubatch) // n)

    room = room if options.kv_pool_bytes is None else options.kv_pool_bytes
    slots = options.max_num_seqs or max((s for s in range(1, MOST_SLOTS + 1) if cache(s) <= room), default=0)
    pool = cache(slots) if slots and cache(slots) <= room else room
    fits = slots and cache(slots) <= room
    said = [visible] if visible else []
    said += [f"{slots or 1:,} slots of {length:,} tokens, allocated at once (--ctx-size {length * (slots or 1):,})",
             "all layers offloaded, flash attention on; compute buffer: logits and states of one batch"]  # fmt: skip
    if model.tied:
        said.append("the tied embedding is stored twice: as the table and as the head")
    if n > 1:
        said.append(f"{n} devices share the layers evenly (--split-mode layer)")
    concurrency = float(slots) if fits else min(max(0, room) / cache(1), 0.999)
    return _report(
        study,
        options,
        name="llamacpp",
        held=held,
        pool=pool,
        request=cache(1),
        length=length,
        tokens=length * slots if fits else 0,
        said=said,
        kept=kept,
        concurrency=concurrency,
        slots=slots or 1,
        batch=ubatch,
    )


def cache_bytes(kept: tuple[CacheLayers, ...], each: int | Fraction, *, length: int, slots: int, ubatch: int) -> int:
    """Bytes of llama.cpp's cache: full layers for the whole context, windows for all slots, states in float32."""
    n_ctx = -(-length * slots // CELL_PADDING) * CELL_PADDING
    total = 0
    for k in kept:
        if k.kind == RECURRENT:
            total += k.layers * slots * state_bytes(k, 4)
            continue
        cells = n_ctx if k.window is None else window_cells(k.window, n_seq=slots, n_ubatch=ubatch, n_ctx=n_ctx)
        total += k.layers * cells * row_bytes(k, each)
    return total


def _report(
    study: Study,
    options: ServerOptions,
    *,
    name: str,
    held: Held,
    pool: int,
    request: int,
    length: int,
    tokens: int,
    said: list[str],
    kept: tuple[CacheLayers, ...],
    concurrency: float | None = None,
    slots: int | None = None,
    batch: int | None = None,
) -> ServerReport:
    requests = max(0, pool) / request if request else 0.0
    return ServerReport(
        study=study,
        options=options,
        name=name,
        version=options.version or ("5.23" if name == "transformers" else "b6000"),
        block_size=1,
        weight_bytes_per_gpu=held.weights,
        activation_bytes=held.activation,
        non_torch_bytes=held.non_torch,
        cuda_graph_bytes=0,
        kv_pool_bytes=pool,
        kv_blocks=tokens,
        kv_tokens=tokens,
        max_concurrency=requests if concurrency is None else concurrency,
        kv_request_bytes=request,
        groups=_groups(kept),
        assumptions=tuple(said),
        bands={"activation_bytes": (held.activation // 2, held.activation * 2),
               "non_torch_bytes": (held.non_torch // 2, held.non_torch * 2)},
        max_num_batched_tokens=batch or options.max_num_batched_tokens,
        max_num_seqs=slots or options.max_num_seqs,
    )  # fmt: skip
