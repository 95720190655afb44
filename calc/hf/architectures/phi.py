"""Phi: parallel blocks with biases up to Phi-2, a Llama since Phi-3, experts with LayerNorm in Phi-3.5-MoE."""

from __future__ import annotations

from calc.hf.architecture import ATTENTION_BIAS, Architecture

ARCHITECTURES = (
    Architecture(
        names=("phi",),
        norm="layer",
        norms=1,
        qk_norm="head",
        qk_key=("qk_layernorm", False),
        gated=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
    ),
    Architecture(names=("phi3", "phi3_v", "phi4mm", "phi4_multimodal"), window="all"),
    Architecture(
        names=("phi3small",),
        norm="layer",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tied=True,
        unused=("blocksparse_block_size", "blocksparse_num_local_blocks", "dense_attention_every_n_layers"),
        rename={"ff_intermediate_size": "intermediate_size"},
    ),
    Architecture(
        names=("phimoe",),
        norm="layer",
        qkv_bias=ATTENTION_BIAS,
        o_bias=ATTENTION_BIAS,
        head_bias=("lm_head_bias", False),
        window="all",
    ),
)
