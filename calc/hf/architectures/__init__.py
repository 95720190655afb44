"""All architectures by model_type: one module per lineage, named after it, with a tuple ARCHITECTURES."""

from __future__ import annotations

from collections.abc import Mapping

from calc.hf.architecture import Architecture
from calc.hf.architectures import (
    cohere,
    dbrx,
    deepseek,
    deepseek_v4,
    dots,
    ernie,
    exaone,
    falcon,
    gemma,
    glm,
    gpt,
    granite,
    hrm,
    hunyuan,
    inkling,
    internlm,
    jetmoe,
    kimi_linear,
    lfm,
    llama,
    mamba,
    mimo,
    minimax,
    mistral,
    modernbert,
    molmo,
    muse,
    nemotron,
    olmo,
    phi,
    qwen,
    qwen4,
    rwkv,
    stablelm,
    step,
    zamba,
    zaya,
)

LINEAGES = (
    cohere, dbrx, deepseek, deepseek_v4, dots, ernie, exaone, falcon, gemma, glm, gpt, granite, hrm, hunyuan, inkling,
    internlm, jetmoe, kimi_linear, lfm, llama, mamba, mimo, minimax, mistral, modernbert, molmo, muse, nemotron, olmo,
    phi, qwen, qwen4, rwkv, stablelm, step, zamba, zaya,
)  # fmt: skip
ARCHITECTURES: tuple[Architecture, ...] = tuple(record for lineage in LINEAGES for record in lineage.ARCHITECTURES)
BY_MODEL_TYPE: Mapping[str, Architecture] = {name: record for record in ARCHITECTURES for name in record.names}
