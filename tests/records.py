"""Records of the protocol for tests, with figures that a test need not care about. What it cares about, it names."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.measure.kinds.batch import BatchRow
from engine.measure.kinds.benchmark import BenchmarkRow
from engine.measure.kinds.formats import FormatRow
from engine.records import Machine, ModelInfo

TWO_LAYER = ModelInfo(
    name="two-layer",
    path="/models/two-layer",
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    head_dim=64,
    hidden_size=384,
    intermediate_size=896,
    vocab_size=2048,
    max_positions=2048,
    n_parameters=3_639_168,
    weight_bytes=14_556_672,
    dtype="float32",
    kv_bytes_per_token=2048,
    has_tokenizer=True,
    gated_mlp=True,
    tied=True,
    norm="rmsnorm",
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    head_bias=False,
    qk_norm=False,
    learned_positions=False,
)
"""A model of two layers like the bundled one."""


def model_info(**changes: Any) -> ModelInfo:
    """`TWO_LAYER` with some fields changed."""
    return msgspec.structs.replace(TWO_LAYER, **changes)


def machine(cpu: str, **changes: Any) -> Machine:
    """A machine with two cores."""
    facts = {"torch": "2", "python": "3", "system": "Linux", **changes}
    return Machine(cpu=cpu, cores=2, threads=1, device="cpu", dtype="float32", **facts)


def benchmark_row(
    prompt_tokens: int, with_s: float, without_s: float, *, low: float = 1.0, high: float = 1.0, **changes: Any
) -> BenchmarkRow:
    """One prompt length; least and greatest times are `low` and `high` times the medians."""
    row = BenchmarkRow(
        prompt_tokens=prompt_tokens,
        with_cache_s=with_s,
        without_cache_s=without_s,
        with_cache_min_s=with_s * low,
        with_cache_max_s=with_s * high,
        without_cache_min_s=without_s * low,
        without_cache_max_s=without_s * high,
        speedup=without_s / with_s,
        prefill_s=with_s / 4,
        tpot_s=None,
        kv_cache_bytes=40_000,
    )
    return msgspec.structs.replace(row, **changes)


def batch_row(batch: int, step_s: float, context_tokens: float = 60.0, **changes: Any) -> BatchRow:
    """One batch whose steps take from half to twice their median."""
    row = BatchRow(
        batch=batch,
        context_tokens=context_tokens,
        step_p50_s=step_s,
        step_min_s=step_s / 2,
        step_max_s=step_s * 2,
        tokens_per_s=batch / step_s,
        kv_cache_bytes=batch * 1000,
        weight_bytes=5000,
    )
    return msgspec.structs.replace(row, **changes)


def format_row(dtype: str, **changes: Any) -> FormatRow:
    """One format with a full cache that agrees with float32 on 125 of 127 tokens."""
    row = FormatRow(
        dtype=dtype,
        cache="full",
        weight_bytes=538_060_032,
        kv_bytes_per_token=23_040,
        load_s=0.9,
        tpot_p50_s=0.0115,
        tpot_p95_s=0.0119,
        tokens_per_s=87.04,
        n_tokens=127,
        n_same=125,
        mean_error=0.0165,
        max_error=0.119,
        perplexity=40.93,
        compiled=True,
    )
    return msgspec.structs.replace(row, **changes)
