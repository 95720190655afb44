"""A sweep says what one estimate after the other says."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import SpecError
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model
from calc.speed.asked import Asked, Load
from calc.speed.estimate import Estimate, estimate
from calc.speed.room import room_of
from calc.speed.spans import Span
from calc.speed.sweep import sweep
from tests.examples import examples

SHARED = ({}, {"tp": 2}, {"pp": 2}, {"engine": "sglang", "drafted": 3, "acceptance": Fraction(1, 2)})
DEVICES = ("h100-sxm", "rtx-4090", "mi300x", "b200-sxm")


def numbers(answer: Estimate) -> list[float]:
    spans = (answer.ttft, answer.tpot, answer.e2e, answer.output_rate, answer.user_rate)
    return [value for span in spans if span is not None for value in (span.bound, span.low, span.mid, span.high)]


@examples(15)
@given(
    model=st.sampled_from(("llama-3-8b", "qwen3-30b-a3b", "gemma-3-27b", "deepseek-v2-lite")),
    weights=st.sampled_from(("bf16", "fp8", "int4", "nvfp4")),
    load=st.sampled_from((Load.STATIC, Load.CLOSED)),
    lengths=st.tuples(st.integers(1, 5000), st.integers(1, 500)),
    shared=st.sampled_from(
        ({}, {"tp": 2}, {"pp": 2}, {"engine": "sglang", "drafted": 3, "acceptance": Fraction(1, 2)})
    ),
)
def test_every_point_is_its_own_estimate(
    model: str, weights: str, load: Load, lengths: tuple[int, int], shared: dict[str, object]
) -> None:
    asked = Asked(load=load, prompt_tokens=lengths[0], new_tokens=lengths[1], **shared)  # type: ignore[arg-type]
    devices = [find_device(name) for name in DEVICES]
    study = Study(model=find_model(model), device=devices[0], policy=Policy.REPLICATED, weight_format=FORMATS[weights])
    batches = [1, 2, 7, 33, 400, 3000]
    for block, device in zip(sweep([study], devices, asked, batches), devices, strict=True):
        for batch, point in zip(batches, block.points(), strict=True):
            one = replace(asked, count=batch)
            alone = estimate(replace(study, device=device), one, room_of(replace(study, device=device), one))
            assert (point.fits, point.problem, point.asked) == (alone.fits, alone.problem, one)
            assert numbers(point) == pytest.approx(numbers(alone), rel=1e-9)
            assert point.limited_by == alone.limited_by


def test_a_device_without_a_bandwidth_says_so() -> None:
    from calc.sources.catalog import manual_device

    study = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"))
    (block,) = sweep([study], [manual_device(80 * 10**9)], Asked(), [1, 2])
    assert [point.fits for point in block.points()] == [False, False]
    assert block.problem is not None
    assert block.problem.startswith("times need the bandwidth and the 16-bit peak of a device with 80 GB")


def test_maximum_load_has_no_batches() -> None:
    study = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"))
    with pytest.raises(SpecError, match="maximum load has a single batch"):
        sweep([study], [study.device], Asked(load=Load.MAX, count=None), [1])


def test_a_band_may_be_an_array() -> None:
    import numpy as np

    span = Span(np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([4.0, 5.0]), np.array([8.0, 10.0]))
    assert span.rate(8).low.tolist() == [1.0, 0.8]
    assert span.capped(3.0).high.tolist() == [3.0, 3.0]
