"""MiniMax: lightning attention in 01 and M1, norms over all heads in M2, indexers that select blocks in M3."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture
from calc.hf.attention import full_attention
from calc.hf.feed_forward import feed_forwards
from calc.hf.layer_kinds import FULL_TYPE, LINEAR_TYPE, linear_or_full
from calc.hf.layers import stack
from calc.hf.reader import Reader, shown
from calc.model.layers import Attention, LayerSpec, Mixer, Stated


def _lightning_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Lightning attention, or full attention if layer_types or attn_type_list says so."""
    types = linear_or_full(reader, n_layers) or _listed_types(reader, n_layers)
    full = full_attention(reader, arch)
    inner = full.n_heads * full.head_dim
    lightning = Stated(
        label="lightning attention",
        params=5 * hidden_size * inner + inner,
        state_elements=full.n_heads * full.head_dim * full.head_dim,
    )
    of: dict[str, tuple[Mixer, ...]] = {LINEAR_TYPE: (lightning,), FULL_TYPE: (full,)}
    return stack(reader, arch, hidden_size, [of[kind] for kind in types], feed_forwards(reader, arch, n_layers))


def _listed_types(reader: Reader, n_layers: int) -> list[str]:
    listed = reader.per_layer("attn_type_list", n_layers)
    if listed is None or any(kind not in (0, 1) for kind in listed):
        raise reader.fail("attn_type_list must have a 0 (lightning) or 1 (full attention) for each layer")
    return [FULL_TYPE if kind else LINEAR_TYPE for kind in listed]


def _m3_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """MiniMax M3: full attention, and in sparse layers an indexer that selects blocks of tokens."""
    full = full_attention(reader, arch)
    sparse = _m3_sparse(reader, n_layers)
    indexed = full
    if any(sparse):
        indexed = _m3_indexed(reader, full, hidden_size)
    else:
        reader.ignore("index_n_heads", "index_head_dim", "index_block_size", "index_topk_blocks")
    mixers: list[tuple[Mixer, ...]] = [(indexed,) if is_sparse else (full,) for is_sparse in sparse]
    return stack(reader, arch, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


def _m3_sparse(reader: Reader, n_layers: int) -> list[bool]:
    own = reader.section("sparse_attention_config")
    if (listed := reader.per_layer("layer_types", n_layers)) is not None:
        if unknown := [kind for kind in listed if kind not in ("full_attention", "minimax_m3_sparse")]:
            raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows full_attention, minimax_m3_sparse")
        return [kind == "minimax_m3_sparse" for kind in listed]
    listed = own.per_layer("sparse_attention_freq", n_layers) if own is not None else None
    if listed is None:
        reader.assume("layer_types", "all full_attention")
    return [bool(value) for value in listed or [0] * n_layers]


def _m3_indexed(reader: Reader, full: Attention, hidden_size: int) -> Attention:
    own = reader.section("sparse_attention_config")
    legacy = own is not None and own.has("sparse_num_index_heads", "sparse_index_dim")
    source = own if own is not None and legacy else reader
    heads = source.count("sparse_num_index_heads" if legacy else "index_n_heads")
    head_dim = source.count("sparse_index_dim" if legacy else "index_head_dim")
    block = source.count("sparse_block_size" if legacy else "index_block_size")
    blocks = source.count("sparse_topk_blocks" if legacy else "index_topk_blocks")
    indexer = hidden_size * (heads + 1) * head_dim + 2 * head_dim
    return replace(
        full,
        index_heads=heads,
        index_dim=head_dim,
        index_topk=blocks * block,
        extra_params=full.extra_params + indexer,
    )


_M3_LOCAL = ("index_local_blocks",)
"""The blocks that an indexer always selects."""

ARCHITECTURES = (
    Architecture(
        names=("minimax",),
        unused=("block_size",),
        layer_types=("full_attention", "linear_attention"),
        layers=_lightning_layers,
    ),
    Architecture(names=("minimax_text_01", "minimax_m1"), unused=("block_size",), layers=_lightning_layers),
    Architecture(names=("minimax_m2",), qk_norm="full", qk_key=("use_qk_norm", True)),
    Architecture(names=("minimax_m3_vl_text", "minimax_m3"), unused=_M3_LOCAL, qk_norm="head", layers=_m3_layers),
)
