"""The times of a latency sweep predicted from its model's own operators, with and without the cache. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.measure.kinds.benchmark import PREDICTED_KEYS, BenchmarkRow
from engine.measure.measurement import Document
from engine.measure.own import OwnTimes
from tui.live.own_times import basis, beyond, generation_s, run_s, why


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTimes:
    """One prompt length. A time is None if not predicted; `why` measured and predicted differ is empty if they do
    not."""

    with_cache_s: float | None
    without_cache_s: float | None
    prefill_s: float | None
    tpot_s: float | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPrediction:
    """The prediction for a sweep, by prompt length."""

    lengths: Mapping[int, LengthTimes]
    own: OwnTimes

    @property
    def basis(self) -> str:
        """Its basis, in one sentence."""
        return basis(self.own)


def predicted_sweep(rows: Sequence[BenchmarkRow], own: OwnTimes, *, new_tokens: int) -> SweepPrediction:
    """Each measured length, predicted."""
    return SweepPrediction(lengths={row.prompt_tokens: _length(row, own, new_tokens) for row in rows}, own=own)


def _length(row: BenchmarkRow, own: OwnTimes, new_tokens: int) -> LengthTimes:
    prompt, last = row.prompt_tokens, row.prompt_tokens + new_tokens
    both = generation_s(own, prompt, new_tokens)
    cached, uncached = (run_s(own, prompt, new_tokens, cached=cached) for cached in (True, False))
    reasons = [
        why(own, row.with_cache_s, cached, beyond(own, context=last, prompt=prompt)),
        why(own, row.without_cache_s, uncached, beyond(own, prompt=last)),
    ]
    return LengthTimes(
        with_cache_s=cached,
        without_cache_s=uncached,
        prefill_s=None if both is None else both[0],
        tpot_s=None if both is None or new_tokens == 1 else both[1],
        why="; ".join(dict.fromkeys(filter(None, reasons))),
    )


def row_keys(row: BenchmarkRow, predicted: LengthTimes) -> Document:
    """The JSON keys of a row's prediction: see `engine.measure.kinds.benchmark.PREDICTED_KEYS`."""
    values = (
        predicted.with_cache_s,
        ratio(row.with_cache_s, predicted.with_cache_s),
        predicted.without_cache_s,
        ratio(row.without_cache_s, predicted.without_cache_s),
        predicted.prefill_s,
        predicted.tpot_s,
        predicted.why,
    )
    return dict(zip(PREDICTED_KEYS, values, strict=True))


def ratio(measured: float | None, predicted: float | None) -> float | None:
    """Measured / predicted; None if either is unknown."""
    return measured / predicted if measured is not None and predicted else None
