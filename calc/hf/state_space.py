"""Models of state space layers alone, or with blocks of attention whose weights several layers share.

Mamba, Falcon Mamba and Mamba-2 have no attention; Zamba and Zamba2 put one transformer block (or a few in turn)
before some of their layers; RecurrentGemma alternates a gated linear recurrence with a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from calc.hf.families import Family
from calc.hf.reader import INTERMEDIATE_SIZE, N_HEADS, N_KV_HEADS, Reader, shown
from calc.model.layers import Attention, Dense, FeedForward, LayerSpec, Mamba1, Mamba2, Mixer, Stated


def mamba_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Mamba and Falcon Mamba: a norm and a selective state space each."""
    inner = reader.maybe("intermediate_size") or reader.count("expand") * hidden_size
    mixer = Mamba1(
        inner=inner,
        state=reader.count("state_size"),
        kernel=reader.count("conv_kernel"),
        dt_rank=_rank(reader, "time_step_rank", hidden_size),
        extra_params=2 * inner + hidden_size if reader.flag("use_bias") else 0,
        conv_bias=reader.flag("use_conv_bias", True),
    )
    return [_bare(hidden_size, mixer)] * n_layers


def mamba2_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Mamba-2: a norm and a state space of heads each."""
    n_heads = reader.count("num_heads")
    inner = n_heads * reader.count("head_dim")
    groups, state = reader.count("n_groups"), reader.count("state_size")
    projected = 2 * inner + 2 * groups * state + n_heads
    mixer = Mamba2(
        inner=inner,
        n_heads=n_heads,
        groups=groups,
        state=state,
        kernel=reader.count("conv_kernel"),
        extra_params=projected + hidden_size if reader.flag("use_bias") else 0,
        conv_bias=reader.flag("use_conv_bias", True),
    )
    return [_bare(hidden_size, mixer)] * n_layers


def _bare(hidden_size: int, mixer: Mixer) -> LayerSpec:
    return LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=(), norm_params=hidden_size)


def _rank(reader: Reader, key: str, hidden_size: int) -> int:
    return -(-hidden_size // 16) if reader.get(key) == "auto" else reader.count(key)


def zamba_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Zamba: one transformer block, twice as wide at its input, stands before some of the Mamba layers."""
    inner = reader.count("mamba_expand") * hidden_size
    mamba = Mamba1(
        inner=inner,
        state=reader.count("mamba_d_state"),
        kernel=reader.count("mamba_d_conv"),
        dt_rank=_rank(reader, "mamba_dt_rank", hidden_size),
        extra_params=2 * inner + hidden_size if reader.flag("mamba_proj_bias") else 0,
        conv_bias=reader.flag("mamba_conv_bias", True),
    )
    width = reader.maybe("attention_hidden_size") or 2 * hidden_size
    n_heads = reader.count(*N_HEADS)
    head_dim = reader.maybe("attention_head_dim") or 2 * hidden_size // n_heads
    hybrid = _hybrid_layers(reader, n_layers)
    seen = 0
    layers = []
    for is_hybrid in hybrid:
        if not is_hybrid:
            layers.append(_bare(hidden_size, mamba))
            continue
        attention = _wide_attention(reader, hidden_size, width=width, head_dim=head_dim, shared=seen > 0, adapters=0)
        dense = Dense(intermediate_size=reader.count(*INTERMEDIATE_SIZE), shared=seen > 0)
        layers.append(_hybrid(hidden_size, (attention, mamba), dense, width=width, own=seen == 0))
        seen += 1
    return layers


