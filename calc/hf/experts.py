"""The feed-forwards of each layer, dense or experts, from the fields of a config."""

from __future__ import annotations

from collections.abc import Callable

from calc.hf.families import Family
from calc.hf.reader import INTERMEDIATE_SIZE, Reader, shown
from calc.model.layers import Dense, Experts, FeedForward
from calc.model.spec import Mlp

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


def feed_forwards(
    reader: Reader,
    family: Family,
    *,
    hidden_size: int,
    n_layers: int,
    dense_of: Callable[[int], Dense],
    dense_size: Callable[[], int],
) -> list[tuple[FeedForward, ...]]:
    """One tuple a layer. `dense_of` makes a dense one of a size, `dense_size` reads a dense layer's size."""
    n_experts = _n_experts(reader)
    if n_experts <= 1 and reader.model_type != "hunyuan_v1_moe":
        dense = (dense_of(dense_size()),) if n_layers else ()
        return [dense] * n_layers
    sparse = sparse_layers(reader, n_layers)
    experts = _experts(reader, family, n_experts=n_experts, hidden_size=hidden_size)
    shared = _shared(reader, family, hidden_size=hidden_size, dense_of=dense_of)
    plain = () if all(sparse) else (dense_of(_dense_size(reader, dense_size)),)
    return [(*shared, experts) if is_sparse else plain for is_sparse in sparse]


def _n_experts(reader: Reader) -> int:
    if reader.get("enable_moe_block") is False:
        return 0
    return reader.maybe(*N_EXPERTS, minimum=0) or 0


def _dense_size(reader: Reader, dense_size: Callable[[], int]) -> int:
    """Of the dense layers between experts (Llama 4 and Qwen's have a size of their own)."""
    return (
        reader.maybe("intermediate_size_mlp", "dense_intermediate_size", "dense_mlp_intermediate_size") or dense_size()
    )


def sparse_layers(reader: Reader, n_layers: int) -> list[bool]:
    """Which layers have experts: all, or as first_k_dense_replace, steps, periods and lists say."""
    if (types := reader.per_layer("mlp_layer_types", n_layers)) is not None:
        if unknown := [t for t in types if t not in ("dense", "sparse")]:
            raise reader.fail(f"mlp_layer_types has {shown(unknown[0])}: kvscope knows dense and sparse")
        return [kind == "sparse" for kind in types]
    if isinstance(frequency := reader.get("moe_layer_freq"), list):
        return [bool(value) for value in reader.per_layer("moe_layer_freq", n_layers) or frequency]
    if "moe_layers" in reader.config and reader.has("moe_layers"):
        listed = reader.indices("moe_layers")
        return [i in listed for i in range(n_layers)]
    if reader.has("moe_layer_start_index"):
        return _ernie(reader, n_layers)
    return [_is_sparse(reader, i) for i in range(n_layers)]


def _is_sparse(reader: Reader, layer: int) -> bool:
    if layer < (reader.maybe("first_k_dense_replace", "num_dense_layers", minimum=0) or 0):
        return False
    if layer in reader.indices("mlp_only_layers"):
        return False
    first = reader.maybe("first_k_dense_replace", minimum=0) or 0
    if (frequency := reader.maybe("moe_layer_freq")) is not None and frequency > 1:
        return (layer - first) % frequency == 0 if reader.model_type == "kimi_linear" else layer % frequency == 0
    for key in ("decoder_sparse_step", "interleave_moe_layer_step"):
        if (step := reader.maybe(key, minimum=0)) is not None:
            return step > 0 and (layer + 1) % step == 0
    if (period := reader.maybe("expert_layer_period")) is not None:
        return layer % period == (reader.maybe("expert_layer_offset", minimum=0) or 0)
    return True


def _ernie(reader: Reader, n_layers: int) -> list[bool]:
    start = reader.count("moe_layer_start_index", minimum=0)
    end = reader.get("moe_layer_end_index")
    last = n_layers - 1 if end in (None, -1) else reader.checked("moe_layer_end_index", end, minimum=0)
    step = reader.maybe("moe_layer_interval") or 1
    return [(i + 1) % step == 0 and start <= i <= last for i in range(n_layers)]


def _expert_size(reader: Reader) -> int:
    size = reader.get("moe_intermediate_size")
    if isinstance(size, list):
        if len(set(map(str, size))) != 1:
            raise reader.fail("moe_intermediate_size must be the same in all layers, or one number")
        return reader.checked("moe_intermediate_size", size[0])
    return reader.count(*EXPERT_SIZE, *INTERMEDIATE_SIZE)


def _experts(reader: Reader, family: Family, *, n_experts: int, hidden_size: int) -> Experts:
    router = n_experts * hidden_size + (n_experts if family.router_bias else 0)
    return Experts(
        n_experts=n_experts,
        top_k=reader.count(*TOP_K),
        expert_size=_expert_size(reader),
        router_params=router,
        mlp=Mlp.GATED if family.gated else Mlp.PLAIN,
        bias=family.expert_bias,
    )


def _shared(
    reader: Reader, family: Family, *, hidden_size: int, dense_of: Callable[[int], Dense]
) -> tuple[FeedForward, ...]:
    """Experts that every token goes through, as one feed-forward of their joint size."""
    size = reader.maybe(*SHARED_SIZE, minimum=0)
    if size is None:
        n_shared = reader.maybe(*N_SHARED, minimum=0) or 0
        size = n_shared * _expert_size(reader) if n_shared else 0
        if reader.model_type.startswith("llama4") or reader.model_type == "hunyuan_v1_moe":
            size = reader.count(*INTERMEDIATE_SIZE)
    if not size:
        return ()
    dense = dense_of(size)
    if not family.shared_gate:
        return (dense,)
    from dataclasses import replace

    return (replace(dense, extra_params=dense.extra_params + hidden_size),)
