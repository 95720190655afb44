"""``kvscope simulate`` with its plot: in a file, on a terminal, refused before the work."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tui.headless import cli

QUICK = ("simulate", "--device", "h100-sxm", "--requests", "120")


def test_the_load_over_time_as_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "load.svg"
    assert cli.main([*QUICK, "--rate", "5", "--plot", str(path), "--json"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("{")
    assert out.err == f"wrote {path}\n"
    svg = path.read_text(encoding="utf-8")
    for label in ("running", "waiting", "cache used, %", "5 requests per second"):
        assert label in svg


def test_times_by_rate_as_text(tmp_path: Path) -> None:
    path = tmp_path / "rates.txt"
    words = ("--rate", "2,5,10", "--limit", "ttft=500ms,tpot=40ms", "--plot", str(path), "--quiet", "--format", "csv")
    assert cli.main([*QUICK, *words]) == 0
    text = path.read_text(encoding="utf-8")
    for label in ("TTFT p99", "TPOT p50", "TTFT 500 ms", "requests per second"):
        assert label in text


def test_users_have_an_axis_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "users.txt"
    assert cli.main([*QUICK, "--concurrency", "1..8", "--plot", str(path), "--quiet", "--format", "csv"]) == 0
    assert "users →" in path.read_text(encoding="utf-8")


def test_a_terminal_sees_the_plot_below_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    assert cli.main([*QUICK, "--rate", "5"]) == 0
    text = capsys.readouterr().out
    assert text.index("Band of the times") < text.index("cache used, %")
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "1", "--plot", "load.gif"), "the name of a plot must end in .svg, .png, .txt"),
        (("--rate", "1", "--plot", "/nowhere/load.svg"), "there is no folder"),
        (("--rate", "1", "--model", "llama-3-70b", "--plot", "load.svg"), "there is nothing to plot"),
    ],
)
def test_a_plot_that_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*QUICK, *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
