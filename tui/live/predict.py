"""calc's predictions for the model that the engine runs, beside every measurement."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from calc.errors import CalcError
from calc.explain.terms import Number, Term
from calc.fit.memory import memory_report
from calc.intensity.roofline import bound_s, decode_bytes, prefill_flops
from calc.intensity.traffic import attention_flops, linear_flops, linear_params, read_params
from calc.model.cache import request_term, token_term
from calc.model.parts import Attention, Mlp, Norm
from calc.model.spec import ModelSpec, uniform
from calc.model.storage import FORMATS, StorageFormat
from calc.model.study import Policy, Study
from calc.sources.catalog import manual_device
from calc.units import MAX_BYTES, format_rate
from engine.measure.kinds.batch import BatchRow
from engine.measure.own import OwnTimes
from engine.records import CacheKind, ModelInfo
from tui.live.own_times import basis, beyond, step_s, why

DTYPES = {
    "float64": StorageFormat("float64", 1, 8),
    "float32": FORMATS["fp32"],
    "bfloat16": FORMATS["bf16"],
    "float16": FORMATS["fp16"],
}
"""torch's dtypes as storage formats."""
ROOFLINE = "the compiled step does not support this batch size; it runs layer by layer, predicted by the roofline"


def spec_of(info: ModelInfo) -> ModelSpec:
    """calc's spec of a loaded model: read from its own file if there is one, else from its sizes.

    Without windows: the engine's full cache keeps every token.
    """
    return _without_windows(read_spec(info.path)) or _spec_of_sizes(info)


@lru_cache(maxsize=8)
def read_spec(path: str) -> ModelSpec | None:
    """calc's own reading of a model file or folder; None if it has none (the bundled model, a .pt file)."""
    from calc.sources import load_model

    if not os.path.exists(path):
        return None
    try:
        return load_model(path)
    except CalcError:
        return None


def _without_windows(spec: ModelSpec | None) -> ModelSpec | None:
    """`spec` with layers that keep every token, as the engine's full cache does."""
    if spec is None or not spec.n_sliding_layers:
        return spec
    layers = tuple(
        replace(layer, mixers=tuple(replace(m, window=None) if isinstance(m, Attention) else m for m in layer.mixers))
        for layer in spec.layers
    )
    return replace(spec, layers=layers, spread=False)


def _spec_of_sizes(info: ModelInfo) -> ModelSpec:
    return uniform(
        name=info.name,
        n_layers=info.n_layers,
        n_heads=info.n_heads,
        n_kv_heads=info.n_kv_heads,
        head_dim=info.head_dim,
        hidden_size=info.hidden_size,
        intermediate_size=info.intermediate_size,
        vocab_size=info.vocab_size,
        mlp=Mlp.GATED if info.gated_mlp else Mlp.PLAIN,
        norm=Norm.LAYER if info.norm == "layernorm" else Norm.RMS,
        tied=info.tied,
        qkv_bias=info.qkv_bias,
        o_bias=info.o_bias,
        mlp_bias=info.mlp_bias,
        head_bias=info.head_bias,
        qk_norm=info.qk_norm,
        n_learned_positions=info.max_positions if info.learned_positions else 0,
        max_context=info.max_positions,
        source=info.path,
    )


def cache_format(info: ModelInfo, kind: CacheKind = "full") -> StorageFormat:
    """How the engine stores keys and values; int8 has a 4-byte scale per head and token."""
    if kind == "int8":
        return StorageFormat("int8 with scales", info.head_dim, info.head_dim + 4)
    return DTYPES[info.cache_dtype or info.dtype]


def cache_token_term(info: ModelInfo, kind: CacheKind = "full") -> Term:
    """Cache bytes per token of the loaded model as stored, with the derivation."""
    return token_term(spec_of(info), cache_format(info, kind))


def predicted_cache_bytes(info: ModelInfo, tokens: int, kind: CacheKind = "full") -> Number:
    """calc's figure for a cache of `tokens` tokens (or a rank's share of it)."""
    if not tokens:
        return 0
    spec = (read_spec(info.path) if kind == "window" else None) or spec_of(info)
    if info.tp == 1:
        return request_term(spec, cache_format(info, kind), tokens).value
    study = Study(
        model=spec,
        device=manual_device(MAX_BYTES),
        context=tokens,
        kv_format=cache_format(info, kind),
        tps=(info.tp,),
        policy=Policy.REPLICATED,
    )
    return memory_report(study).tp[0].kv_bytes_per_request_per_gpu