def zamba2_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Zamba2: `num_mem_blocks` transformer blocks in turn, with low-rank adapters for each place they stand in."""
    n_heads = reader.count("n_mamba_heads")
    bias = reader.flag("add_bias_linear")
    expanded = reader.count("mamba_expand") * hidden_size
    groups, state = reader.count("mamba_ngroups"), reader.count("mamba_d_state")
    projected = 2 * expanded + 2 * groups * state + n_heads
    mamba = Mamba2(
        inner=expanded,
        n_heads=n_heads,
        groups=groups,
        state=state,
        kernel=reader.count("mamba_d_conv"),
        extra_params=projected + hidden_size if bias else 0,
    )
    width, blocks = reader.maybe("attention_hidden_size") or 2 * hidden_size, reader.count("num_mem_blocks")
    head_dim = reader.maybe("attention_head_dim") or 2 * hidden_size // reader.count(*N_HEADS)
    inner, rank = reader.maybe(*INTERMEDIATE_SIZE) or 4 * hidden_size, reader.count("adapter_rank")
    on_attention = 6 * width * rank if reader.flag("use_shared_attention_adapter") else 0
    on_dense = rank * (hidden_size + 2 * inner)
    seen = 0
    layers = []
    for is_hybrid in _hybrid_layers(reader, n_layers):
        if not is_hybrid:
            layers.append(_bare(hidden_size, mamba))
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


def _hybrid_layers(reader: Reader, n_layers: int) -> list[bool]:
    """Which layers have a transformer block before them."""
    if (listed := reader.per_layer("layers_block_type", n_layers)) is not None:
        known = ("hybrid", "mamba", "linear_attention")
        if unknown := [kind for kind in listed if kind not in known]:
            raise reader.fail(f"layers_block_type has {shown(unknown[0])}: kvscope knows {', '.join(known)}")
        return [kind == "hybrid" for kind in listed]
    if reader.model_type == "zamba2":
        raise reader.fail("layers_block_type missing: it says which layers have a transformer block")
    period, offset = reader.count("attn_layer_period"), reader.count("attn_layer_offset", minimum=0)
    return ([False, False, True] + [i % period == offset for i in range(n_layers - 3)])[:n_layers]


def _wide_attention(
    reader: Reader, hidden_size: int, *, width: int, head_dim: int, shared: bool, adapters: int
) -> Attention:
    """Attention whose queries, keys and values are projected from `width`: the rest of it stands in extra_params."""
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


def _hybrid(hidden_size: int, mixers: tuple[Attention, Mixer], dense: Dense, *, width: int, own: bool) -> LayerSpec:
    """Mixers, block and the projection after it; norms of the block where it is its own."""
    norms = hidden_size + (width + hidden_size if own else 0)
    return LayerSpec(
        hidden_size=hidden_size,
        mixers=mixers,
        feed_forwards=(dense,),
        norm_params=norms + hidden_size * hidden_size,
    )


def recurrent_gemma_layers(reader: Reader, family: Family, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """RecurrentGemma: gated linear recurrences and sliding windows in the order that block_types repeats."""
    pattern = reader.get("block_types") or reader.get("_block_types") or ["recurrent", "recurrent", "attention"]
    known = ("recurrent", "attention")
    if not isinstance(pattern, list) or not all(kind in known for kind in pattern):
        raise reader.fail(f"block_types must be a list of {' and '.join(known)}")
    mlp: tuple[FeedForward, ...] = (Dense(intermediate_size=reader.count(*INTERMEDIATE_SIZE) // 2, bias=True),)
    made = {
        "recurrent": LayerSpec(
            hidden_size=hidden_size,
            mixers=(_linear_recurrence(reader, hidden_size),),
            feed_forwards=mlp,
            norm_params=2 * hidden_size,
        ),
        "attention": LayerSpec(
            hidden_size=hidden_size,
            mixers=(_local_attention(reader, hidden_size),),
            feed_forwards=mlp,
            norm_params=2 * hidden_size,
        ),
    }
    return [made[pattern[i % len(pattern)]] for i in range(n_layers)]


def _local_attention(reader: Reader, hidden_size: int) -> Attention:
    n_heads = reader.count(*N_HEADS)
    head_dim = reader.maybe("head_dim") or hidden_size // n_heads
    return Attention(
        n_heads=n_heads,
        n_kv_heads=reader.maybe(*N_KV_HEADS) or n_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        window=reader.count("attention_window_size", "sliding_window"),
        qkv_bias=reader.flag("attention_bias"),
        o_bias=True,
    )


def _linear_recurrence(reader: Reader, hidden_size: int) -> Stated:
    """De et al. 2024 (Griffin): two branches in, a convolution, gates of blocks, a decay of each channel, out."""
    width = reader.maybe("lru_width") or hidden_size
    kernel, n_heads = reader.count("conv1d_width"), reader.count(*N_HEADS)
    block = width // n_heads
    gates = 2 * n_heads * (block * block + block)
    params = 3 * hidden_size * width + 2 * width + hidden_size + width * (kernel + 1) + gates + width
    return Stated(label="gated linear recurrence", params=params, state_elements=width * kernel)


Builder = Callable[[Reader, Family, int, int], list[LayerSpec]]
BUILDERS: Mapping[str, Builder] = {
    "mamba": mamba_layers,
    "falcon_mamba": mamba_layers,
    "mamba2": mamba2_layers,
    "zamba": zamba_layers,
    "zamba2": zamba2_layers,
    "recurrent_gemma": recurrent_gemma_layers,
}
NO_ATTENTION = frozenset(("mamba", "falcon_mamba", "mamba2"))
"""Model types whose configs have neither heads nor an inner size of a feed-forward."""
