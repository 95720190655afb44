"""The analysis of a state: what an edit computes, and what waits until a tab shows it."""

from __future__ import annotations

import pytest

from calc.intensity.study import IntensityQuery, IntensityReport, intensity_report
from tui.form import state as module
from tui.form.state import analyse, default_state, intensity_query


def test_intensity_is_computed_once_and_only_when_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[IntensityQuery] = []

    def counted(query: IntensityQuery) -> IntensityReport:
        asked.append(query)
        return intensity_report(query)

    monkeypatch.setattr(module, "intensity_report", counted)
    state = default_state()
    analysis = analyse(state)
    assert asked == []
    assert analysis.intensity is analysis.intensity
    assert asked == [intensity_query(state)]
    assert analysis.intensity == intensity_report(intensity_query(state))
