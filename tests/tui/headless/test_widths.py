"""What goes to a terminal fits it: every command, at 80 columns and at 60."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from unicodedata import combining, east_asian_width

import pytest

from engine.process.client import EngineClient
from tests.tui.live_engine import fake_engine
from tui.headless import cli
from tui.headless.cli import all_commands
from tui.headless.engine import run_engine_command

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")

CALCULATED = (
    "memory",
    "memory --model deepseek-v3 --device h200-sxm --tp 8,16",
    "memory --model qwen3.5-35b-a3b",
    "memory --model gpt-oss-120b --policy vllm --device h100-sxm --tp 4",
    "memory --policy llamacpp --device rtx-3090",
    "memory --policy sglang --device h100-sxm",
    "memory --model llama-3-70b --tp 8 --pp 2",
    "solve --model qwen3-32b --device l40s --find all",
    "sweep --models llama-3-8b,qwen3-8b --contexts 1k..16k --batches 1..4 --format text",
    "estimate --device h100-sxm --concurrency 8 --batches 1..64 --limit tpot=20ms --price 2",
    "estimate --model deepseek-v3 --device h200-sxm --tp 8 --max-load",
    "intensity",
    "intensity --model deepseek-v3 --device h100-sxm",
    "models qwen",
    "devices",
)


def columns(line: str) -> int:
    """Columns of a terminal that a line takes."""
    shown = ESCAPE.sub("", line)
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in shown)


Printed = Callable[..., str]


@pytest.fixture(params=[80, 60])
def width(request: pytest.FixtureRequest) -> int:
    """Columns of the terminal."""
    return int(request.param)


@pytest.fixture
def printed(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """Runs something and returns what it prints to a terminal of `width` columns (or to a pipe)."""

    def run(command: Callable[[], int], *, terminal: bool = True) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        assert command() == 0
        return capsys.readouterr().out

    return run


def too_wide(text: str, width: int) -> list[str]:
    return [line for line in text.splitlines() if columns(line) > width]


@pytest.mark.parametrize("words", CALCULATED)
def test_calculated_answers_fit(width: int, words: str, printed: Printed) -> None:
    assert too_wide(printed(lambda: cli.main(words.split())), width) == []


def measured(name: str, *words: str) -> int:
    return run_engine_command(name, ["--quiet", *words], f"kvscope {name}", lambda: EngineClient(fake_engine()))


@pytest.mark.parametrize("name", ["evaluate", "kv-evaluate", "benchmark", "batch", "formats", "machine"])
def test_measured_answers_fit(width: int, name: str, printed: Printed) -> None:
    out = printed(lambda: measured(name))
    assert len(out.splitlines()) > 4
    assert too_wide(out, width) == []


@pytest.mark.parametrize("width", [80], indirect=True)
@pytest.mark.parametrize("command", ["", *all_commands()])
def test_help_fits(width: int, command: str, printed: Printed) -> None:
    assert too_wide(printed(lambda: cli.main([*command.split(), "--help"])), width) == []


def test_a_plot_is_drawn_on_a_terminal_without_being_asked(printed: Printed) -> None:
    axis = "prompt, tokens →"
    assert axis in printed(lambda: measured("benchmark"))
    assert axis not in printed(lambda: measured("benchmark", "--format", "md"))
    assert axis not in printed(lambda: measured("benchmark"), terminal=False)
