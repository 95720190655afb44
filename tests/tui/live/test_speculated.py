"""Predicted speculation from fed-in times, by hand."""

from __future__ import annotations

import msgspec
import pytest

from engine.measure.own import OwnTimes, PromptTime, StepTime, TextTime
from engine.process.events import Generate
from engine.speculation import Drafted, Speculate
from tui.live.run_times import own_request, run_times
from tui.live.speculated import speculated

OWN = OwnTimes(
    compiled=True, max_rows=32, threads=1, n_layers=4, layers_timed=4, chunk=None, prompts=(),
    steps=(StepTime(batch=1, context=32, seconds=0.010), StepTime(batch=1, context=132, seconds=0.020)),
    texts=(TextTime(tokens=2, context=132, seconds=0.022), TextTime(tokens=4, context=132, seconds=0.030)),
)  # fmt: skip
DRAFTED = Drafted(draft="lookup", tokens=3, by_step=(3, 0, 3), accepted=(3, 0, 0), drafting_ns=3_000_000)


def test_by_hand() -> None:
    """At 32 tokens 10 ms without. A full draft takes 1.5 times that, every step 1 ms more: (16 + 11 + 16) ms.

    Acceptance 3 of 4: 1 + 3/4 + 9/16 + 27/64 tokens for a full draft, 1 for none.
    """
    found = speculated(OWN, DRAFTED, 32)
    assert found is not None
    tokens = 2 * (1 + 3 / 4 + 9 / 16 + 27 / 64) + 1
    assert found.without_s == pytest.approx(0.010)
    assert found.step_tokens == pytest.approx(tokens / 3)
    assert found.tpot_s == pytest.approx(0.043 / tokens)
    assert found.gain == pytest.approx(0.010 * tokens / 0.043)
    assert found.measured_gain(0.004) == pytest.approx(2.5)
    assert found.measured_gain(None) is None
    assert found.pays_from is not None
    assert sum(found.pays_from**i for i in range(4)) == pytest.approx(1.6)


def test_a_busy_machine_would_have_been_slower_without_it_too() -> None:
    found = speculated(msgspec.structs.replace(OWN, slowdown=3.0), DRAFTED, 32)
    assert found is not None
    assert found.measured_gain(0.010) == pytest.approx(3.0)


def test_nothing_is_predicted_of_what_was_not_timed_or_did_not_happen() -> None:
    assert speculated(msgspec.structs.replace(OWN, texts=()), DRAFTED, 32) is None
    none = msgspec.structs.replace(DRAFTED, by_step=(), accepted=())
    assert speculated(OWN, none, 32) is None
    idle = speculated(OWN, msgspec.structs.replace(DRAFTED, by_step=(0, 0), accepted=(0, 0)), 32)
    assert idle is not None
    assert (idle.step_tokens, idle.gain) == (1.0, pytest.approx(10 / 11.5))


def test_a_run_asks_for_steps_over_its_draft_and_is_predicted_with_them() -> None:
    asked = own_request(Generate(prompt="x", speculate=Speculate(tokens=3)), prompt_tokens=9, new_tokens=4)
    assert asked.needs.text == 4
    with_prompts = msgspec.structs.replace(OWN, prompts=(PromptTime(tokens=32, past=0, seconds=0.05),))
    reading = msgspec.structs.replace(DRAFTED, reading_ns=20_000_000)
    times = run_times(with_prompts, "full", prompt_tokens=32, new_tokens=7, drafted=reading)
    assert times is not None
    assert times.speculated is not None
    assert times.ttft_s == pytest.approx(0.07)
    assert times.tpot_s == times.speculated.tpot_s
