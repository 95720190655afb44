"""The answer of ``memory`` for the TP and the batch that were asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calc import __main__ as calc_main


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert calc_main.main(["memory", *words]) == 0
    return str(capsys.readouterr().out)


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run([*words, "--json"], capsys))
    return document


def asked(document: dict[str, Any]) -> tuple[int, bool, int]:
    return document["asked_batch"], document["asked_fits"], document["free_bytes"]


def test_a_batch_on_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    """80 GB less 16,060,522,496 B of weights and B x 2^30 of cache."""
    free = 80 * 10**9 - 16_060_522_496
    assert asked(answer(["--batch", "59"], capsys)) == (59, True, free - 59 * 2**30)
    assert asked(answer(["--batch", "60"], capsys)) == (60, False, free - 60 * 2**30)
    assert "asked_batch" not in answer([], capsys)


def test_a_batch_at_the_tp_that_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(["--tp", "2", "--batch", "134"], capsys)
    assert (document["fits"], document["max_batch"]) == (True, 134)
    assert asked(document) == (134, True, 80 * 10**9 - 8_030_261_248 - 134 * 2**29)


def test_the_calculation_is_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """The last step is the largest batch of the answer, in JSON as in the table: 283 on four devices, 59 on one."""
    steps = answer(["--tp", "4"], capsys)["steps"]
    assert [step["name"] for step in steps[-3:]] == [
        "Weights per GPU",
        "KV cache per request and GPU",
        "Max batch size",
    ]
    assert [step["value"] for step in steps[-3:]] == [4_015_130_624, 2**28, 283]
    assert "⌊(80,000,000,000 − 4,015,130,624) / 268,435,456⌋" in run(["--tp", "4"], capsys)
    assert answer([], capsys)["steps"][-1]["value"] == 59


def test_the_chosen_tp_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "llama-3-70b", "--tp", "4,8"]
    document, text = answer(words, capsys), run(words, capsys)
    assert (document["fits"], document["max_batch"]) == (True, 66)
    assert "Max batch size possible (TP 4)" in text
    assert "TP 4: 4 devices hold 66 requests at once." in text
    assert "On one device: does not fit" in text
    alone = answer(words[:2], capsys)
    assert (alone["fits"], alone["max_batch"]) == (False, 0)


def test_a_batch_of_a_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "llama-3-70b", "--pp-layers", "30,30,20", "--device", "a100-80gb", "--batch", "32"]
    document = answer(words, capsys)
    stages = document["parallel"]["plans"][0]["stages"]
    assert [stage["n_layers"] for stage in stages] == [30, 30, 20]
    held = stages[0]["weight_bytes_per_gpu"] + 32 * stages[0]["kv_bytes_per_request_per_gpu"]
    assert asked(document) == (32, True, document["device_memory_bytes"] - held)


def test_layers_that_are_not_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(["--pp-layers", "16,17"], capsys)
    said = "16, 17 are 33 layers in 2 stages, not the model's 32 in 2"
    assert document["parallel"]["plans"][0]["problem"] == said
    assert calc_main.main(["memory", "--policy", "vllm", "--pp-layers", "16,17"]) == 2
    assert said in capsys.readouterr().err


def test_a_batch_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert "One request fits on one device: 62.87 GB are left per device." in run(["--batch", "1"], capsys)
    assert "60 requests do not fit on one device: 485.03 MB are missing per device." in run(["--batch", "60"], capsys)


def test_what_no_server_divides_is_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    """The equal split counts TP 3 as the assignment does; 32 query heads are not divisible by it."""
    text = run(["--tp", "3"], capsys)
    assert "TP 3: 208 requests, by arithmetic alone; no server divides the model this way." in text
    assert "hold 208" not in text
    whole = run(["--tp", "3", "--policy", "replicated"], capsys)
    assert "TP 3 cannot be served: 32 query heads are not divisible by 3." in whole
