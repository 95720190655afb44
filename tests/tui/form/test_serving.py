"""What is served: the options that say it, fields that read back what they write, the settings file, servers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from calc.errors import QuantityError
from calc.speed.asked import ENGINES, Load
from tui.app.serving_document import ENGINES as REMEMBERED
from tui.app.serving_document import serving_document, serving_from
from tui.form.estimate import asked_of
from tui.form.serving import Serving, serving_words
from tui.form.serving_fields import FIELDS
from tui.form.state import default_state, with_policy, with_server

FULL = Serving(
    engine="sglang",
    version="0.5.9",
    tp=2,
    pp=2,
    ep=2,
    dp_attention=2,
    load="batch",
    count=8,
    prompt_tokens=4000,
    new_tokens=100,
    chunk=512,
    prefix_hit=Fraction(1, 3),
    drafted=4,
    acceptance=Fraction(4, 5),
    limits=(("ttft", 0.5), ("e2e", 10.0)),
    price=2.5,
    batches=(1, 3, 9),
    devices=("l40s", "h100-sxm"),
)


def test_the_options_say_everything_and_the_command_reads_it_back() -> None:
    assert serving_words(FULL) == [
        "--batch", "8", "--prompt-tokens", "4000", "--new-tokens", "100", "--chunk", "512", "--prefix-hit", "1/3",
        "--speculate", "4,0.8", "--limit", "ttft=500ms,e2e=10s", "--price", "2.5", "--batches", "1,3,9",
        "--policy", "sglang", "--engine-version", "0.5.9", "--tp", "2", "--pp", "2", "--ep", "2",
        "--dp-attention", "2",
    ]  # fmt: skip
    asked = asked_of(FULL)
    assert (asked.engine, asked.version, asked.tp, asked.load, asked.count) == ("sglang", "0.5.9", 2, Load.STATIC, 8)
    assert (asked.prompt_tokens, asked.new_tokens, asked.chunk, asked.prefix_hit) == (4000, 100, 512, Fraction(1, 3))
    assert (asked.pp, asked.ep, asked.dp_attention) == (2, 2, 2)
    assert (asked.drafted, asked.acceptance) == (4, Fraction(4, 5))


def test_at_maximum_load_no_count_and_no_chunk_are_said() -> None:
    words = serving_words(replace(FULL, load="maximum"))
    assert words[0] == "--max-load"
    assert "--chunk" not in words
    assert asked_of(replace(FULL, load="maximum")).load is Load.MAX


@pytest.mark.parametrize("serving", [FULL, Serving()], ids=["full", "default"])
def test_every_field_reads_back_what_it_writes(serving: Serving) -> None:
    values: dict[str, Any] = {"engine": serving.engine, "load": serving.load}
    for field in FIELDS:
        values |= field.read(field.write(serving))
    assert Serving(**values) == serving


def test_a_list_of_devices_has_an_end() -> None:
    devices = next(field for field in FIELDS if field.name == "devices")
    with pytest.raises(QuantityError, match="at most 12 devices"):
        devices.read(",".join(["h100-sxm"] * 13))


@pytest.mark.parametrize("serving", [FULL, Serving()], ids=["full", "default"])
def test_the_settings_file_keeps_it(serving: Serving) -> None:
    assert serving_from(serving_document(serving)) == serving
    assert serving_document(Serving()) == {}


@pytest.mark.parametrize(
    "damaged",
    [
        {"count": 0}, {"tp": True}, {"load": "all"}, {"engine": "none"}, {"batches": []}, {"drafted": 10**9},
        {"limits": {"ttft": -1}}, {"limits": {"tokens": 1}}, {"price": -2}, {"prefix_hit": "2"}, {"version": 3},
        {"prompt_tokens": "many"}, {"devices": [3]},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_table_is_refused(damaged: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        serving_from(damaged)


def test_the_engines_are_those_that_are_estimated() -> None:
    assert REMEMBERED == ENGINES


def test_a_server_that_is_chosen_is_the_engine_of_the_estimate() -> None:
    state = with_policy(default_state(), "sglang")
    assert state.server is not None
    assert state.serving.engine == "sglang"
    state = with_server(state, replace(state.server, tp=4, version="0.5.9"))
    assert (state.serving.tp, state.serving.version) == (4, "0.5.9")
    assert with_policy(state, "equal-split").serving == state.serving
