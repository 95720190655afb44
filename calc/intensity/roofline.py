"""The least time that a pass can take on a machine: bytes over its bandwidth or FLOPs over its peak.

Williams, Waterman, Patterson 2009: data movement and arithmetic overlap, so the slower of the two is the bound.
"""

from __future__ import annotations

from typing import Any

from calc.intensity.traffic import linear_flops, linear_params
from calc.model.spec import ModelSpec


def bound_s(*, moved_bytes: Any, flops: Any, bytes_per_s: Any, flops_per_s: Any) -> Any:
    """Seconds: the greater of bytes over bandwidth and FLOPs over peak."""
    return max(moved_bytes / bytes_per_s, flops / flops_per_s)


def decode_bytes(*, weight_bytes: Any, kv_token_bytes: Any, context: Any) -> Any:
    """Bytes that a decode step of one request reads: every weight it uses, and the cache of `context` tokens."""
    return weight_bytes + kv_token_bytes * context


def prefill_flops(model: ModelSpec, n_tokens: int, *, attention_flops: int) -> int:
    """FLOPs of a prompt of `n_tokens`: all tokens pass the layers, only the last one passes the head."""
    head = model.head_size * model.embedding_width
    layers = linear_params(model) - head
    return int(linear_flops(batch=n_tokens, parameters=layers)) + 2 * head + attention_flops
