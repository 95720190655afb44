"""Cohere: parallel blocks with one LayerNorm without a bias, tied embeddings, and windows since Command R7B."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED

_COHERE = replace(BIASED, norm="layer_weight", norms=1, tied=True)
_COHERE2 = replace(_COHERE, window="every:4", default_window=4096)

ARCHITECTURES = (
    replace(_COHERE, names=("cohere",), qk_norm="each", qk_key=("use_qk_norm", False)),
    replace(_COHERE2, names=("cohere2", "cohere2_vision"), defaults={"head_dim": 128}),
    replace(_COHERE2, names=("cohere2_moe",)),
    replace(_COHERE, names=("cohere_compass_text",), default_window=4096, layer_types=("full_attention",)),
)
