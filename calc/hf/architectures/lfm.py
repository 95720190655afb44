"""LFM (Liquid): short convolutions between attention layers."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture
from calc.hf.layers import layers_by_fields
from calc.hf.reader import Reader
from calc.model.layers import Attention, LayerSpec, Mixer


def _inner(reader: Reader, hidden_size: int) -> int:
    """The stated size, or (if the class adjusts it) two thirds of it times a factor, rounded up."""
    size = reader.count("intermediate_size", "block_ff_dim")
    factor = reader.get("block_ffn_dim_multiplier")
    multiple = reader.maybe("block_multiple_of") or 256
    if not reader.flag("block_auto_adjust_ff_dim", reader.model_type == "lfm2"):
        return size
    size = int(2 * size / 3)
    if isinstance(factor, int | float) and not isinstance(factor, bool) and 0 < factor < 100:
        size = int(factor * size)
    return -(-size // multiple) * multiple


def _lfm3(reader: Reader, arch: Architecture) -> Architecture:
    return replace(arch, norms=4 if reader.flag("use_sandwich_norm", True) else 2)


def _lfm3_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """LFM3: attention has a gate for each head."""
    layers = layers_by_fields(reader, arch, n_layers, hidden_size)
    if not reader.flag("use_attention_gate", True):
        return layers
    return [replace(layer, mixers=tuple(_with_gate(mixer, hidden_size) for mixer in layer.mixers)) for layer in layers]


def _with_gate(mixer: Mixer, hidden_size: int) -> Mixer:
    if not isinstance(mixer, Attention):
        return mixer
    return replace(mixer, extra_params=hidden_size * mixer.n_heads)


ARCHITECTURES = (
    Architecture(
        names=("lfm2",),
        unused=("conv_L_cache",),
        qk_norm="head",
        tied=True,
        needs_inner=False,
        inner_size=_inner,
    ),
    Architecture(
        names=("lfm2_moe",), unused=("conv_L_cache",), qk_norm="head", tied=True, needs_inner=False, inner_size=_inner
    ),
    replace(
        BIASED,
        names=("lfm3",),
        qk_norm="head",
        tied=True,
        required=("layer_types",),
        adapt=_lfm3,
        layers=_lfm3_layers,
    ),
)
