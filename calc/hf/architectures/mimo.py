"""MiMo-V2: sliding layers with sinks and their own head counts (MiMo 7B is a Qwen 2: see qwen.py)."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import ATTENTION_BIAS, Architecture
from calc.hf.attention import full_attention
from calc.hf.feed_forward import feed_forwards
from calc.hf.layers import stack
from calc.hf.reader import Reader, shown
from calc.model.layers import Attention, LayerSpec, Mixer


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    if not reader.has("mlp_layer_types", "moe_layer_freq"):
        raise reader.fail("mlp_layer_types missing: it lists the layers with experts")
    full = full_attention(reader, arch)
    sliding = _sliding(reader, full)
    mixers: list[tuple[Mixer, ...]] = [(sliding,) if slides else (full,) for slides in _slides(reader, n_layers)]
    return stack(reader, arch, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


def _slides(reader: Reader, n_layers: int) -> list[bool]:
    """Which layers slide: layer_types, hybrid_layer_pattern, or all but the first and every sixth."""
    if (listed := reader.per_layer("layer_types", n_layers)) is not None:
        if unknown := [kind for kind in listed if kind not in ("full_attention", "sliding_attention")]:
            raise reader.fail(f"layer_types has {shown(unknown[0])}: kvscope knows full and sliding_attention")
        return [kind == "sliding_attention" for kind in listed]
    if (pattern := reader.per_layer("hybrid_layer_pattern", n_layers)) is not None:
        return [bool(value) for value in pattern]
    reader.assume("layer_types", "the first and every sixth layer full")
    return [bool(i and (i + 1) % 6) for i in range(n_layers)]


def _sliding(reader: Reader, full: Attention) -> Attention:
    """There are twice as many KV heads if no number is stated."""
    window = reader.maybe("sliding_window_size")
    n_heads = reader.maybe("swa_num_attention_heads") or full.n_heads
    sinks = n_heads if reader.flag("add_swa_attention_sink_bias", True) else 0
    return replace(
        full,
        n_heads=n_heads,
        n_kv_heads=reader.maybe("swa_num_key_value_heads") or 2 * full.n_kv_heads,
        head_dim=reader.maybe("swa_head_dim") or full.head_dim,
        value_dim=reader.maybe("swa_v_head_dim") or full.value_dim,
        window=window + 1 if window else reader.count("sliding_window"),
        extra_params=sinks,
    )


ARCHITECTURES = (
    Architecture(
        names=("mimo_v2_flash",),
        qkv_bias=ATTENTION_BIAS,
        first_dense=True,
        layers=_layers,
        unused=("attention_chunk_size",),
    ),
)
