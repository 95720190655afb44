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
