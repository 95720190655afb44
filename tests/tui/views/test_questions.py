"""The questions over the pane: every answer is that of calc.solve and of the reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from calc.fit.memory import memory_report
from calc.fit.rules import costs_of
from calc.fit.solve import largest_context
from calc.model.spec import ModelSpec
from calc.model.study import Policy, Study
from calc.servers.names import ENGINES
from calc.sources.catalog import find_device, find_model
from tests.tui.hybrid import hybrid, latent, windowed
from tests.tui.live_engine import SIZES, until
from tests.tui.screen_text import text
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.state import default_state, with_policy, with_study
from tui.views.questions import device_table, format_table, grid_table, growth_sentences, whole_answer
from tui.views.rule import Rule, rule_of
from tui.views.server import NAMES
from tui.widgets.dial import NumberDial
from tui.widgets.questions import Questions, answer_text

pytestmark = pytest.mark.panes()

STUDY = default_state().study


def test_the_grid_is_what_reports_say() -> None:
    table = grid_table(Rule(study=STUDY))
    assert table.headings == ("Context", "TP 1", "TP 2", "TP 4", "TP 8", "TP 16")
    for row in table.rows:
        context = int(row[0].split()[0].replace(",", ""))
        rows = memory_report(replace(STUDY, context=context, tps=(1, 2, 4, 8, 16))).tp
        assert row[1:] == tuple(f"{own.max_batch:,}" if own.fits else "–" for own in rows)
    assert [row[0] for row in table.rows if row[0].endswith("◂")] == ["8,192 ◂"]


def test_what_no_server_could_split_is_crossed_out() -> None:
    table = grid_table(Rule(study=replace(STUDY, policy=Policy.REPLICATED, tps=(3,))))
    assert {row[table.headings.index("TP 3")] for row in table.rows} == {"✗"}


def test_the_equal_split_divides_by_any_number() -> None:
    """The assignment's rule needs no whole heads: TP 3 has a number there, as in the Memory pane."""
    study = replace(STUDY, tps=(3,))
    table = grid_table(Rule(study=study))
    three = table.headings.index("TP 3")
    row = next(row for row in table.rows if row[0].endswith("◂"))
    assert row[three] == f"{memory_report(study).tp[0].max_batch:,}"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_grid_of_a_server_is_what_the_server_admits(engine: str) -> None:
    rule = rule_of(with_policy(default_state(), engine))
    table = grid_table(rule)
    assert table.title.endswith(f"({NAMES[engine]})")
    assert rule.server is not None
    for row in table.rows[::4]:
        context = int(row[0].split()[0].replace(",", ""))
        for name, cell in list(zip(table.headings, row, strict=True))[1:4]:
            at = costs_of(replace(rule.study, context=context), int(name.split()[1]), rule.server).admission()
            assert cell == (f"{at.batch:,}" if at.batch else "–")


def test_what_grows_next_never_speaks_of_negative_bytes_free() -> None:
    """DeepSeek-V3 at 2 bytes per weight on one 80 GB device: the weights alone exceed it by more than 1 TB."""
    study = replace(STUDY, model=find_model("deepseek-v3"))
    first = growth_sentences(costs_of(study))[0]
    assert first == "Each extra request needs 575.67 MB per device. There is no free memory (short by 1.26 TB)."
    assert growth_sentences(costs_of(STUDY))[0].endswith(" 588.71 MB are free.")


def test_what_does_not_fit_says_what_makes_it_fit() -> None:
    study = replace(STUDY, model=find_model("llama-3-70b"))
    title, sentences, _ = whole_answer(Rule(study=study), batch=1, tp=1)[0]
    assert title == "What fits?"
    assert sentences[0].startswith("Does not fit: 63.79 GB")
    assert any("--weight-format" in line for line in sentences)
    assert any("--device" in line for line in sentences)


def test_the_largest_context_is_in_words() -> None:
    found = largest_context(costs_of(STUDY, 2), batch=4)
    answers = {title: said for title, said, _ in whole_answer(Rule(study=STUDY), batch=4, tp=2)}
    assert answers["Largest context"][0].startswith(f"{found.context:,} tokens for 4 requests on 2 devices")


def test_devices_and_formats_that_fit_come_first() -> None:
    devices = device_table(costs_of(replace(STUDY, model=find_model("llama-3-70b"))), batch=1)
    fits = [row[2] != "–" for row in devices.rows]
    assert fits == sorted(fits, reverse=True)
    assert all("lacks" in row[3] for row in devices.rows if row[2] == "–")
    assert format_table(costs_of(STUDY), batch=1).rows


@pytest.mark.parametrize(
    ("make", "width"),
    [
        (hybrid, 40),
        (windowed, 76),
        (latent, 40),
        pytest.param(hybrid, 76, marks=pytest.mark.slow),
        pytest.param(windowed, 40, marks=pytest.mark.slow),
        pytest.param(latent, 76, marks=pytest.mark.slow),
    ],
)
def test_every_kind_of_model_is_answered(make: Callable[[], ModelSpec], width: int) -> None:
    study = Study(model=make(), device=find_device("h100-sxm"))
    for batch, tp in ((1, 1), (10_000, 1), (1, 8), (1, 3)):
        drawn = answer_text(Rule(study=study), batch=batch, tp=tp, width=width).plain
        assert drawn.startswith("What fits?")
        assert "What grows next?" in drawn


@pytest.mark.parametrize("size", SIZES)
async def test_the_questions_open_turn_and_close(size: tuple[int, int]) -> None:
    app = KvscopeApp(with_study(default_state(), STUDY), settings=Settings(), start_engine=False)
    async with app.run_test(size=size) as pilot:
        await pilot.press("ctrl+f")
        await until(pilot, lambda: "59 requests of 8,192 tokens on 1 device" in text(app))
        dial = app.screen.query_one("#question-tp", NumberDial)
        dial.focus()
        await pilot.press("right")
        await until(pilot, lambda: "134 requests of 8,192 tokens on 2 devices" in text(app))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, Questions))
        assert "MAX BATCH 59" in text(app)
