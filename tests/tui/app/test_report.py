"""The report of the app: what the session measured stands in it, and it can be measured from there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from tests.tui.live_engine import live_app, open_pane, until
from tui.app.report import measured_in
from tui.panes.benchmark import BenchmarkPane
from tui.report.measured_part import LEFT_OUT

FAKE = Path(__file__).parents[1] / "report_engine.py"


async def written(pilot: Pilot[None], path: Path) -> str:
    """Answer the question for a file, and what is written there."""
    pilot.app.query_one("#path", Input).value = str(path)
    await pilot.press("enter")
    await until(pilot, path.exists)
    return path.read_text()


@pytest.mark.slow
async def test_what_the_session_measured_is_in_the_report(tmp_path: Path) -> None:
    app = live_app()
    async with app.run_test(size=(120, 40)) as pilot:
        pane = await open_pane(pilot, "f8", BenchmarkPane)
        await app.action_report()
        assert LEFT_OUT in await written(pilot, tmp_path / "before.md")
        for key in ("e", "k"):
            await pilot.press(key)
            await until(pilot, lambda: pane.job is not None and pane.job.over)
        await app.action_report()
        text = await written(pilot, tmp_path / "after.md")
        assert "(b) Evaluation (evaluate)" in text
        assert "(c) Evaluation with the KV cache (kv-evaluate)" in text
        assert LEFT_OUT not in text


@pytest.mark.slow
async def test_the_report_can_be_measured_from_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.process.client.default_command", lambda: (sys.executable, str(FAKE), "good"))
    app, path = live_app(), tmp_path / "r.md"
    async with app.run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f8", BenchmarkPane)
        await app.action_measured_report()
        assert await written(pilot, path)
        await until(pilot, lambda: "(d) Latency with and without the cache" in path.read_text())


def test_nothing_measured_is_none() -> None:
    assert measured_in({}) is None
