"""EXAONE: a Llama before version 4; since then, norms of Q and K, and windows in three of four layers."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import Architecture

_EXAONE4 = Architecture(qk_norm="head", window="every:4", default_window=4096)

ARCHITECTURES = (
    Architecture(names=("exaone",)),
    replace(_EXAONE4, names=("exaone4", "exaone4_5_text")),
    replace(_EXAONE4, names=("exaone_moe",)),
)
