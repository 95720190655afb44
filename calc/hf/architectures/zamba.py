"""Zamba: Mamba layers, some of them preceded by a transformer block whose weights are shared by all occurrences."""

from __future__ import annotations

from calc.hf.architecture import Architecture
from calc.hf.architectures.mamba import bare_layer
from calc.hf.reader import INTERMEDIATE_SIZE, N_HEADS, N_KV_HEADS, Reader, shown
from calc.hf.recurrences import step_rank
from calc.model.layers import Attention, Dense, LayerSpec, Mamba1, Mamba2, Mixer


def _zamba_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Zamba: one transformer block with an input of twice the width."""
    inner = reader.count("mamba_expand") * hidden_size
    mamba = Mamba1(
        inner=inner,
        state=reader.count("mamba_d_state"),
        kernel=reader.count("mamba_d_conv"),
        dt_rank=step_rank(reader, "mamba_dt_rank", hidden_size),
        extra_params=2 * inner + hidden_size if reader.flag("mamba_proj_bias") else 0,
        conv_bias=reader.flag("mamba_conv_bias", True),
    )
    width, head_dim = _block_width(reader, hidden_size)
    seen = 0
    layers = []
    for is_hybrid in _hybrid_layers(reader, n_layers):
        if not is_hybrid:
            layers.append(bare_layer(hidden_size, mamba))
            continue
        attention = _wide_attention(reader, hidden_size, width=width, head_dim=head_dim, shared=seen > 0, adapters=0)
        dense = Dense(intermediate_size=reader.count(*INTERMEDIATE_SIZE), shared=seen > 0)
        layers.append(_hybrid(hidden_size, (attention, mamba), dense, width=width, own=seen == 0))
        seen += 1
    return layers


def _zamba2_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Zamba2: `num_mem_blocks` transformer blocks in turn, with low-rank adapters for each occurrence."""
    bias = reader.flag("add_bias_linear")
    mamba = _zamba2_mamba(reader, hidden_size, bias=bias)
    width, head_dim = _block_width(reader, hidden_size)
    blocks = reader.count("num_mem_blocks")
    inner, rank = reader.maybe(*INTERMEDIATE_SIZE) or 4 * hidden_size, reader.count("adapter_rank")
    on_attention = 6 * width * rank if reader.flag("use_shared_attention_adapter") else 0
    on_dense = rank * (hidden_size + 2 * inner)
    seen = 0
    layers = []
    for is_hybrid in _hybrid_layers(reader, n_layers):
        if not is_hybrid:
            layers.append(bare_layer(hidden_size, mamba))
            continue
        shared = seen >= blocks
        attention = _wide_attention(
            reader, hidden_size, width=width, head_dim=head_dim, shared=shared, adapters=on_attention
        )
        own_bias = 0 if shared or not bias else 2 * inner + hidden_size
        dense = Dense(intermediate_size=inner, shared=shared, extra_params=on_dense + own_bias)
        layers.append(_hybrid(hidden_size, (attention, mamba), dense, width=width, own=not shared))
        seen += 1
    return layers


def _zamba2_mamba(reader: Reader, hidden_size: int, *, bias: bool) -> Mamba2:
    n_heads = reader.count("n_mamba_heads")
    inner = reader.count("mamba_expand") * hidden_size
    reader.ignore("mamba_headdim")  # inner divided by the heads
    groups, state = reader.count("mamba_ngroups"), reader.count("mamba_d_state")
    projected = 2 * inner + 2 * groups * state + n_heads
    return Mamba2(
        inner=inner,
        n_heads=n_heads,
        groups=groups,
        state=state,
        kernel=reader.count("mamba_d_conv"),
        extra_params=projected + hidden_size if bias else 0,
    )


def _block_width(reader: Reader, hidden_size: int) -> tuple[int, int]:
    """(input width of the block's projections, head_dim): twice hidden_size if the config does not state it."""
    width = reader.maybe("attention_hidden_size") or 2 * hidden_size
    return width, reader.maybe("attention_head_dim") or 2 * hidden_size // reader.count(*N_HEADS)


def _hybrid_layers(reader: Reader, n_layers: int) -> list[bool]:
    """Which layers have a transformer block before them."""
    if (listed := reader.per_layer("layers_block_type", n_layers)) is not None:
        known = ("hybrid", "mamba", "linear_attention")
        if unknown := [kind for kind in listed if kind not in known]:
            raise reader.fail(f"layers_block_type has {shown(unknown[0])}: kvscope knows {', '.join(known)}")
        reader.ignore("attn_layer_period", "attn_layer_offset", "hybrid_layer_ids")
        if "hybrid" not in listed:
            reader.ignore(*N_HEADS, *N_KV_HEADS)
        return [kind == "hybrid" for kind in listed]
    period, offset = reader.count("attn_layer_period"), reader.count("attn_layer_offset", minimum=0)
    return ([False, False, True] + [i % period == offset for i in range(n_layers - 3)])[:n_layers]


def _wide_attention(
    reader: Reader, hidden_size: int, *, width: int, head_dim: int, shared: bool, adapters: int
) -> Attention:
    """Attention whose queries, keys and values are projected from `width`; what exceeds hidden_size is in
    extra_params."""
    n_heads = reader.count(*N_HEADS)
    n_kv_heads = reader.maybe(*N_KV_HEADS) or n_heads
    wider = (width - hidden_size) * (n_heads + 2 * n_kv_heads) * head_dim
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        shared=shared,
        extra_params=adapters + (0 if shared else wider),
    )


def _hybrid(hidden_size: int, mixers: tuple[Mixer, ...], dense: Dense, *, width: int, own: bool) -> LayerSpec:
    """Mixers, the block, and the projection after it; norms of the block at its first occurrence."""
    norms = hidden_size + (width + hidden_size if own else 0)
    return LayerSpec(
        hidden_size=hidden_size,
        mixers=mixers,
        feed_forwards=(dense,),
        norm_params=norms + hidden_size * hidden_size,
    )


ARCHITECTURES = (
    Architecture(names=("zamba",), unused=("n_mamba_heads",), tied=True, layers=_zamba_layers),
    Architecture(
        names=("zamba2",),
        unused=("kv_channels", "use_conv_bias"),
        tied=True,
        needs_inner=False,
        required=("layers_block_type",),
        layers=_zamba2_layers,
    ),
)
