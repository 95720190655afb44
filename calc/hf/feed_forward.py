"""The feed-forwards of each layer, dense or experts, from the fields of a config."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture
from calc.hf.attention import has_bias
from calc.hf.reader import HIDDEN_SIZE, INTERMEDIATE_SIZE, Reader, shown
from calc.model.layers import Dense, Experts, FeedForward
from calc.model.parts import Mlp

N_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts", "num_routed_experts")
TOP_K = (
    "num_experts_per_tok", "top_k_experts", "experts_per_token", "moe_topk", "moe_k", "num_experts_per_token",
    "moe_top_k",
)  # fmt: skip
EXPERT_SIZE = ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_intermediate_size")
SHARED_SIZE = (
    "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "shared_intermediate_size",
)  # fmt: skip
N_SHARED = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
DENSE_SIZE = ("intermediate_size_mlp", "dense_intermediate_size", "dense_mlp_intermediate_size")
"""The inner size of dense layers between layers with experts, if it is not intermediate_size (Llama 4 and Qwen)."""
N_DENSE = ("first_k_dense_replace", "num_dense_layers")
WHICH_SPARSE = (
    *N_DENSE, "mlp_layer_types", "moe_layer_freq", "moe_layers", "moe_layer_start_index", "moe_layer_end_index",
    "moe_layer_interval", "mlp_only_layers", "decoder_sparse_step", "interleave_moe_layer_step",
    "expert_layer_period", "expert_layer_offset",
)  # fmt: skip
"""Keys that say which layers have experts."""


def feed_forwards(reader: Reader, arch: Architecture, n_layers: int) -> list[tuple[FeedForward, ...]]:
    """One tuple per layer: a dense block, or shared experts (as one block) and routed experts."""
    n_experts = _n_experts(reader)
    if n_experts <= 1 and not arch.always_experts:
        reader.ignore(*N_EXPERTS, *TOP_K, *EXPERT_SIZE, *SHARED_SIZE, *N_SHARED, *DENSE_SIZE, *WHICH_SPARSE)
        return [(dense_block(reader, arch),) if n_layers else ()] * n_layers
    sparse = sparse_layers(reader, arch, n_layers)
    experts = (*_shared(reader, arch), _experts(reader, arch, n_experts))
    dense: tuple[FeedForward, ...] = ()
    if all(sparse):
        reader.ignore(*INTERMEDIATE_SIZE, *DENSE_SIZE)
    else:
        size = reader.maybe(*DENSE_SIZE)
        dense = (_dense(reader, arch, size) if size else dense_block(reader, arch),)
    return [experts if is_sparse else dense for is_sparse in sparse]


def dense_block(reader: Reader, arch: Architecture) -> Dense:
    """The dense block of a layer without experts."""
    return _dense(reader, arch, inner_size(reader, arch))


def inner_size(reader: Reader, arch: Architecture) -> int:
    """The inner dimension of a dense block; four times the width if the class says so."""
    hidden_size = reader.count(*HIDDEN_SIZE)
    if arch.inner_size is not None:
        return arch.inner_size(reader, hidden_size)
    found = reader.maybe(*INTERMEDIATE_SIZE)
    if found is None and arch.wide_inner:
        reader.notes.append(f"intermediate_size is not in the config: {4 * hidden_size:,}, four times hidden_size")
        return 4 * hidden_size
    return found or reader.count(*INTERMEDIATE_SIZE)


def sparse_layers(reader: Reader, arch: Architecture, n_layers: int) -> list[bool]:
    """Which layers have experts: all, or those given by first_k_dense_replace, steps, periods and lists."""
    if (types := reader.per_layer("mlp_layer_types", n_layers)) is not None:
        reader.ignore(*WHICH_SPARSE)
        if unknown := [t for t in types if t not in ("dense", "sparse")]:
            raise reader.fail(f"mlp_layer_types has {shown(unknown[0])}: kvscope knows dense and sparse")
        return [kind == "sparse" for kind in types]
    if isinstance(frequency := reader.get("moe_layer_freq"), list):
        reader.ignore(*WHICH_SPARSE)
        return [bool(value) for value in reader.per_layer("moe_layer_freq", n_layers) or frequency]
    if "moe_layers" in reader.config and reader.has("moe_layers"):
        reader.ignore(*WHICH_SPARSE)
        listed = reader.indices("moe_layers")
        return [i in listed for i in range(n_layers)]
    if reader.has("moe_layer_start_index"):
        return _range_of_layers(reader, n_layers)
    return [_is_sparse(reader, arch, i) for i in range(n_layers)]


def _is_sparse(reader: Reader, arch: Architecture, layer: int) -> bool:
    first = reader.maybe(*N_DENSE, minimum=0) or 0
    if layer < first or layer in reader.indices("mlp_only_layers"):
        return False
    if (frequency := reader.maybe("moe_layer_freq")) is not None and frequency > 1:
        return (layer - first) % frequency == 0 if arch.sparse_from_first else layer % frequency == 0
    for key in ("decoder_sparse_step", "interleave_moe_layer_step"):
        if (step := reader.maybe(key, minimum=0)) is not None:
            return step > 0 and (layer + 1) % step == 0
    if (period := reader.maybe("expert_layer_period")) is not None:
        return layer % period == (reader.maybe("expert_layer_offset", minimum=0) or 0)
    return True


def _range_of_layers(reader: Reader, n_layers: int) -> list[bool]:
    """Ernie: from a first to a last layer, at an interval."""
    start = reader.count("moe_layer_start_index", minimum=0)
    end = reader.get("moe_layer_end_index")
    last = n_layers - 1 if end in (None, -1) else reader.checked("moe_layer_end_index", end, minimum=0)
    step = reader.maybe("moe_layer_interval") or 1
    return [(i + 1) % step == 0 and start <= i <= last for i in range(n_layers)]


def _n_experts(reader: Reader) -> int:
    if reader.get("enable_moe_block") is False:
        return 0
    return reader.maybe(*N_EXPERTS, minimum=0) or 0


def _dense(reader: Reader, arch: Architecture, size: int) -> Dense:
    mlp = Mlp.GATED if arch.gated else Mlp.PLAIN
    return Dense(intermediate_size=size, mlp=mlp, bias=has_bias(reader, arch.mlp_bias))


def _expert_size(reader: Reader) -> int:
    size = reader.get("moe_intermediate_size")
    if isinstance(size, list):
        if len(set(map(str, size))) != 1:
            raise reader.fail("moe_intermediate_size must be the same in all layers, or one number")
        return reader.checked("moe_intermediate_size", size[0])
    return reader.count(*EXPERT_SIZE, *INTERMEDIATE_SIZE)


def _experts(reader: Reader, arch: Architecture, n_experts: int) -> Experts:
    router = n_experts * reader.count(*HIDDEN_SIZE) + (n_experts if arch.router_bias else 0)
    return Experts(
        n_experts=n_experts,
        top_k=reader.count(*TOP_K),
        expert_size=_expert_size(reader),
        router_params=router,
        mlp=Mlp.GATED if arch.gated else Mlp.PLAIN,
        bias=arch.expert_bias,
    )


def _shared(reader: Reader, arch: Architecture) -> tuple[FeedForward, ...]:
    """Experts that every token uses, as one feed-forward of their combined size."""
    size = reader.maybe(*SHARED_SIZE, minimum=0)
    if size is None and not arch.shared_is_dense:
        n_shared = reader.maybe(*N_SHARED, minimum=0) or 0
        size = n_shared * _expert_size(reader) if n_shared else 0
    else:
        reader.ignore(*N_SHARED)
        size = reader.count(*INTERMEDIATE_SIZE) if size is None else size
    if not size:
        return ()
    dense = _dense(reader, arch, size)
    if not arch.shared_gate:
        return (dense,)
    return (replace(dense, extra_params=dense.extra_params + reader.count(*HIDDEN_SIZE)),)
