"""The largest batch against context, as a chart."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from calc.fit.memory import MemoryReport
from calc.model.cache import request_term
from tui.views.chart import Axis, Chart, Series
from tui.views.what_if import batch_of, contexts_around

SYMBOLS = "●×◆○+"


def batch_chart(report: MemoryReport) -> Chart:
    """The largest batch against context, a line for each TP; contexts at which nothing fits have no point."""
    study, held = report.study, report.weight_bytes
    requests = {c: ceil(request_term(study.model, study.kv_format, c).value) for c in contexts_around(study.context)}
    series = []
    for i, tp in enumerate(study.tps[: len(SYMBOLS)]):
        batches = {c: batch_of(study, Fraction(held, tp), Fraction(r, tp)) for c, r in requests.items()}
        points = tuple((float(c), float(b)) for c, b in batches.items() if b)
        series.append(Series(label=f"TP {tp}", symbol=SYMBOLS[i], points=points, colour=i))
    return Chart(
        title="Largest batch against context (equal split)",
        x=Axis(title="tokens of context", log=True, doubling=True),
        y=Axis(title="requests", log=True),
        series=tuple(one for one in series if one.points),
        empty="not even one request fits",
    )
