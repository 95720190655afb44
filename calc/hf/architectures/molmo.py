"""Molmo 2: a Qwen 3 whose embedding (but not its head) has rows for image tokens."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Outer
from calc.hf.reader import HIDDEN_SIZE, Reader


def _outer(reader: Reader) -> Outer:
    return Outer((reader.maybe("additional_vocab_size", minimum=0) or 0) * reader.count(*HIDDEN_SIZE))


ARCHITECTURES = (
    replace(BIASED, names=("molmo2_text",), qk_norm="head", unused=("rope_scaling_layers", "norm_after"), outer=_outer),
)
