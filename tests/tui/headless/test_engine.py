"""`kvscope batch` without a screen, answered by the fake engine: measured beside predicted in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.process.client import EngineClient
from tests.tui.live_engine import fake_engine
from tui.headless.engine import run_engine_command

WORDS = ("--batches", "1,32", "--quiet")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints; nothing is said beside it."""
    code = run_engine_command("batch", [*WORDS, *words], "kvscope batch", lambda: EngineClient(fake_engine()))
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def test_text_has_both_and_says_where_the_prediction_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys)
    assert out.startswith("batch fake: 16 steps after rows of up to 64 tokens, medians of 5 rounds after 1 to warm up")
    (last,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["32"]]
    assert last[:7] == ["32", "761.9", "870.9", "0.87", "8.38x", "9.58x", "arithmetic"]
    assert "Predicted: the slower of reading weights and caches at" in out
    assert "The fake engine made these batches up." in out
    assert "Measured on fake cpu, 2 cores, 1 thread" in out


def test_json_has_the_rates_and_rises_of_the_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, "--json", "--equal"))
    assert document["ragged"] is False
    assert [row["tokens_per_s_predicted"] for row in document["rows"]] == pytest.approx([90.91, 870.9], rel=1e-3)
    assert [row["rise_predicted"] for row in document["rows"]] == pytest.approx([1.0, 9.58], rel=1e-3)
    assert document["bytes_per_s"] > 0
    assert document["flops_per_s"] > 0


def test_csv_markdown_and_the_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "batch.txt"
    rows = printed(capsys, "--format", "csv", "--plot", str(plot)).splitlines()
    assert rows[0].startswith("Batch,● Tokens/s,predicted,● / pred.,● Rise,predicted")
    assert rows[2].startswith("32,761.9,870.9,0.87,8.38x,9.58x")
    assert plot.read_text().splitlines()[1] == "- predicted   o measured"
    assert "| 32 | 761.9 | 870.9 |" in printed(capsys, "--format", "md")
