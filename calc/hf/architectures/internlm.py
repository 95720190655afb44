"""InternLM: one key turns on a bias."""

from __future__ import annotations

from calc.hf.architecture import Architecture

ARCHITECTURES = (
    Architecture(names=("internlm", "InternLM"), qkv_bias=("bias", True), o_bias=("bias", True)),
    Architecture(names=("internlm2",), qkv_bias=("bias", True), o_bias=("bias", True)),
    Architecture(names=("internlm3",), qkv_bias=("qkv_bias", False), o_bias=("bias", False), mlp_bias=("bias", False)),
)
