"""The JSON document of `generate`, made from its last event; those of measurements are with the measurements.

One place, pure and without torch, so that `python -m engine` and `kvscope --no-tui` print the same. Scripts rely on the
keys: keys may be added at the end, never renamed.
"""

import json
from collections.abc import Mapping
from typing import Any

from engine.generation_events import GenerationFinished
from engine.measure.measurement import Document
from engine.measure.timing import timing
from engine.plain import plain
from engine.records import NS_PER_S
from engine.speculation import Drafted


def generation_document(
    finished: GenerationFinished,
    *,
    model: str,
    kv_cache_bytes_predicted: int | None = None,
    ttft_predicted_s: float | None = None,
    tpot_predicted_s: float | None = None,
    ttft_least_s: float | None = None,
    tpot_least_s: float | None = None,
    why: str | None = None,
    own_times: Document | None = None,
    speculation_predicted: Mapping[str, float | None] | None = None,
) -> Document:
    """{"command": "generate", "model", "prompt_ids", "ids", "text", "finish_reason", rates, cache bytes}.

    `ttft_s` is null without a new token; `tpot_s` and `tokens_per_s` with fewer than two. Predictions (cache bytes,
    times, least times) come from the calculator, which the engine does not know: null if not given. `ttft_ratio` and
    `tpot_ratio` are measured / predicted, `why` is the reason if they differ, `own_times` the basis of the predictions.
    `speculation` is null without drafting. `communication_s` is present for tensor-parallel runs: the time spent in
    collectives.
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
        "ttft_ratio": _ratio(rates.ttft_s, ttft_predicted_s),
        "tpot_ratio": _ratio(rates.tpot_s, tpot_predicted_s),
        "ttft_least_s": ttft_least_s,
        "tpot_least_s": tpot_least_s,
        "why": why,
        "own_times": own_times,
        "speculation": _speculation(finished.drafted, speculation_predicted or {}),
        **({} if waited_ns is None else {"communication_s": waited_ns / NS_PER_S}),
    }


def _speculation(drafted: Drafted | None, predicted: Mapping[str, float | None]) -> Document | None:
    """The result of drafting, with the calculator's expectation for that acceptance (null if not given).

    `gain` is measured relative to the predicted time per token without speculation, `tpot_without_predicted_s`.
    """
    if drafted is None:
        return None
    names = ("tokens_per_step_predicted", "tpot_without_predicted_s", "gain", "gain_predicted", "pays_from_acceptance")
    return {
        "draft": drafted.draft,
        "tokens": drafted.tokens,
        "steps": len(drafted.by_step),
        "drafted": drafted.n_drafted,
        "accepted": drafted.n_accepted,
        "acceptance": drafted.acceptance,
        "acceptance_by_place": list(drafted.acceptance_by_place),
        "tokens_per_step": drafted.tokens_per_step,
        "drafting_s": drafted.drafting_ns / NS_PER_S,
        "reading_s": drafted.reading_ns / NS_PER_S,
        "compiled": drafted.compiled,
        **{name: predicted.get(name) for name in names},
    }


def _ratio(measured: float | None, predicted: float | None) -> float | None:
    return measured / predicted if measured is not None and predicted else None


def to_json(document: Mapping[str, Any]) -> str:
    """A document as indented JSON text without a final newline; standard JSON, so never NaN. Safe to show."""
    return plain(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
