"""Mamba and Mamba-2, which have no attention, and Jamba, which puts attention between Mamba layers."""

from __future__ import annotations

from calc.hf.architecture import Architecture
from calc.hf.reader import Reader
from calc.hf.recurrences import step_rank
from calc.model.layers import LayerSpec, Mamba1, Mamba2, Mixer


def _mamba_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Mamba and Falcon Mamba: a norm and a selective state space in each layer."""
    inner = reader.maybe("intermediate_size") or reader.count("expand") * hidden_size
    reader.ignore("expand")
    mixer = Mamba1(
        inner=inner,
        state=reader.count("state_size"),
        kernel=reader.count("conv_kernel"),
        dt_rank=step_rank(reader, "time_step_rank", hidden_size),
        extra_params=2 * inner + hidden_size if reader.flag("use_bias") else 0,
        conv_bias=reader.flag("use_conv_bias", True),
    )
    return [bare_layer(hidden_size, mixer)] * n_layers


def _mamba2_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Mamba-2: a norm and a state space with heads in each layer."""
    n_heads = reader.count("num_heads")
    inner = n_heads * reader.count("head_dim")
    reader.ignore("expand", "intermediate_size")
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
    return [bare_layer(hidden_size, mixer)] * n_layers


def bare_layer(hidden_size: int, mixer: Mixer) -> LayerSpec:
    """A layer of one norm and a mixer, without a feed-forward."""
    return LayerSpec(hidden_size=hidden_size, mixers=(mixer,), feed_forwards=(), norm_params=hidden_size)


ARCHITECTURES = (
    Architecture(
        names=("mamba",), unused=("d_inner",), tied=True, needs_heads=False, needs_inner=False, layers=_mamba_layers
    ),
    Architecture(names=("falcon_mamba",), tied=True, needs_heads=False, needs_inner=False, layers=_mamba_layers),
    Architecture(
        names=("mamba2",), unused=("time_step_rank",), needs_heads=False, needs_inner=False, layers=_mamba2_layers
    ),
    Architecture(names=("jamba",), state_norms=True),
)
