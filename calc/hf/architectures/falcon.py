"""Falcon: parallel blocks; attention beside Mamba-2 in Falcon-H1 (Falcon Mamba is in mamba.py)."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, MLP_BIAS, Architecture
from calc.hf.attention import full_attention
from calc.hf.feed_forward import feed_forwards
from calc.hf.layer_kinds import MAMBA2
from calc.hf.layers import stack
from calc.hf.reader import Reader
from calc.hf.recurrences import recurrent_mixer
from calc.model.layers import LayerSpec, Mixer


def _falcon(reader: Reader, arch: Architecture) -> Architecture:
    """Parallel blocks share one norm, but the 40B model has two."""
    if reader.flag("new_decoder_architecture"):
        return replace(arch, norms=reader.maybe("num_ln_in_parallel_attn") or 2)
    return replace(arch, norms=1 if reader.flag("parallel_attn", True) else 2)


def _falcon_h1_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Falcon-H1: every layer has attention and Mamba-2 side by side."""
    mixers: tuple[Mixer, ...] = (full_attention(reader, arch), recurrent_mixer(reader, arch, MAMBA2, hidden_size))
    return stack(reader, arch, hidden_size, [mixers] * n_layers, feed_forwards(reader, arch, n_layers))


ARCHITECTURES = (
    Architecture(
        names=("falcon", "RefinedWeb", "RefinedWebModel"),
        norm="layer",
        gated=False,
        qkv_bias=("bias", False),
        o_bias=("bias", False),
        mlp_bias=("bias", False),
        tied=True,
        wide_inner=True,
        needs_inner=False,
        adapt=_falcon,
    ),
    replace(
        BIASED,
        names=("falcon_h1",),
        mlp_bias=MLP_BIAS,
        state_biases=(("mamba_proj_bias",), ("projectors_bias",)),
        state_norm=("mamba_rms_norm", False),
        layers=_falcon_h1_layers,
    ),
)
