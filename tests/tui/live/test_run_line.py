"""tui.live.run_line: the line below a run, at every stage of it."""

from __future__ import annotations

import pytest

from engine.measure.kinds.formats import FormatChoice, Formats
from engine.process.events import Failed, Generate
from engine.records import TO_THE_END, Event, Progress
from tests.tui.live.test_generation import finished, started, token
from tui.live.engine_link import EngineStatus, Phase
from tui.live.generation import Generation
from tui.live.measurement import Job
from tui.live.run_line import comparison_lines, fitting, run_line, waiting_line

READY = EngineStatus(phase=Phase.READY)
LOADING = EngineStatus(phase=Phase.LOADING, detail="qwen3-8b 40 %")


def run_of(*events: Event, most: int = 64) -> Generation:
    run = Generation(Generate(prompt="x", max_new_tokens=most))
    run.feed(events)
    return run


@pytest.mark.parametrize(
    ("run", "status", "line"),
    [
        (run_of(), LOADING, "▶ loading qwen3-8b 40 % · Esc to stop"),
        (run_of(), READY, "waiting for the engine (● ready)"),
        (run_of(started(), token(0, 2000)), READY, "▶ 1 of 64 tokens · 5 tok/s · Esc to stop"),
        (run_of(started(), most=TO_THE_END), READY, "▶ 0 of all tokens · 5 tok/s · Esc to stop"),
        (run_of(started(), token(0, 2000), finished("eos")), READY, "1 token · 5 tok/s · the model ended the text"),
        (run_of(Failed(kind="input", message="no such file")), READY, "✗ no such file"),
    ],
)
def test_a_run_in_a_line(run: Generation, status: EngineStatus, line: str) -> None:
    assert run_line(run, status, rate="5 tok/s") == line


def test_before_the_first_run() -> None:
    assert waiting_line(READY, cache_on=True) == "Press Enter to generate (KV cache on)"
    assert waiting_line(READY, cache_on=False) == "Press Enter to generate (KV cache off)"
    stopped = EngineStatus(phase=Phase.STOPPED, detail="was killed")
    assert waiting_line(stopped, cache_on=True) == "✗ the engine stopped: was killed"


def test_a_comparison_says_what_is_compared_where_there_is_room() -> None:
    job = Job(Formats(choices=(FormatChoice(dtype="int8", cache="full"),)))
    short = "waiting for the engine (● ready) · Esc to stop"
    assert comparison_lines(job, READY) == (f"int8 against float32: {short}", short)
    job.feed([Progress(stage="formats", done=1, total=6, elapsed_ns=1, detail="bfloat16", remaining_s=12.0)])
    short = "1 of 6 · bfloat16 · 12 s left · Esc to stop"
    assert comparison_lines(job, READY) == (f"int8 against float32: {short}", short)


def test_the_longest_line_that_fits() -> None:
    lines = ("long enough", "short", "s")
    assert [fitting(lines, width) for width in (11, 10, 5, 4, 0)] == ["long enough", "short", "short", "s", "s"]
