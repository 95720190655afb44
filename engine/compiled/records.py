"""The structs of records.h, except that of matrices (`matrices.LinearRecord`)."""

import ctypes
from collections.abc import Sequence
from typing import Any

from engine.compiled.build import BuildError
from engine.compiled.matrices import LinearRecord

_Pointer, _Int, _Float, _Code = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int32


class NormRecord(ctypes.Structure):
    _fields_ = [
        ("weight", _Pointer), ("bias", _Pointer), ("width", _Int), ("apart", _Int), ("eps", _Float), ("kind", _Code),
    ]  # fmt: skip


class ExpertRecord(ctypes.Structure):
    _fields_ = [("up", LinearRecord), ("down", LinearRecord)]


class LatentRecord(ctypes.Structure):
    _fields_ = [("query_norm", NormRecord), ("query", LinearRecord), ("kv_up", LinearRecord)]


class LayerRecord(ctypes.Structure):
    _fields_ = [
        ("qkv", LinearRecord), ("output", LinearRecord), ("latent", LatentRecord), ("mlp", ExpertRecord),
        ("router", LinearRecord), ("experts", _Pointer), ("choice_bias", _Pointer), ("attention_norm", NormRecord),
        ("mlp_norm", NormRecord), ("post_attention_norm", NormRecord), ("post_mlp_norm", NormRecord),
        ("q_norm", NormRecord), ("k_norm", NormRecord), ("sinks", _Pointer), ("frequencies", _Pointer),
        ("long_frequencies", _Pointer), ("original_context", _Int), ("rotary_dim", _Int), ("window", _Int),
        ("rotary_scale", _Float),
    ]  # fmt: skip


class ModelRecord(ctypes.Structure):
    _fields_ = [
        ("layers", _Pointer), ("embedding", LinearRecord), ("positions", LinearRecord), ("head", LinearRecord),
        ("norm", NormRecord), ("embedding_norm", NormRecord), ("n_layers", _Int), ("hidden_size", _Int),
        ("vocab_size", _Int), ("n_heads", _Int), ("n_kv_heads", _Int), ("head_dim", _Int), ("value_dim", _Int),
        ("rotary_at", _Int), ("rotary_dim", _Int), ("qkv_rows", _Int), ("own_nope", _Int), ("own_rope", _Int),
        ("own_value", _Int), ("inner_size", _Int), ("n_experts", _Int), ("n_active", _Int), ("n_groups", _Int),
        ("n_active_groups", _Int), ("group_best", _Int), ("attention_scale", _Float), ("embedding_scale", _Float),
        ("residual_scale", _Float), ("logit_scale", _Float), ("expert_scale", _Float), ("attention_cap", _Float),
        ("logit_cap", _Float), ("swiglu_limit", _Float), ("activation", _Code), ("gated", _Code), ("parallel", _Code),
        ("normalized", _Code), ("sigmoid", _Code), ("tiles", _Code),
    ]  # fmt: skip


class StoreRecord(ctypes.Structure):
    _fields_ = [("values", _Pointer), ("scales", _Pointer), ("slots", _Int)]


class StepRecord(ctypes.Structure):
    _fields_ = [
        ("ids", _Pointer), ("past", _Pointer), ("padding", _Pointer), ("stores", _Pointer), ("logits", _Pointer),
        ("scratch", _Pointer), ("batch", _Int), ("threads", _Code), ("cache_format", _Code), ("sequence", _Code),
    ]  # fmt: skip


def check_records(library: ctypes.CDLL) -> None:
    """Refuse a library whose structs differ from those above (a compiler with other layout rules)."""
    sizes = library.record_bytes
    sizes.restype, sizes.argtypes = ctypes.c_int64, [ctypes.c_int32]
    records: Sequence[Any] = (LinearRecord, ExpertRecord, LayerRecord, ModelRecord, StoreRecord, StepRecord)
    if [sizes(i) for i in range(len(records))] != [ctypes.sizeof(record) for record in records]:
        raise BuildError("the compiled step's records do not match")
