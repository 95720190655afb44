"""Bands: quantiles of what public runs were off by, without the pair that they are to hold, and which band is taken."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest

from bench.estimate_bands import Bands, Residual, quantiles
from calc.speed.asked import Asked, Load
from calc.speed.bands import STUDIED, band_for, class_of, kind_of, known_bands
from calc.speed.estimate import Room, estimate
from calc.speed.spans import WIDE, Band
from calc.speed.steps import Steps
from tests.calc.speed.test_estimate import study


def pairs(*factors: tuple[str, float, int]) -> list[Residual]:
    """A model on one device: so many numbers, each measured at `factor` of what is expected."""
    return [((model, "H100"), log(factor), False) for model, factor, n in factors for _ in range(n)]


def test_every_pair_weighs_alike() -> None:
    """Five pairs of a fifth of the weight each: 6 % lies in the lowest, 94 % in the highest."""
    rows = pairs(("a", 0.5, 1), ("b", 0.9, 100), ("c", 1.0, 3), ("d", 1.1, 1), ("e", 2.0, 1))
    assert quantiles(rows) == pytest.approx((0.5, 2.0))
    assert quantiles(pairs(("a", 1.0, 90), ("b", 1.0, 1), ("c", 1.2, 1))) is None, "three pairs"
    assert quantiles(pairs(("a", 1.0, 1), ("b", 1.0, 1), ("c", 1.2, 1), ("d", 1.0, 1))) is None, "four numbers"


def test_a_pair_is_held_by_the_band_of_the_others() -> None:
    """Nine pairs within 0.9 to 1.1, and one at twice: its own numbers make no band for it."""
    bands = Bands()
    for row in pairs(*((f"m{i}", 0.9 + i / 40, 3) for i in range(9)), ("far", 2.0, 5)):
        bands.add("static", "dense", row)
    assert bands.found()["static, dense"] == pytest.approx((0.9, 2.0))
    held = bands.covered({})
    assert held["static", "dense", ("far", "H100")] == [False] * 5
    assert held["static", "dense", ("m4", "H100")] == [True] * 3


def test_a_class_of_few_pairs_takes_the_band_of_all() -> None:
    bands = Bands()
    for row in pairs(*((f"m{i}", 1.0 + i / 10, 4) for i in range(8))):
        bands.add("closed", "experts", row)
    for row in pairs(("d1", 0.5, 10), ("d2", 0.6, 10)):
        bands.add("closed", "dense", row)
    found = bands.found()
    assert set(found) == {"closed, experts", "closed"}
    assert found["closed"][0] == pytest.approx(0.5)


def test_kinds_and_classes() -> None:
    closed = Asked(load=Load.CLOSED, count=8)
    assert [kind_of(closed, what) for what in ("ttft", "tpot")] == ["ttft loaded", "closed"]
    assert kind_of(replace(closed, count=1), "ttft") == kind_of(Asked(), "ttft") == "ttft idle"
    assert kind_of(Asked(load=Load.MAX, count=None), "tpot") == "max"
    assert kind_of(Asked(engine="llamacpp"), "ttft") == "llama.cpp ttft"
    assert class_of("AMD Instinct MI300X", experts=True) == "AMD"
    assert class_of("NVIDIA H100 SXM", experts=True) == "experts"


def test_what_was_never_measured_has_a_wider_band() -> None:
    known = known_bands()
    measured = Steps(study=study(), asked=Asked())
    assert band_for(measured, "tpot", experts=False) == known["static, dense"]
    assert band_for(measured, "ttft", experts=False) == STUDIED["ttft idle"]
    other = replace(measured, study=study(device="v100-sxm2-32gb"))
    band = known["static, dense"]
    assert band_for(other, "tpot", experts=False) == Band(band.low / WIDE, band.high * WIDE)
    amd = replace(measured, study=study(device="mi300x"))
    assert band_for(amd, "tpot", experts=False) == known["static, AMD"], "of its own runs, not wider"


@pytest.mark.parametrize("kind", ["static", "closed", "max", "ttft loaded", "llama.cpp tpot", "llama.cpp ttft"])
def test_bands_are_as_wide_as_public_runs(kind: str) -> None:
    """A band of a tenth would promise what nobody measured; one of ten times would promise nothing."""
    band = known_bands()[kind]
    assert 1.3 < band.high / band.low < 10


def test_a_band_holds_the_middle() -> None:
    answer = estimate(study(), Asked(count=8), Room(10**6, 10**6))
    assert answer.tpot is not None
    band = known_bands()["static, dense"]
    assert answer.tpot.high == pytest.approx(answer.tpot.mid * band.high)
    assert answer.tpot.low == pytest.approx(max(answer.tpot.bound, answer.tpot.mid * band.low))
