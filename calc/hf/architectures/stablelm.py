"""StableLM: a Llama with LayerNorm; parallel blocks in the 12B model."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture
from calc.hf.reader import Reader


def _stablelm(reader: Reader, arch: Architecture) -> Architecture:
    return replace(arch, norms=1 if reader.flag("use_parallel_residual") else 2)


ARCHITECTURES = (
    Architecture(
        names=("stablelm", "stablelm_epoch"),
        norm="layer",
        qkv_bias=("use_qkv_bias", False),
        qk_norm="each",
        qk_key=("qk_layernorm", False),
        adapt=_stablelm,
    ),
)
