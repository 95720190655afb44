"""DBRX: heads and experts are in sections of the config."""

from __future__ import annotations

from calc.hf.architecture import Architecture

ARCHITECTURES = (
    Architecture(
        names=("dbrx",),
        norm="layer_weight",
        needs_inner=False,
        required=("num_key_value_heads", "moe_num_experts"),
        unused=("ffn_config.hidden_size",),
        rename={
            "attn_config.kv_n_heads": "num_key_value_heads",
            "ffn_config.ffn_hidden_size": "ffn_hidden_size",
            "ffn_config.moe_num_experts": "moe_num_experts",
            "ffn_config.moe_top_k": "moe_top_k",
        },
    ),
)
