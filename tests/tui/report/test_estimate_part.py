"""The times of a load in the report: there where those of the device are known."""

from __future__ import annotations

from dataclasses import replace

from calc.commands.estimate_words import sentence
from calc.sources.catalog import find_device
from tui.form.state import AppState, analyse, default_state, with_study
from tui.report.content import build_report
from tui.report.latex import to_latex
from tui.report.markdown import to_markdown


def state_on(device: str) -> AppState:
    state = default_state()
    return with_study(state, replace(state.study, device=find_device(device)))


def test_the_sentence_and_a_row_for_each_number_of_clients() -> None:
    state = state_on("h100-sxm")
    state = replace(state, serving=replace(state.serving, limits=(("tpot", 0.02),), batches=(1, 256)))
    report = build_report(state, None)
    answer = analyse(state).estimate
    assert answer.estimate is not None
    written = to_markdown(report)
    assert sentence(answer.study, answer.estimate).partition(" see ")[0] in written
    assert "| Clients |" in written
    assert "✗ TPOT" in written
    assert r"\surd" in to_latex(report)


def test_nothing_where_the_times_of_the_device_are_not_known() -> None:
    assert "## Estimate" not in to_markdown(build_report(default_state(), None))


def test_what_does_not_fit_is_a_sentence() -> None:
    assert "fits beside the weights" in to_markdown(build_report(state_on("rtx-3060-12gb"), None))