@dataclass(frozen=True, slots=True)
class Work:
    """FLOPs of a whole generation in both ways."""

    with_cache_flops: int
    without_cache_flops: int

    @property
    def ratio(self) -> float:
        """How many times more work it is without the cache."""
        return self.without_cache_flops / self.with_cache_flops


def generation_work(spec: ModelSpec, *, prompt_tokens: int, new_tokens: int) -> Work:
    """FLOPs of prefill and `new_tokens` - 1 further steps, with the cache and with full recomputation.

    With the cache, a step runs one token through the linear layers and attends to n tokens: linear in n. Without it,
    the step repeats the prefill of n tokens: n times the linear layers, and attention in n². So both are sums of n and
    n² over the steps, computed in closed form.
    """
    first, last = prompt_tokens, prompt_tokens + new_tokens - 1
    per_token = int(linear_flops(batch=1, parameters=linear_params(spec)))
    attention = attention_flops(spec)
    later = _sum(last) - _sum(first)
    cached = per_token * (first + new_tokens - 1) + attention * (first**2 + later)
    recomputed = per_token * (_sum(last) - _sum(first - 1)) + attention * (_squares(last) - _squares(first - 1))
    return Work(cached, recomputed)


ELEMENT_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 34 / 32, "int4": 20 / 32}
"""Bytes per weight in the engine; int8 and int4 have one scale per 32 values."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least possible times of a run with the cache on its machine, and their basis."""

    ttft_s: float
    tpot_s: float
    step_bytes: float
    """Bytes read per token: the weights, and the cache at the middle of the run."""
    read_bytes_per_s: float


def predicted_times(
    info: ModelInfo, kind: CacheKind, *, prompt_tokens: int, new_tokens: int, reused_tokens: int = 0
) -> Bounds | None:
    """calc's roofline with the engine's measured rates of this machine; None if it measured none.

    `reused_tokens` of the prompt were cached: the first pass attends to them and computes the others.
    """
    if not info.read_bytes_per_s or not info.matmul_flops_per_s or not prompt_tokens:
        return None
    spec = spec_of(info)
    weights, token = step_weight_bytes(info), float(cache_token_term(info, kind).value)
    rates = {"bytes_per_s": info.read_bytes_per_s, "flops_per_s": info.matmul_flops_per_s}
    middle = prompt_tokens + new_tokens / 2
    step_bytes = decode_bytes(weight_bytes=weights, kv_token_bytes=token, context=middle)
    attention = attention_flops(spec) * (prompt_tokens**2 - reused_tokens**2)
    flops = prefill_flops(spec, prompt_tokens - reused_tokens, attention_flops=attention)
    return Bounds(
        ttft_s=bound_s(moved_bytes=weights, flops=flops, **rates),
        tpot_s=step_bytes / info.read_bytes_per_s,
        step_bytes=step_bytes,
        read_bytes_per_s=info.read_bytes_per_s,
    )


@dataclass(frozen=True, slots=True)
class BatchPrediction:
    """calc's predicted tokens per second for each batch, and this machine's two rates behind them.

    `computing`: whether arithmetic limits the batch, not memory.
    """

    tokens_per_s: tuple[float, ...]
    computing: tuple[bool, ...]
    bytes_per_s: float
    flops_per_s: float
    smallest: int
    prefill_tokens: int
    why: tuple[str, ...] = ()
    """Why measured and predicted differ, per batch; empty if they do not, or if the reason is unknown."""
    own: OwnTimes | None = None
    """The times of the model's own operators; if known, predictions use them."""

    @property
    def basis(self) -> str:
        """Where the prediction comes from, in a sentence."""
        if self.own is not None:
            return basis(self.own)
        rows = "batch 1" if self.smallest == 1 else f"the smallest batch, {self.smallest}"
        return (
            f"Predicted: the slower of reading weights and caches at {format_rate(self.bytes_per_s)} (measured at "
            f"{rows}) and multiplying at {format_rate(self.flops_per_s, 'FLOP/s')} (measured on a prompt of "
            f"{self.prefill_tokens} tokens)."
        )


