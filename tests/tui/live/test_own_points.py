"""What a loaded model's operators reached, as points of the roofline of this machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.measure.own import OwnTimes, PromptTime, RowsTime, StepTime
from tests.tui.fake_engine import RATED, model
from tui.form.state import default_state
from tui.live.engine_link import EngineStatus
from tui.live.own_points import own_points
from tui.views.roofline import roofline_chart, step_view, with_own

INFO = model(RATED, tokenizer=True)
OWN = OwnTimes(
    compiled=False,
    max_rows=None,
    threads=1,
    n_layers=INFO.n_layers,
    layers_timed=INFO.n_layers,
    chunk=None,
    steps=(StepTime(batch=1, context=1, seconds=0.5),),
    prompts=(PromptTime(tokens=6, past=0, seconds=0.25),),
    linears=(RowsTime(rows=16, seconds=2.0),),
    heads=(RowsTime(rows=1, seconds=0.001),),
)


def test_points_are_the_work_of_what_was_timed_over_its_seconds() -> None:
    """The head of one row: two FLOPs per weight, and a weight's mean bytes for them."""
    step, prompt, linears, head = own_points(INFO, OWN)
    h, each = INFO.hidden_size, INFO.weight_bytes / INFO.n_parameters
    weights = INFO.vocab_size * h
    assert head[1] == pytest.approx(2 * weights / 0.001)
    assert head[0] == pytest.approx(2 * weights / (weights * each + 2 * (h + INFO.vocab_size)))
    inner = 2 * h * h * (1 + INFO.n_kv_heads / INFO.n_heads) + (2 + INFO.gated_mlp) * h * INFO.intermediate_size
    assert linears[1] == pytest.approx(2 * 16 * INFO.n_layers * inner / 2.0, rel=0.05)  # biases aside
    assert step[1] == pytest.approx(2 * (weights + INFO.n_layers * inner) / 0.5, rel=0.1)
    assert prompt[0] > step[0]
    assert len(own_points(INFO, OwnTimes(**{**_fields(OWN), "linears": (), "heads": ()}))) == 2


def _fields(own: OwnTimes) -> dict[str, object]:
    return {name: getattr(own, name) for name in own.__struct_fields__}


def test_they_lie_over_this_machine_alone() -> None:
    status = EngineStatus(model=INFO, own=OWN)
    view = step_view(default_state())
    assert with_own(view, status).own == ()
    here = with_own(replace(view, device="A CPU (this machine)"), status)
    assert here.own == own_points(INFO, OWN)
    (drawn,) = [series for series in roofline_chart(here).series if series.symbol == "●" and series.points]
    assert (drawn.label, drawn.points) == (f"steps, prompts and layers of {INFO.name}", here.own)
    assert with_own(here, replace(status, own=None)).own == ()
