"""Mistral, Ministral and Mixtral."""

from __future__ import annotations

from calc.hf.architecture import Architecture

ARCHITECTURES = (
    Architecture(names=("mistral", "mistral3", "llava_mistral"), window="all", default_window=4096),
    Architecture(names=("ministral",), default_window=4096, layer_types=("sliding_attention",)),
    Architecture(names=("ministral3",), window="all"),
    Architecture(names=("mixtral",), window="all"),
)
