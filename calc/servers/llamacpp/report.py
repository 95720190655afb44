"""The report of llama.cpp: what is on each device and on the host, and how many slots fit."""

from __future__ import annotations

from calc.model.study import Study
from calc.servers.budget import visible_bytes
from calc.servers.cache_layers import LATENT, CacheLayers
from calc.servers.llamacpp.builds import LATENT_CACHE, MEASURED, WINDOW_CACHE
from calc.servers.llamacpp.cache import NO_WINDOW
from calc.servers.llamacpp.layout import CONTEXT_BYTES, UBATCH, Layout, layout_of
from calc.servers.records import Band, CacheGroup, ServerOptions, ServerReport


def llamacpp_report(study: Study, options: ServerOptions) -> ServerReport:
    """A contiguous cache for all slots (by default one). Raises SpecError."""
    layout = layout_of(study, options)
    slots = options.max_num_seqs or 1
    shares = layout.shares(slots)
    full = min(shares, key=lambda share: share.free_bytes)
    one = layout.cache_bytes(1)[shares.index(full)]
    fits = full.free_bytes >= 0
    pool = full.kv_bytes if fits else full.free_bytes + full.kv_bytes
    most = slots if fits and options.max_num_seqs else layout.most_slots()
    tokens = layout.context * slots if fits else 0
    return ServerReport(
        study=study,
        options=options,
        name="llamacpp",
        version=f"b{layout.build}",
        block_size=1,
        weight_bytes_per_gpu=full.weight_bytes,
        activation_bytes=full.compute_bytes,
        non_torch_bytes=CONTEXT_BYTES,
        cuda_graph_bytes=0,
        kv_pool_bytes=pool,
        kv_blocks=tokens,
        kv_tokens=tokens,
        max_concurrency=float(most) if most else min(max(0, pool) / one if one else 0.0, 0.999),
        kv_request_bytes=one,
        groups=_groups(layout),
        assumptions=tuple(_assumed(layout, slots)),
        bands={
            "activation_bytes": _band(full.compute_bytes),
            "non_torch_bytes": (CONTEXT_BYTES // 2, CONTEXT_BYTES * 2),
        },
        max_num_batched_tokens=options.max_num_batched_tokens or UBATCH,
        max_num_seqs=slots,
        devices=shares,
        host=layout.host(slots),
        n_gpu_layers=layout.placement.on_devices,
        n_cpu_moe=layout.placement.host_experts,
    )


def _band(compute: int) -> Band:
    """From a fifth less to a quarter more: the largest errors of the sums on the compared graphs."""
    return compute * 4 // 5, compute * 5 // 4


def _groups(layout: Layout) -> tuple[CacheGroup, ...]:
    counts: dict[CacheLayers, int] = {}
    for (_, cached), n in layout.cache_places.items():
        counts[cached] = counts.get(cached, 0) + n
    return tuple(CacheGroup(kind=k.kind, layers=n, block_tokens=1, blocks_per_request=1) for k, n in counts.items())


def _assumed(layout: Layout, slots: int) -> list[str]:
    """The conditions of the figures, in terms of llama.cpp's options."""
    model, placement = layout.study.model, layout.placement
    said = [*dict.fromkeys(words for device in layout.devices if (words := visible_bytes(device)[1]))]
    each = "1 slot" if slots == 1 else f"{slots:,} slots"
    said.append(f"{each} of {layout.context:,} tokens, allocated at once (--ctx-size {layout.context * slots:,})")
    said.append(f"{placement.on_devices:,} of {model.n_layers + 1:,} layers on devices, including the output")
    if placement.host_experts:
        said.append(f"the experts of the lowest {placement.host_experts:,} layers on the host")
    if model.tied:
        said.append("the tied embedding is on the host as the table and with the output as the head")
    if len(layout.devices) > 1:
        said.append(f"{len(layout.devices)} devices share whole layers (--split-mode layer)")
    said += ["flash attention on", f"batches of {layout.options.max_num_batched_tokens or UBATCH:,} tokens"]
    return [*said, *_of_build(layout)]


def _of_build(layout: Layout) -> list[str]:
    """How this build differs from the model or from later builds."""
    build, mixers = layout.build, [mixer for layer in layout.study.model.groups for mixer in layer.mixers]
    said = [f"b{build} is newer than any known here: counted as b{MEASURED}"] if build > MEASURED else []
    if any(mixer.window is not None and mixer.cache_elements for mixer in mixers):
        if layout.study.model.model_type in NO_WINDOW:
            said.append("llama.cpp has no windows for this model: its layers cache the whole context")
        elif build < WINDOW_CACHE:
            said.append(f"window layers cache the whole context before b{WINDOW_CACHE}")
    if build < LATENT_CACHE and any(mixer.kind == LATENT for mixer in mixers):
        said.append(f"before b{LATENT_CACHE}, K and V of all heads are cached instead of the latent")
    return said
