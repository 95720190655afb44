"""What each tensor is for, by its name (llama.cpp's src/llama-arch.cpp, LLM_TENSOR_NAMES)."""

from __future__ import annotations

import re
from enum import StrEnum

from calc.model.tensors import KV, SPLIT, WHOLE


class Role(StrEnum):
    """The part of a model that a tensor belongs to. PREDICTOR: to the prediction of further tokens (MTP)."""

    EMBEDDING = "embedding"
    HEAD = "head"
    MIXER = "attention"
    FEED = "mlp"
    EXPERTS = "experts"
    ROUTER = "router"
    NORM = "norms"
    OTHER = "other"


_MIXER = ("attn_", "ssm_", "shortconv.", "time_mix_", "indexer")
_INNER_NORMS = (
    "attn_q_a_norm",
    "attn_kv_a_norm",
    "attn_compressor_norm",
    "ssm_",
    "time_mix_",
    "indexer",
    "ffn_routed_norm",
)
"""Norms that are counted with the part that they are in."""
_EXPERTS = re.compile(r"ffn_(gate|up|down|gate_up)(_exps|\.\d+)\b")
_ROUTER = re.compile(r"(ffn_gate_inp|exp_probs_b|ffn_latent_|ffn_routed_|ffn_gate_tid2eid|ffn_\w+_chexps)(?!_shexp)")
OLD_EXPERT = re.compile(r"ffn_(gate|up|down)\.(\d+)\.weight")
"""Experts of the first Mixtral files: each in a tensor of its own."""

KV_TENSORS = (".attn_k.", ".attn_v.")
WHOLE_TENSORS = ("norm", "ffn_gate_inp", "attn_q_a", "attn_kv_a", "position_embd", "attn_sinks", "rope_freqs")


def layer_role(name: str) -> Role:
    """The role of a tensor by its name below ``blk.N.``."""
    if "norm" in name and not name.startswith(_INNER_NORMS):
        return Role.NORM
    if name.startswith(_MIXER):
        return Role.MIXER
    if _EXPERTS.match(name):
        return Role.EXPERTS
    if _ROUTER.match(name):
        return Role.ROUTER
    return Role.FEED if name.startswith(("ffn_", "channel_mix_")) else Role.OTHER


def outer_role(name: str) -> Role:
    """The role of a tensor outside of the layers."""
    if name.startswith("token_embd.") and "norm" not in name:
        return Role.EMBEDDING
    if name.startswith("output."):
        return Role.HEAD
    return Role.NORM if name.startswith("output_norm.") else Role.OTHER


def share(name: str) -> str:
    """How tensor parallelism divides the tensor of that name."""
    if any(part in f".{name}." for part in KV_TENSORS):
        return KV
    return WHOLE if any(part in name for part in WHOLE_TENSORS) else SPLIT
