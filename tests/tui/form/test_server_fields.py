"""The options of a server in the form: what is typed, and what another engine makes of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from calc.errors import QuantityError
from calc.model.study import Policy, Study
from calc.servers.records import ServerOptions
from calc.sources.catalog import find_device, find_model
from tui.form.server_fields import OPTION_FIELDS, read_utilization
from tui.form.state import analyse, default_state, with_policy, with_study


@pytest.mark.parametrize(
    ("typed", "value"), [("", None), ("0.9", Fraction(9, 10)), ("92%", Fraction(23, 25)), ("1", Fraction(1))]
)
def test_a_utilization_is_a_share(typed: str, value: Fraction | None) -> None:
    assert read_utilization(typed) == value


@pytest.mark.parametrize("typed", ["0", "1.1", "nine", "-0.5", "1/0", "9e99999999"])
def test_what_is_no_share_is_refused_in_a_sentence(typed: str) -> None:
    with pytest.raises(QuantityError, match="utilization must be"):
        read_utilization(typed)


def test_the_policy_comes_and_goes_with_its_options() -> None:
    study = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"))
    first = with_policy(with_study(default_state(), study), "vllm")
    assert first.policy == "vllm"
    assert first.study.policy is Policy.REPLICATED
    assert with_policy(first, "equal-split").server is None
    assert first.server is not None
    kept = with_policy(replace(first, server=replace(first.server, tp=4, block_size=32)), "sglang")
    assert kept.server == ServerOptions(engine="sglang", tp=4)
    assert analyse(with_policy(first, "replicated")).server is None


def test_every_option_has_a_reader_that_takes_a_blank() -> None:
    default = ServerOptions()
    for field in OPTION_FIELDS:
        assert field.read("") == getattr(default, field.name)
