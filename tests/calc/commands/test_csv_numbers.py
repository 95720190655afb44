"""CSV of the commands: sizes and counts are plain numbers, their unit is in the heading or in a column of its own."""

from __future__ import annotations

import csv
import io
import re

import pytest

from calc import __main__ as calc_main

COMMANDS = (
    ["memory"],
    ["memory", "--pp", "2", "--batch", "4"],
    ["memory", "--policy", "vllm", "--device", "h100-sxm", "--context", "8192"],
    ["solve", "--policy", "vllm", "--device", "h100-sxm", "--context", "4096"],
    ["solve", "--gpu-memory", "40GB"],
    ["estimate", "--device", "h100-sxm", "--batches", "1..64", "--price", "2", "--limit", "tpot=9ms"],
    ["estimate", "--devices", "h100-sxm,rtx-4090", "--max-load"],
    ["intensity"],
    ["devices"],
    ["models"],
)
GROUPED = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?( \w+)?")
SIZE = re.compile(r"-?[\d.,]+ ([kMGTP]?i?B|FLOP|tokens|parameters|requests)")


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_numbers_are_numbers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert calc_main.main([*words, "--format", "csv"]) == 0
    for block in capsys.readouterr().out.split("\n\n"):
        heading, *rows = csv.reader(io.StringIO(block))
        for row in rows:
            for name, cell in zip(heading, row, strict=True):
                if name != "Numbers":  # a formula with its numbers put in
                    assert not GROUPED.fullmatch(cell), row
                    assert not SIZE.fullmatch(cell), row


def test_an_interval_is_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert calc_main.main(["estimate", "--device", "h100-sxm", "--batches", "1,8", "--format", "csv"]) == 0
    block = capsys.readouterr().out.split("\n\n")[1]
    rows = list(csv.DictReader(io.StringIO(block)))
    assert [row["Batch"] for row in rows] == ["1", "8"]
    for row in rows:
        assert float(row["TPOT low (s)"]) < float(row["TPOT (s)"]) < float(row["TPOT high (s)"])
        assert float(row["Total low (tokens/s)"]) < float(row["Total high (tokens/s)"])
