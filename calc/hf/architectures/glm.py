"""GLM, from ChatGLM to GLM-5, and Solar, which follows GLM-4.5."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import ATTENTION_BIAS, BIASED, Architecture
from calc.hf.reader import Reader

_GLM4_MOE = Architecture(qkv_bias=ATTENTION_BIAS, qk_norm="head", qk_key=("use_qk_norm", False))


def _chatglm(reader: Reader, arch: Architecture) -> Architecture:
    return replace(arch, final_norm=reader.flag("post_layer_norm", True))


ARCHITECTURES = (
    Architecture(
        names=("chatglm",),
        qkv_bias=("add_qkv_bias", False),
        o_bias=("add_bias_linear", False),
        mlp_bias=("add_bias_linear", False),
        adapt=_chatglm,
    ),
    Architecture(names=("glm",), qkv_bias=ATTENTION_BIAS),
    Architecture(names=("glm4", "glm4v_text"), norms=4, qkv_bias=ATTENTION_BIAS),
    replace(_GLM4_MOE, names=("glm4_moe", "glm4v_moe_text")),
    replace(_GLM4_MOE, names=("solar_open",)),
    replace(BIASED, names=("glm4_moe_lite",), first_dense=True),
    replace(BIASED, names=("glm_moe_dsa",)),
)
