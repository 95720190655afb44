"""Qwen: biases of Q, K and V up to 2.5, norms of Q and K since 3, gated delta layers in Qwen3-Next and 3.5."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture
from calc.hf.reader import Reader

_QWEN2 = Architecture(qkv_bias=True, window="upper", default_window=4096)
_QWEN3 = replace(BIASED, qk_norm="head", window="upper", default_window=4096)
_DELTA = replace(BIASED, qk_norm="head", gated_attention=True)
_SPLIT_DELTA = replace(_DELTA, split_delta=True)
_EVERY_FOURTH_FULL = (*("linear_attention",) * 3, "full_attention")


def _half(reader: Reader, hidden_size: int) -> int:
    """Qwen 1 states the combined size of gate and up."""
    return reader.count("intermediate_size") // 2


ARCHITECTURES = (
    Architecture(names=("qwen",), qkv_bias=True, inner_size=_half),
    replace(
        _QWEN2,
        names=(
            "qwen2", "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_text", "llava_qwen",
            "dots_ocr",
        ),
    ),
    replace(_QWEN2, names=("mimo",)),
    replace(_QWEN2, names=("qwen2_moe",), shared_gate=True, qkv_bias=("qkv_bias", True)),
    replace(_QWEN3, names=("qwen3", "qwen3_vl_text")),
    replace(_QWEN3, names=("qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text")),
    replace(_DELTA, names=("qwen3_next",), shared_gate=True, layer_types=_EVERY_FOURTH_FULL),
    replace(_SPLIT_DELTA, names=("qwen3_5_text", "qwen3_5"), layer_types=_EVERY_FOURTH_FULL),
    replace(_SPLIT_DELTA, names=("qwen3_5_moe_text", "qwen3_5_moe"), shared_gate=True, layer_types=_EVERY_FOURTH_FULL),
)  # fmt: skip