def predicted_batches(
    info: ModelInfo, rows: Sequence[BatchRow], *, prefill_tokens: int, prefill_s: float
) -> BatchPrediction | None:
    """calc's roofline for measured batches; None if there is none.

    A step reads the weights once and the cache of every row, and multiplies each row by all weights. The bandwidth is
    derived from the time of the smallest batch, and the arithmetic rate from the long prompt.
    """
    if not rows:
        return None
    spec = spec_of(info)
    token = float(cache_token_term(info).value)
    moved = [
        decode_bytes(
            weight_bytes=step_weight_bytes(info, batch=row.batch),
            kv_token_bytes=token,
            context=row.batch * row.context_tokens,
        )
        for row in rows
    ]
    flops = [_decode_flops(spec, row) for row in rows]
    first = min(range(len(rows)), key=lambda index: rows[index].batch)
    rates = {
        "bytes_per_s": moved[first] / rows[first].step_p50_s,
        "flops_per_s": _prompt_flops(spec, prefill_tokens) / prefill_s,
    }
    steps_s = [bound_s(moved_bytes=m, flops=f, **rates) for m, f in zip(moved, flops, strict=True)]
    return BatchPrediction(
        tokens_per_s=tuple(row.batch / step_s for row, step_s in zip(rows, steps_s, strict=True)),
        computing=tuple(step_s > m / rates["bytes_per_s"] for step_s, m in zip(steps_s, moved, strict=True)),
        smallest=rows[first].batch,
        prefill_tokens=prefill_tokens,
        **rates,
    )


def batches_of_own(
    rooflines: BatchPrediction, rows: Sequence[BatchRow], own: OwnTimes, *, longest: float
) -> BatchPrediction:
    """The same batches predicted from the model's own operators, and why they differ from the measurements.

    `longest`: tokens of the longest row. Layers treat all rows as that long; the compiled step uses each row's own
    length. A batch too large for the compiled step uses the roofline.
    """
    rates, reasons = [], []
    for row, roofline in zip(rows, rooflines.tokens_per_s, strict=True):
        context = row.context_tokens if own.compiled else longest
        seconds = step_s(own, row.batch, context)
        rates.append(roofline if not seconds else row.batch / seconds)
        known = [beyond(own, batch=row.batch, context=context)] if seconds else [ROOFLINE]
        reasons.append(why(own, row.step_p50_s, row.batch / rates[-1], *known))
    return replace(rooflines, tokens_per_s=tuple(rates), why=tuple(reasons), own=own)


def _decode_flops(spec: ModelSpec, row: BatchRow) -> float:
    """FLOPs of a step: every row through the linear layers and attention over its own tokens."""
    linear = int(linear_flops(batch=row.batch, parameters=linear_params(spec)))
    return linear + attention_flops(spec) * row.batch * row.context_tokens


def _prompt_flops(spec: ModelSpec, n_tokens: int) -> int:
    """FLOPs of a complete prompt."""
    return prefill_flops(spec, n_tokens, attention_flops=attention_flops(spec) * n_tokens**2)


def step_weight_bytes(info: ModelInfo, *, batch: int = 1) -> float:
    """`read_weight_bytes` of a loaded model, whatever its formats."""
    spec = spec_of(info)
    if info.step_weight_bytes is None:
        return read_weight_bytes(spec, info.dtype, batch=batch)
    return info.step_weight_bytes * float(read_params(spec, batch)) / float(read_params(spec, 1))


def read_weight_bytes(spec: ModelSpec, dtype: str, *, batch: int = 1) -> float:
    """Bytes of the matrices that a step of `batch` tokens reads; only the routed experts expected to be used count.

    As stored in the engine: an int4 model's head is int8.
    """
    n_weights, head = float(read_params(spec, batch)), spec.vocab_size * spec.embedding_width
    if dtype != "int4":
        return n_weights * ELEMENT_BYTES[dtype]
    return (n_weights - head) * ELEMENT_BYTES["int4"] + head * ELEMENT_BYTES["int8"]


def _sum(n: int) -> int:
    return n * (n + 1) // 2


def _squares(n: int) -> int:
    return n * (n + 1) * (2 * n + 1) // 6
