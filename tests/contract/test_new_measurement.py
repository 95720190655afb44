"""A measurement is three files: written here into a copy of the program, it is offered by every face."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

KIND = '''
"""first-token: the time of the first token, several times."""

import msgspec

from engine.measure.measurement import Measurement, PlainTable, plain_document
from engine.measure.options import MODEL_OPTIONS, REPEATS, check_count
from engine.records import MeasurementFinished, OnModel, RowMeasured
from engine.text import duration


class FirstToken(OnModel, frozen=True, kw_only=True):
    repeats: int = 5


class FirstTokenRow(msgspec.Struct, frozen=True, kw_only=True):
    number: int
    ttft_s: float


class FirstTokenResult(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    rows: tuple[FirstTokenRow, ...]


class FirstTokenMeasured(RowMeasured, frozen=True, kw_only=True):
    row: FirstTokenRow


class FirstTokenFinished(MeasurementFinished, frozen=True, kw_only=True):
    result: FirstTokenResult


def table(result):
    rows = tuple((str(row.number), duration(row.ttft_s)) for row in result.rows)
    return PlainTable(title=f"first-token {result.model}", header=("run", "first token"), rows=rows)


MEASUREMENTS = (
    Measurement(
        name="first-token", order=6, summary="time of the first token", description="Time the first token.",
        doing="benchmarking", request=FirstToken, row=FirstTokenMeasured, finished=FirstTokenFinished,
        options=(*MODEL_OPTIONS, REPEATS), check=lambda request: check_count("repeats", request.repeats, low=1, high=9),
        key=lambda row: row.number, document=lambda result: {"command": "first-token", **plain_document(result)},
        table=table,
    ),
)
'''
RUNNER = '''
"""Carries out first-token."""

import time

import torch

from engine.measure.kinds.first_token import FirstTokenFinished, FirstTokenMeasured, FirstTokenResult, FirstTokenRow


def run(request, held, should_stop):
    model = yield from held.hold(request, should_stop)
    rows = []
    for number in range(request.repeats):
        start = time.perf_counter()
        model.decoder.forward(torch.tensor([[1, 2, 3]]), last_only=True).argmax(-1).tolist()
        rows.append(FirstTokenRow(number=number, ttft_s=time.perf_counter() - start))
        yield FirstTokenMeasured(row=rows[-1])
    yield FirstTokenFinished(result=FirstTokenResult(model=model.name, rows=tuple(rows)))
'''
PRESENTATION = '''
"""first-token as the app shows it."""

from calc.commands.tables import Table
from engine.measure.registry import MEASUREMENTS
from tui.live.presentation import Presentation

PRESENTATIONS = (
    Presentation(
        measurement=MEASUREMENTS["first-token"], title="Measure the first token", hint="Time of the first token",
        key="t", button="first", table=lambda job: Table(
            title="First token", columns=("Run", "Seconds"), rows=[(str(r.number), str(r.ttft_s)) for r in job.rows],
        ),
    ),
)
'''
FILES = {
    "engine/measure/kinds/first_token.py": KIND,
    "engine/measure/runners/first_token.py": RUNNER,
    "tui/live/measured/first_token.py": PRESENTATION,
}
PANE = """
import asyncio
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.panes.benchmark import BenchmarkPane
async def main():
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=(120, 40)) as pilot:
        while not app.is_whole:
            await asyncio.sleep(0.01)
        titles = [command.title for command in pilot.app.get_system_commands(pilot.app.screen)]
        assert "Measure the first token" in titles, titles
        pane = pilot.app.query_one(BenchmarkPane)
        assert pane.query("#start-first-token") and pane.query("#table-first-token")
        assert any(binding.key == "t" for binding in BenchmarkPane.BINDINGS)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with the three files."""
    folder = tmp_path_factory.mktemp("program")
    for package in ("calc", "engine", "tui"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "assets").symlink_to(ROOT / "assets")
    for name, text in FILES.items():
        (folder / name).write_text(text.lstrip())
    return folder


def printed(program: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=program, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_face_offers_it(program: Path) -> None:
    words = ("--repeats", "2", "--quiet")
    alone = json.loads(printed(program, "-m", "engine", "--mode", "first_token", *words, "--json"))
    headless = json.loads(printed(program, "-m", "tui", "first-token", *words, "--json"))
    for document in (alone, headless):
        assert document["command"] == "first-token"
        assert [row["number"] for row in document["rows"]] == [0, 1]
    assert printed(program, "-m", "engine", "--mode", "first-token", *words).startswith("first-token bundled")
    table = list(csv.reader(printed(program, "-m", "tui", "first-token", *words, "--format", "csv").splitlines()))
    assert [row[0] for row in table] == ["Run", "0", "1"]
    assert "first-token   time of the first token" in printed(program, "-m", "tui", "--help")
    assert "first_token   time of the first token" in printed(program, "-m", "engine", "--help")
    printed(program, "-c", PANE)
