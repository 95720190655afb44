"""``estimate --devices``: a row for each device and batch, and the whole answer for the first."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calc.__main__ import main


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["estimate", *words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_rows_are_the_devices_in_their_order(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--batches", "1,64", "--price", "2.5,0.4", "--limit", "tpot=15ms")
    found = answered(capsys, "--devices", "h100-sxm,rtx-4090", *words)
    rows = found["by_device"]
    assert [(row["device"], row["batch"]) for row in rows] == [
        ("NVIDIA H100 SXM", 1), ("NVIDIA H100 SXM", 64), ("NVIDIA RTX 4090", 1), ("NVIDIA RTX 4090", 64),
    ]  # fmt: skip
    assert [row["meets_limits"] for row in rows] == [True, True, False, False]
    assert rows[2]["cost_per_million_output_tokens"] == pytest.approx(
        0.4 / 3600 / rows[2]["output_tokens_per_s"]["mid"] * 1e6
    )
    assert (rows[3]["fits"], rows[3]["tpot_s"]) == (False, None)
    assert rows[3]["problem"].startswith("35 requests of 1,280 tokens")
    alone = answered(capsys, "--device", "h100-sxm")
    assert found["device"] == "NVIDIA H100 SXM"
    assert (found["tpot_s"], rows[0]["tpot_s"]["mid"]) == (alone["tpot_s"], pytest.approx(alone["tpot_s"]["mid"]))


def test_the_whole_catalog_the_fastest_first(capsys: pytest.CaptureFixture[str]) -> None:
    rows = answered(capsys, "--devices", "all", "--concurrency", "4")["by_device"]
    assert len(rows) > 100
    rates = [row["output_tokens_per_s"]["mid"] for row in rows if row["fits"]]
    assert rates == sorted(rates, reverse=True)
    assert main(["estimate", "--devices", "all", "--concurrency", "4"]) == 0
    text = capsys.readouterr().out
    assert "rows without times are not shown" in text
    assert "–" not in text


def test_maximum_load_has_a_batch_of_its_own_on_each(capsys: pytest.CaptureFixture[str]) -> None:
    rows = answered(capsys, "--devices", "h100-sxm,a100-40gb", "--max-load")["by_device"]
    assert rows[0]["batch"] > rows[1]["batch"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "h100-sxm,rtx-4090"), "--devices h100-sxm,rtx-4090 compares several"),
        (
            ("--devices", "h100-sxm", "--device", "rtx-4090"),
            "--devices replaces --device and --gpu-memory: leave them out",
        ),
        (("--devices", "h100-sxm,rtx-4090", "--price", "1,2,3"), "3 prices for 2 devices: give one, or one for each"),
        (("--device", "h100-sxm", "--price", "1,2"), "2 prices for one device"),
        (("--devices", "h100-smx"), "h100-sxm"),
        (("--devices", ","), "expected one or more names"),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
