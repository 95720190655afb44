"""ERNIE 4.5: use_bias decides over all biases."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture

_USE_BIAS = ("use_bias", False)
_ERNIE = Architecture(qkv_bias=_USE_BIAS, o_bias=_USE_BIAS, mlp_bias=_USE_BIAS, tied=True)

ARCHITECTURES = (
    replace(_ERNIE, names=("ernie4_5",)),
    replace(_ERNIE, names=("ernie4_5_moe", "ernie4_5_vl_moe_text"), head_bias=_USE_BIAS, router_bias=True),
)
