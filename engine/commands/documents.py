"""The JSON documents of `generate`, `evaluate`, `kv-evaluate`, `benchmark`, `batch` and `formats`, made from events.

One place, pure and without torch, so that `python -m engine` and `kvscope --no-tui` print the same. The keys
are a contract with scripts; keys may be added at the end, never renamed.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from engine.commands.summary import rises
from engine.measure.timing import NS_PER_S, timing
from engine.plain import plain
from engine.process.events import BatchResult, BenchmarkResult, EvaluationResult, FormatsResult, GenerationFinished

Document = dict[str, Any]


def evaluation_document(result: EvaluationResult) -> Document:
    """{"command": "evaluate" | "kv-evaluate", "weights", "dtype", "atol", "passed", "cases": [...]}.

    Errors of a case are null where they were not measured or are not finite numbers.
    """
    return _plain(result)


def benchmark_document(result: BenchmarkResult) -> Document:
    """{"command": "benchmark", "model", "new_tokens", "rows", "machine", "repeats", "warmup", "notes"}.

    All times are in seconds; `tpot_s` is null with one new token.
    """
    fields = _plain(result)
    first = ("model", "new_tokens", "rows", "machine")
    rest = [name for name in fields if name not in first]
    return {"command": "benchmark", **{name: fields[name] for name in (*first, *rest)}}


def batch_document(
    result: BatchResult,
    *,
    predicted_tokens_per_s: Sequence[float] | None = None,
    bytes_per_s: float | None = None,
    flops_per_s: float | None = None,
) -> Document:
    """{"command": "batch", "model", "context", "new_tokens", "repeats", "ragged", "rows", "prefill_tokens",
    "prefill_s", "machine", "notes", "bytes_per_s", "flops_per_s"}.

    A row: "batch", "context_tokens", "step_p50_s", "step_min_s", "step_max_s", "tokens_per_s", "kv_cache_bytes",
    "weight_bytes", "rise" (tokens a second over those of the smallest batch), "tokens_per_s_predicted" and
    "rise_predicted". What is predicted, and the two rates it comes from, are the calculator's: null where nobody gave
    them.
    """
    document = {"command": "batch", **_plain(result)}
    predicted = predicted_tokens_per_s
    columns = {
        "rise": rises(result.rows, [row.tokens_per_s for row in result.rows]),
        "tokens_per_s_predicted": predicted,
        "rise_predicted": None if predicted is None else rises(result.rows, predicted),
    }
    for index, row in enumerate(document["rows"]):
        row.update({key: None if values is None else values[index] for key, values in columns.items()})
    return {**document, "bytes_per_s": bytes_per_s, "flops_per_s": flops_per_s}


def formats_document(result: FormatsResult) -> Document:
    """{"command": "formats", "model", "rows", "machine", "notes"}; the first row is the reference, float32."""
    return {"command": "formats", **_plain(result)}


def generation_document(
    finished: GenerationFinished,
    *,
    model: str,
    kv_cache_bytes_predicted: int | None = None,
    ttft_predicted_s: float | None = None,
    tpot_predicted_s: float | None = None,
) -> Document:
    """{"command": "generate", "model", "prompt_ids", "ids", "text", "finish_reason", rates, cache bytes}.

    `ttft_s` is null without a new token; `tpot_s` and `tokens_per_s` below two. What is predicted (cache bytes,
    least times) is the calculator's, which the engine does not know: null where nobody gave it.
    `communication_s` is there for tensor-parallel runs: the part of the time that went into collectives.
    """
    rates = timing(finished.start_ns, finished.token_times_ns)
    waited_ns = finished.communication_ns
    return {
        "command": "generate",
        "model": model,
        "prompt_ids": list(finished.prompt_ids),
        "ids": list(finished.ids),
        "text": finished.text,
        "finish_reason": finished.reason,
        "ttft_s": rates.ttft_s,
        "tpot_s": rates.tpot_s,
        "tokens_per_s": rates.tokens_per_s,
        "token_times_ns": [time_ns - finished.start_ns for time_ns in finished.token_times_ns],
        "kv_cache_bytes": finished.kv_cache_bytes,
        "kv_cache_bytes_predicted": kv_cache_bytes_predicted,
        "ttft_predicted_s": ttft_predicted_s,
        "tpot_predicted_s": tpot_predicted_s,
        **({} if waited_ns is None else {"communication_s": waited_ns / NS_PER_S}),
    }


def to_json(document: Mapping[str, Any]) -> str:
    """A document as indented JSON text without a final newline; standard JSON, so never NaN. Safe to show."""
    return plain(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def _plain(record: msgspec.Struct) -> Document:
    document: Document = msgspec.json.decode(msgspec.json.encode(record))  # lists, not tuples: as a reader gets it
    return document
