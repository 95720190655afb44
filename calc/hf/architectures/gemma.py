"""Gemma: tied embeddings, four norms since Gemma 2; Gemma 3n and 4 share caches between layers; RecurrentGemma."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture, Outer
from calc.hf.attention import attention_mixer
from calc.hf.feed_forward import EXPERT_SIZE, N_EXPERTS, TOP_K
from calc.hf.layer_kinds import FULL, Kind, layer_kinds
from calc.hf.reader import HIDDEN_SIZE, INTERMEDIATE_SIZE, N_HEADS, N_KV_HEADS, N_LAYERS, Reader
from calc.model.layers import Attention, Dense, Experts, FeedForward, LayerSpec, Mixer, Stated

_GEMMA = replace(BIASED, tied=True)
_GEMMA3 = replace(_GEMMA, norms=4, qk_norm="head", window="every:6")


def _first_shared(reader: Reader, n_layers: int) -> int:
    """The lowest layer that reads the cache of a layer below instead of its own K and V."""
    return n_layers - (reader.maybe("num_kv_shared_layers", minimum=0) or 0)


def _gemma3n_outer(reader: Reader) -> Outer:
    """Embeddings for each layer's own input, and projections into and out of the additional streams."""
    n_layers, each = reader.count("num_hidden_layers"), reader.count("hidden_size_per_layer_input")
    hidden_size = reader.count(*HIDDEN_SIZE)
    inputs = n_layers * each * (reader.count("vocab_size_per_layer_input") + hidden_size) + each
    streams = reader.count("altup_num_inputs") - 1
    return Outer(inputs + 2 * streams * hidden_size * hidden_size)


def _gemma3n_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Gemma 3n: alternating updates of several streams, a low-rank path, and a separate input per layer."""
    first_shared = _first_shared(reader, n_layers)
    streams, each, rank = (
        reader.count(key) for key in ("altup_num_inputs", "hidden_size_per_layer_input", "laurel_rank")
    )
    updates = streams**2 + streams**3 + (streams + 2) * hidden_size
    extra = updates + 2 * rank * hidden_size + hidden_size + 2 * each * hidden_size + hidden_size
    kinds, sizes = layer_kinds(reader, arch, n_layers), _inner_sizes(reader, n_layers)
    layers = []
    for i, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        mixer = attention_mixer(reader, arch, kind)
        if shared := i >= first_shared:
            mixer = replace(mixer, keys=False, values=False)
        norms = 4 * hidden_size + mixer.head_dim * (1 if shared else 2) + extra
        dense = Dense(intermediate_size=size)
        layers.append(LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=(dense,), norm_params=norms))
    return layers


def _inner_sizes(reader: Reader, n_layers: int) -> list[int]:
    """intermediate_size of each layer: a list, or one number for all."""
    if isinstance(reader.get("intermediate_size"), list):
        listed = reader.per_layer("intermediate_size", n_layers) or []
        return [reader.checked("intermediate_size", size) for size in listed]
    return [reader.count("intermediate_size")] * n_layers


def _gemma4(reader: Reader, arch: Architecture) -> Architecture:
    """Heads of full layers are wider even if the config does not say so."""
    if not reader.has("global_head_dim", "per_layer_config"):
        reader.put("global_head_dim", 512, note=512)
    return arch


def _gemma4_outer(reader: Reader) -> Outer:
    """The embeddings for each layer's input, their projection and norm."""
    each = reader.maybe("hidden_size_per_layer_input", minimum=0)
    if not each:
        reader.ignore("vocab_size_per_layer_input")
        return Outer()
    rows = reader.count("vocab_size_per_layer_input")
    return Outer(reader.count(*N_LAYERS) * each * (rows + reader.count(*HIDDEN_SIZE)) + each)


