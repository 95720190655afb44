"""One point of a decode step of plain attention, as the study has it."""

from __future__ import annotations

from typing import Any

from calc.intensity.study import IntensityQuery, textbook_report
from calc.intensity.traffic import DecodePoint
from calc.model.spec import ModelSpec
from tests.calc.strategies import device


def decode_point(model: ModelSpec, batch: int, *, head_dim: int | None = None, **sizes: Any) -> DecodePoint:
    """The step at `batch`; `sizes` are those of the query."""
    query = IntensityQuery(
        model=model, device=device(), head_dim=head_dim or model.head_dim, batches=(batch,), contexts=(1,), **sizes
    )
    (point,) = textbook_report(query).decode_by_batch
    return point
