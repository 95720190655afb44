"""Granite: dense, with experts, and with Mamba-2 layers; Bamba, the origin of the hybrids."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, MLP_BIAS

_ONE_FULL_OF_FOUR = ("full_attention", *("sliding_attention",) * 3)
_SLIDING = replace(BIASED, sinks=True, default_window=128, layer_types=_ONE_FULL_OF_FOUR)

ARCHITECTURES = (
    replace(BIASED, names=("granite",), mlp_bias=MLP_BIAS),
    replace(_SLIDING, names=("granite_swa",), mlp_bias=MLP_BIAS, tied=True),
    replace(BIASED, names=("granitemoe",)),
    replace(_SLIDING, names=("granitemoe_swa",)),
    replace(BIASED, names=("granitemoeshared",)),
    replace(BIASED, names=("granitemoehybrid",), layer_types=("linear_attention",)),
    replace(BIASED, names=("bamba",), mlp_bias=MLP_BIAS, required=("attn_layer_indices",)),
)
