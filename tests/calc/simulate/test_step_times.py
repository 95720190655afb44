"""Steps take what the estimate's passes take, and a mixed one shares the weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calc.model.study import Policy, Study
from calc.simulate.step_times import StepTimes
from calc.sources.catalog import find_device, find_model
from calc.speed.asked import Asked
from calc.speed.passes import time_of, worked
from calc.speed.steps import Steps
from calc.step.operators import Phase

MODELS = ("llama-3-8b", "gemma-3-27b", "gpt-oss-120b", "deepseek-v3", "mixtral-8x7b", "qwen3-next-80b-a3b")
"""Plain, windows, windows with experts, latent attention, experts, recurrent states."""


def steps_of(model: str, *, device: str = "h100-sxm", tp: int = 1) -> Steps:
    study = Study(model=find_model(model), device=find_device(device), policy=Policy.REPLICATED)
    return Steps(study=study, asked=Asked(tp=tp))


@pytest.mark.parametrize("model", MODELS)
def test_steps_of_one_kind_are_the_passes_of_the_estimate(model: str) -> None:
    steps = steps_of(model)
    times = StepTimes(steps)
    for batch, context in ((1, 1), (7, 100), (64, 1024), (256, 40_000)):
        expected = steps.decode(batch, context).expected_s + steps.host_s
        assert times.step_s(batch, context, ()) == pytest.approx(expected, rel=1e-9)
    for new, context in ((1, 1), (100, 100), (2048, 30_000)):
        work = replace(steps.base, phase=Phase.PREFILL, batch=1, context=context, new_tokens=new)
        expected = time_of(worked(steps.model, work), steps.device).expected_s + steps.host_s
        assert times.step_s(0, 0.0, ((new, context),)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_a_mixed_step_takes_less_than_two_and_more_than_either(model: str) -> None:
    times = StepTimes(steps_of(model))
    decode, prompt = times.step_s(32, 2000.0, ()), times.step_s(0, 0.0, ((512, 512),))
    mixed = times.step_s(32, 2000.0, ((512, 512),))
    assert max(decode, prompt) < mixed < decode + prompt


def test_devices_share_a_step_with_all_reduces() -> None:
    steps = steps_of("llama-3-70b", tp=4)
    expected = steps.decode(16, 2048).expected_s + steps.host_s
    assert StepTimes(steps).step_s(16, 2048.0, ()) == pytest.approx(expected, rel=1e-9)


def test_the_time_of_a_step_turns_where_a_window_is_full() -> None:
    times = StepTimes(steps_of("gemma-3-27b"))
    assert times.straight_until(1.0) == 1024
    assert times.straight_until(1023.5) == 1024
    assert times.straight_until(1024) == float("inf")
    below = times.step_s(8, 600.0, ()) - times.step_s(8, 500.0, ())
    above = times.step_s(8, 1600.0, ()) - times.step_s(8, 1500.0, ())
    assert below > above > 0  # from there on every sixth layer alone reads more
    assert StepTimes(steps_of("llama-3-8b")).straight_until(5.0) == float("inf")
