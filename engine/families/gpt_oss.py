"""gpt-oss: experts with biases and clamped activations, attention sinks, MXFP4 weights."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.errors import UnsupportedArchitecture
from engine.families.common import FULL, SLIDING, common_config, layer_types, n_layers_of, window_fields
from engine.families.family import Family, GGUFForm
from engine.families.gguf_keys import expert_keys, layer_kinds, rope_scaling
from engine.families.keys import Keys
from engine.model.config import ExpertsConfig, ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, StoredTensor, loaded

_DEFAULTS = {
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _config(raw: Keys) -> ModelConfig:
    raw = raw.with_defaults(_DEFAULTS)
    if raw.get("rope_parameters") is None and raw.get("rope_scaling") is None:
        raw = raw.with_defaults({"rope_parameters": _ROPE})
    if raw.positive("swiglu_alpha", 1.702) != 1.702:
        raise UnsupportedArchitecture(f"config.json: swiglu_alpha is {raw.get('swiglu_alpha')!r}; 1.702 is supported")
    bias = raw.flag("attention_bias", True)
    kinds = layer_types(raw)
    return common_config(
        raw,
        theta=150_000.0,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=True,
        sinks=True,
        swiglu_limit=raw.positive("swiglu_limit", 7.0),
        experts=ExpertsConfig(
            n_experts=raw.count("num_local_experts", raw.get("num_experts") or 128),
            n_active=raw.count("num_experts_per_tok", 4),
            intermediate_size=raw.count("intermediate_size"),
            normalize=True,
            router_bias=True,
        ),
        **window_fields(raw, kinds or [FULL if i % 2 else SLIDING for i in range(n_layers_of(raw))]),
    )


_EXPERTS = re.compile(r"(model\.layers\.\d{1,5}\.mlp)\.experts\.(gate_up|down)_proj(_bias|_blocks|_scales)?")
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""E2M1: two bits of exponent, one of mantissa (OCP Microscaling Formats 1.0, section 5.3.3)."""


def _tensors(tensors: Mapping[str, Stored], config: ModelConfig) -> dict[str, Stored]:
    """Split the experts (stored in one tensor, inputs first, gate and up interleaved); MXFP4 is dequantized."""
    out: dict[str, Stored] = {}
    for name, stored in tensors.items():
        match = _EXPERTS.fullmatch(name)
        if match is None:
            name = name.replace(".mlp.router.", ".mlp.gate.")
            out[f"{name}.weight" if name.endswith(".sinks") else name] = stored
            continue
        prefix, part, kind = match.groups()
        if kind == "_scales":
            continue  # read together with their blocks
        scales = tensors.get(f"{prefix}.experts.{part}_proj_scales")
        for i in range(stored.shape[0]):
            one = _expert(stored, i, scales, kind)
            out |= _parts(one, f"{prefix}.experts.{i}", part, "bias" if kind == "_bias" else "weight")
    return out


def _expert(stored: Stored, i: int, scales: Stored | None, kind: str | None) -> Stored:
    """One expert's matrix, outputs first, or its biases."""
    if kind == "_blocks" and scales is not None:
        rows, groups = stored.shape[1:3]
        return StoredTensor(
            shape=(rows, groups * 32),
            dtype=torch.float32,
            load=lambda: widen_mxfp4(loaded(stored)[i], loaded(scales)[i]),
            element_bytes=17 / 32,  # 16 bytes of 4-bit values and one of the scale
        )
    if kind == "_bias":
        return _then(stored, lambda t: t[i], tuple(stored.shape[1:]))
    return _then(stored, lambda t: t[i].t(), tuple(reversed(stored.shape[1:])))


def _parts(one: Stored, prefix: str, part: str, kind: str) -> dict[str, Stored]:
    if part == "down":
        return {f"{prefix}.down_proj.{kind}": one}
    half = (one.shape[0] // 2, *one.shape[1:])
    return {
        f"{prefix}.gate_proj.{kind}": _then(one, lambda t: t[::2], half),
        f"{prefix}.up_proj.{kind}": _then(one, lambda t: t[1::2], half),
    }


def _then(stored: Stored, change: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Stored:
    return change(stored) if isinstance(stored, Tensor) else stored.then(change, shape)


def widen_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """blocks (rows, groups, 16) uint8, two values per byte, low 4 bits first; scales (rows, groups): 2^(s - 127)."""
    values = torch.tensor(FP4)
    pairs = torch.stack((values[(blocks & 15).long()], values[(blocks >> 4).long()]), -1)
    wide = torch.ldexp(pairs.flatten(-2), scales[..., None].int() - 127)
    return wide.flatten(-2)


def _gguf_keys(file: GGUFFile) -> dict[str, Any]:
    """llama.cpp rounds the ends of YaRN's ramp to whole pairs; the published model does not."""
    return {
        **expert_keys(file),
        "intermediate_size": file.get("expert_feed_forward_length") or file.get("feed_forward_length"),
        "sliding_window": file.get("attention.sliding_window"),
        "layer_types": layer_kinds(file, every=2),
        "rope_scaling": rope_scaling(file) or {"rope_type": "default"},
    }


FAMILIES = {
    "gpt_oss": Family(
        config=_config,
        tensors=_tensors,
        gguf=GGUFForm(architecture="gpt-oss", keys=_gguf_keys),
        quantization=("mxfp4",),
    )
}
