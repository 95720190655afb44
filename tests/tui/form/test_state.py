"""The analysis of a state: what an edit computes, and what waits until a tab shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from calc.errors import SpecError
from calc.intensity import study as module
from calc.intensity.study import IntensityQuery, IntensityReport, intensity_report
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model
from tui.form.state import analyse, default_state, initial_state, intensity_query


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


@pytest.mark.parametrize("name", ["attention_context", "attention_head_dim"])
@pytest.mark.parametrize("value", [0, -1, 10**18, True])
def test_what_the_intensity_pane_asks_is_refused_before_it_is_looked_at(name: str, value: Any) -> None:
    state = replace(default_state(), **{name: value})
    with pytest.raises(SpecError):
        analyse(state)


def test_one_degree_that_was_asked_for_is_also_estimated() -> None:
    """``kvscope --tp 4``: a model that fits four devices is not estimated on one."""
    study = default_state().study
    state = initial_state(replace(study, tps=(4,)))
    assert (state.serving.tp, state.load.tp) == (4, 4)
    assert initial_state(replace(study, tps=(1, 2, 4))).serving == default_state().serving


def test_the_app_starts_under_a_server_at_the_degree_that_is_asked_for() -> None:
    study = Study(model=find_model("llama-3.1-70b"), device=find_device("h100-sxm"), tps=(4,), policy=Policy.REPLICATED)
    state = initial_state(study, "sglang")
    assert (state.policy, state.serving.engine, state.load.tp) == ("sglang", "sglang", 4)
    assert state.server is not None
    assert state.server.tp == 4
    plain = initial_state(study, "replicated")
    assert (plain.policy, plain.server) == ("replicated", None)