def _gemma4_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Gemma 4: full layers have wider heads and use K as V; experts are beside the dense block."""
    kinds = layer_kinds(reader, arch, n_layers)
    kinds[-1] = Kind(FULL)  # the class makes it so, whatever layer_types says
    first_shared = _first_shared(reader, n_layers)
    inner, doubled = reader.count("intermediate_size"), reader.flag("use_double_wide_mlp")
    layers = []
    for i, kind in enumerate(kinds):
        mixer = _gemma4_mixer(reader, arch, kind, i)
        shared = i >= first_shared
        if shared:
            mixer = replace(mixer, keys=False, values=False)
        size = 2 * inner if shared and doubled else inner
        layers.append(_gemma4_layer(reader, mixer, hidden_size=hidden_size, inner=size, shared=shared))
    return layers


def _gemma4_mixer(reader: Reader, arch: Architecture, kind: Kind, i: int) -> Attention:
    """The attention of layer `i`, as per_layer_config changes it."""
    mixer = attention_mixer(reader, arch, kind)
    own = reader.section("per_layer_config")
    layer = None if own is None else own.section(f"{i:02d}") or own.section(str(i))
    if layer is None:
        return mixer
    head_dim = layer.maybe("head_dim") or mixer.head_dim
    n_kv_heads = layer.maybe("num_key_value_heads") or mixer.n_kv_heads
    return replace(mixer, head_dim=head_dim, value_dim=head_dim, n_kv_heads=n_kv_heads)


def _gemma4_layer(reader: Reader, mixer: Attention, *, hidden_size: int, inner: int, shared: bool) -> LayerSpec:
    norms = 4 * hidden_size + mixer.head_dim * (1 if shared else 2)
    feed: tuple[FeedForward, ...] = (Dense(intermediate_size=inner),)
    if reader.flag("enable_moe_block"):
        n_experts = reader.count(*N_EXPERTS)
        norms += 3 * hidden_size
        router = n_experts * hidden_size + hidden_size + n_experts
        size = reader.count(*EXPERT_SIZE)
        feed = (*feed, Experts(n_experts=n_experts, top_k=reader.count(*TOP_K), expert_size=size, router_params=router))
    else:
        reader.ignore(*N_EXPERTS, *EXPERT_SIZE, *TOP_K)
    if per_layer := reader.maybe("hidden_size_per_layer_input", minimum=0):
        norms += 2 * hidden_size * per_layer + hidden_size
    return LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=feed, norm_params=norms)


def _recurrent_gemma_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """RecurrentGemma: gated linear recurrences and sliding windows in the repeated order of block_types."""
    pattern = reader.get("block_types") or reader.get("_block_types") or ["recurrent", "recurrent", "attention"]
    known = ("recurrent", "attention")
    if not isinstance(pattern, list) or not all(kind in known for kind in pattern):
        raise reader.fail(f"block_types must be a list of {' and '.join(known)}")
    dense = Dense(intermediate_size=reader.count(*INTERMEDIATE_SIZE) // 2, bias=True)
    mixers: dict[str, Mixer] = {
        "recurrent": _linear_recurrence(reader, hidden_size),
        "attention": _local_attention(reader, hidden_size),
    }
    made = {
        kind: LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=(dense,), norm_params=2 * hidden_size)
        for kind, mixer in mixers.items()
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
    """De et al. 2024 (Griffin): two input branches, a convolution, block gates, a decay per channel, one output."""
    width = reader.maybe("lru_width") or hidden_size
    kernel, n_heads = reader.count("conv1d_width"), reader.count(*N_HEADS)
    block = width // n_heads
    gates = 2 * n_heads * (block * block + block)
    params = 3 * hidden_size * width + 2 * width + hidden_size + width * (kernel + 1) + gates + width
    return Stated(label="gated linear recurrence", params=params, state_elements=width * kernel)


ARCHITECTURES = (
    replace(_GEMMA, names=("gemma",)),
    replace(_GEMMA, names=("gemma2",), norms=4, window="every:2", default_window=4096),
    replace(_GEMMA3, names=("gemma3_text", "gemma3"), default_window=4096),
    replace(
        _GEMMA3,
        names=("gemma3n_text", "gemma3n"),
        window="every:5",
        default_window=512,
        layers=_gemma3n_layers,
        outer=_gemma3n_outer,
    ),
    replace(
        _GEMMA3,
        names=("gemma4_text", "gemma4"),
        default_window=512,
        adapt=_gemma4,
        layers=_gemma4_layers,
        outer=_gemma4_outer,
    ),
    replace(
        _GEMMA3,
        names=("gemma4_unified_text", "gemma4_unified"),
        default_window=1024,
        adapt=_gemma4,
        layers=_gemma4_layers,
        outer=_gemma4_outer,
    ),
    replace(_GEMMA, names=("vaultgemma",), window="every:2", default_window=4096),
    Architecture(names=("recurrent_gemma",), tied=True, layers=_recurrent_gemma_layers),
)
