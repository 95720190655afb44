"""Mixers with a state instead of a cache (Mamba, gated delta, short convolution), from the fields of a config."""

from __future__ import annotations

from calc.hf.architecture import Architecture
from calc.hf.attention import has_bias
from calc.hf.layer_kinds import CONV, DELTA, MAMBA1
from calc.hf.reader import Reader
from calc.model.layers import GatedDelta, Mamba1, Mamba2, Mixer, ShortConv


def recurrent_mixer(reader: Reader, arch: Architecture, kind: str, hidden_size: int) -> Mixer:
    """The mixer of a layer of `kind`. Raises SourceError, naming the field that is missing."""
    if kind == DELTA:
        return GatedDelta(
            key_heads=reader.count("linear_num_key_heads"),
            key_dim=reader.count("linear_key_head_dim"),
            value_heads=reader.count("linear_num_value_heads"),
            value_dim=reader.count("linear_value_head_dim"),
            kernel=reader.count("linear_conv_kernel_dim", default=4),
            split=arch.split_delta,
        )
    if kind == MAMBA1:
        return _mamba1(reader, arch, hidden_size)
    if kind == CONV:
        return ShortConv(kernel=reader.count("conv_L_cache"), width=hidden_size, bias=reader.flag("conv_bias"))
    return _mamba2(reader, arch, hidden_size)


def _mamba1(reader: Reader, arch: Architecture, hidden_size: int) -> Mamba1:
    """Mamba, with norms of dt, B and C if the architecture has them (Jamba)."""
    inner = reader.count("mamba_expand") * hidden_size
    state, dt_rank = reader.count("mamba_d_state"), step_rank(reader, "mamba_dt_rank", hidden_size)
    extra = dt_rank + 2 * state if arch.state_norms else 0
    if reader.flag("mamba_proj_bias"):
        extra += 2 * inner + hidden_size
    return Mamba1(
        inner=inner,
        state=state,
        kernel=reader.count("mamba_d_conv"),
        dt_rank=dt_rank,
        extra_params=extra,
        conv_bias=reader.flag("mamba_conv_bias", True),
    )


def step_rank(reader: Reader, key: str, hidden_size: int) -> int:
    """The rank of the time step; "auto" is a sixteenth of the width, rounded up."""
    return -(-hidden_size // 16) if reader.get(key) == "auto" else reader.count(key)


def _mamba2(reader: Reader, arch: Architecture, hidden_size: int) -> Mamba2:
    n_heads = reader.count("mamba_num_heads", "mamba_n_heads")
    inner = reader.maybe("mamba_d_ssm") or n_heads * _head_dim(reader, n_heads, hidden_size)
    reader.ignore("mamba_d_head", "mamba_head_dim", "mamba_expand")
    groups = reader.count("n_groups", "mamba_n_groups")
    state = reader.count("ssm_state_size", "mamba_d_state")
    kernel = reader.count("conv_kernel", "mamba_d_conv")
    convolved = inner + 2 * groups * state
    into, out = (_any_flag(reader, keys) for keys in arch.state_biases)
    return Mamba2(
        inner=inner,
        n_heads=n_heads,
        groups=groups,
        state=state,
        kernel=kernel,
        extra_params=(inner + convolved + n_heads if into else 0) + (hidden_size if out else 0),
        conv_bias=reader.flag("use_conv_bias", True) and reader.flag("mamba_conv_bias", True),
        norm=has_bias(reader, arch.state_norm),
    )


def _head_dim(reader: Reader, n_heads: int, hidden_size: int) -> int:
    if reader.get("mamba_d_head") == "auto":
        return reader.count("mamba_expand") * hidden_size // n_heads
    return reader.count("mamba_head_dim", "mamba_d_head")


def _any_flag(reader: Reader, keys: tuple[str, ...]) -> bool:
    flags = [reader.flag(key) for key in keys]  # read all of them so that all are checked
    return any(flags)
