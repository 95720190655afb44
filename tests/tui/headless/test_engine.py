"""`kvscope batch` without a screen, answered by the fake engine: measured beside predicted in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.commands import cli as engine_cli
from engine.measure.kinds.benchmark import Benchmark
from engine.process.client import EngineClient
from tests.tui.live_engine import fake_engine
from tui.headless import cli
from tui.headless.cli import all_commands
from tui.headless.engine import _parse, run_engine_command

WORDS = ("--batches", "1,32", "--quiet")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command prints; nothing is said beside it."""
    code = run_engine_command("batch", [*WORDS, *words], "kvscope batch", lambda: EngineClient(fake_engine()))
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def test_text_has_both_and_says_where_the_prediction_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys)
    assert out.startswith("batch fake: 16 steps after rows of up to 64 tokens, medians of 5 rounds after 1 warm-up")
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
    assert rows[0].startswith("Batch,Tokens/s: ● measured,Tokens/s: predicted,Tokens/s: ● / pred.,Rise: ● measured")
    assert [round(float(cell), 2) for cell in rows[2].split(",")[:6]] == [32, 761.9, 870.85, 0.87, 8.38, 9.58]
    assert "predicted  o measured" in plot.read_text().splitlines()[1]
    assert "| 32 | 761.9 | 870.9 |" in printed(capsys, "--format", "md")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["benchmark", "--lengths", "64..1k,2Ki"], "lengths", (64, 128, 256, 512, 1000, 2048)),
        (["benchmark", "--lengths", "100..400:100"], "lengths", (100, 200, 300, 400)),
        (["benchmark", "--warmup", "0"], "warmup", 0),
        (["benchmark", "--new-tokens", "1e2"], "new_tokens", 100),
        (["batch", "--context", "1k"], "context", 1000),
        (["batch", "--batches", "1..4"], "batches", (1, 2, 4)),
        (["formats", "--tokens", "1Ki"], "tokens", 1024),
        (["generate", "--prompt", "x", "--max-new-tokens", "1.5k"], "max_new_tokens", 1500),
        (["generate", "--prompt", "x", "--seed", "9223372036854775807"], "seed", 2**63 - 1),
    ],
)
def test_counts_are_read_as_by_memory(words: list[str], name: str, value: object) -> None:
    assert getattr(_parse(words[0], words[1:], "kvscope"), name) == value


@pytest.mark.parametrize("text", ["1x", "", "1.5", "8b"])
@pytest.mark.parametrize(
    "words",
    [["memory", "--tp"], ["benchmark", "--lengths"], ["batch", "--batches"], ["generate", "--max-new-tokens"]],
)
def test_the_same_refusal_everywhere(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of what is no number at all: which numbers are right is for each command to say."""
    code = cli.main([words[0], f"{words[1]}={text}"])
    assert code == 2
    said = capsys.readouterr().err
    cli.main(["memory", f"--context={text}"])
    reason = capsys.readouterr().err.partition("--context: ")[2].partition(" (see")[0]
    assert reason
    assert f"argument {words[1]}: {reason} (see kvscope {words[0]} --help)" in said


@pytest.mark.parametrize("command", all_commands())
def test_every_command_takes_the_output_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--json", "--format {text,json,csv,md}", "--output FILE", "--quiet"))


@pytest.mark.parametrize("spelled", ["kv-evaluate", "kv_evaluate"])
def test_kv_evaluate_is_a_command_in_both_spellings(spelled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([spelled, "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: kvscope kv-evaluate")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--threads", "2"], "evaluate takes no --threads: it measures no time"),
        (["formats", "--dtype", "int8"], "formats takes no --dtype: it measures several formats, and --formats"),
    ],
)
def test_an_option_that_does_nothing_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_a_measurement_takes_its_own_options() -> None:
    """Nothing of generate is taken to be given, whether the command has it or not."""
    assert engine_cli.requests(_parse("benchmark", ["--threads", "1"], "kvscope")) == [Benchmark(threads=1)]
