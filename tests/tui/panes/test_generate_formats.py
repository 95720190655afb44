"""Formats in the Generate pane with a fake engine: turned dials, rows of runs, the error measured, the other pane's."""

from __future__ import annotations

import pytest
from textual.pilot import Pilot

from calc.commands.tables import Table
from engine.measure.kinds.formats import FormatChoice, Formats
from tests.tui.fake_engine import RATED
from tests.tui.live_engine import live_app, open_pane, until
from tests.tui.panes.test_generate import opened, run_to_end, set_option, status, text_of
from tui.panes import generate
from tui.panes.benchmark import BenchmarkPane
from tui.panes.generate import GeneratePane
from tui.widgets.prompt import Prompt
from tui.widgets.table_view import TableView

pytestmark = pytest.mark.panes("generate", "benchmark")


async def turn(pilot: Pilot[None], pane: GeneratePane, *keys: str) -> None:
    """Turn dials by their letters, away from the prompt; the prompt has the focus again after it."""
    pane.query_one("#dial-tp").focus()
    await pilot.press(*keys)
    await pilot.pause()
    pane.query_one(Prompt).focus()
    await pilot.pause()


async def measure(pilot: Pilot[None], pane: GeneratePane) -> None:
    """f, to its end."""
    pane.query_one("#dial-tp").focus()
    await pilot.press("f")
    await until(pilot, lambda: pane.effect is not None and pane.effect.over)
    pane.query_one(Prompt).focus()
    await pilot.pause()


def formats(pane: GeneratePane) -> tuple[tuple[str, ...], ...]:
    """Mark and format of each row of the table, and its TPOT."""
    tables = [table for table in pane.tables() if table.title == "Formats of this model"]
    return tuple((row[0][0].strip(), row[0][2:], row[1]) for row in tables[0].rows) if tables else ()


@pytest.mark.slow
async def test_every_choice_that_ran_has_a_row_and_the_chosen_one_a_mark() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        assert not pane.query_one("#effects").display
        await run_to_end(pilot, pane)
        assert formats(pane) == (("▶", "fp32", "1.00 ms"),)
        await turn(pilot, pane, "d", "d", "k", "k")
        assert formats(pane) == (("", "fp32", "1.00 ms"),)
        await run_to_end(pilot, pane)
        await run_to_end(pilot, pane)
        assert formats(pane)[1:] == (("▶", "bf16/int8", "1.00 ms"),)
        await turn(pilot, pane, "k", "t")
        await run_to_end(pilot, pane)
        assert formats(pane)[2:] == (("▶", "bf16 tp2", "1.00 ms"),)
        shown = pane.query_one("#effects", TableView).shown
        assert isinstance(shown, Table)
        assert shown.headings == ("Format", "● TPOT p50", "Speedup", "● Bytes", "Same token")
        assert "|   bf16/int8 | 1.00 ms |" in pane.export_markdown()


@pytest.mark.slow
async def test_rows_stay_with_their_model() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane)
        await set_option(pilot, pane, "model", "other.gguf")
        assert formats(pane) == ()
        assert not pane.query_one("#effects").display
        await turn(pilot, pane, "d", "d")
        await run_to_end(pilot, pane)
        assert [row[1] for row in formats(pane)] == ["bf16"]
        await set_option(pilot, pane, "model", "")
        assert [row[1] for row in formats(pane)] == ["fp32"]
        assert pane.query_one("#effects").display


@pytest.mark.slow
async def test_f_measures_the_error_of_what_is_chosen_and_a_run_goes_on_from_it() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await turn(pilot, pane, "d", "d")
        await measure(pilot, pane)
        assert pane.effect is not None
        assert pane.effect.request == Formats(choices=(FormatChoice(dtype="bfloat16"),))
        (table,) = pane.tables()
        assert [(row[0], row[6], row[7]) for row in table.rows] == [
            ("  fp32", "99/99", "0.0000"),
            ("▶ bf16", "98/99", "0.0100"),
        ]
        assert table.rows[1][3] == "2.00x"
        assert "bfloat16" in status(pane)
        assert "● 98" in status(pane)
        await run_to_end(pilot, pane)
        # The engine holds what it measured last: nothing was loaded, and the run knows what it ran.
        assert pane.run is not None
        assert pane.run.model is not None
        assert pane.run.model.dtype == "bfloat16"
        assert pane.tables()[2].rows[1][1:7:5] == ("1.00 ms", "98/99")


@pytest.mark.slow
async def test_escape_stops_the_measurement_and_nothing_else_starts_meanwhile() -> None:
    async with live_app("--rate", "5000", "--row-s", "30").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one("#dial-tp").focus()
        await pilot.press("f")
        await until(pilot, lambda: "0 of 2" in status(pane))
        assert "auto against float32: 0 of 2 · float32 · Esc to stop" in status(pane)
        assert not pane.check_action("effect", ())
        pane.query_one(Prompt).focus()
        await pilot.press("enter")
        assert status(pane) == "a measurement is in progress: press Esc to stop it"
        await pilot.press("escape")
        await until(pilot, lambda: pane.effect is not None and pane.effect.over)
        assert "stopped by you" in status(pane)
        assert pane.check_action("effect", ())
        await run_to_end(pilot, pane)
        assert "128 tokens" in status(pane)


@pytest.mark.slow
async def test_f_during_a_run_does_nothing() -> None:
    async with live_app("--rate", "300").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "new", "100k")
        await pilot.press("enter")
        await until(pilot, lambda: pane.run is not None and len(pane.run.ids) > 3)
        pane.query_one("#dial-tp").focus()
        await pilot.press("f", "d")
        assert pane.effect is None
        assert status(pane).startswith("▶")
        pane.action_stop()
        await until(pilot, lambda: pane.run is not None and pane.run.over)


@pytest.mark.slow
async def test_without_a_tokenizer_the_engines_refusal_is_shown() -> None:
    async with live_app("--no-tokenizer").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await measure(pilot, pane)
        assert status(pane) == "✗ the model fake has no tokenizer, but formats are measured on text"
        assert pane.query_one("#generate-status").has_class("-problem")
        assert pane.tables() == ()


@pytest.mark.slow
async def test_a_model_too_large_for_float32_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generate, "shortage", lambda *_, **__: "big as float32 takes 2 TB; 1 GB of memory is free")
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one("#dial-tp").focus()
        await pilot.press("f")
        assert status(pane) == "✗ big as float32 takes 2 TB; 1 GB of memory is free"
        assert pane.effect is None


@pytest.mark.slow
async def test_a_killed_engine_ends_the_measurement_in_a_sentence() -> None:
    app = live_app("--row-s", "30")
    async with app.run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one("#dial-tp").focus()
        await pilot.press("f")
        await until(pilot, lambda: "0 of 2" in status(pane))
        app.engine._client._session._process.kill()
        await until(pilot, lambda: pane.effect is not None and pane.effect.over)
        assert "SIGKILL" in status(pane)


@pytest.mark.slow
async def test_formats_of_the_benchmark_tab_fill_the_same_table() -> None:
    async with live_app("--rate", "5000").run_test(size=(200, 60)) as pilot:
        bench = await open_pane(pilot, "f8", BenchmarkPane)
        await pilot.press("f")
        await until(pilot, lambda: bench.job is not None and bench.job.over)
        pane = await opened(pilot)
        await until(pilot, lambda: pane.query_one("#effects").display)
        assert [row[1] for row in formats(pane)] == ["fp32", "bf16", "fp16", "int8", "int4", "fp32/int8"]
        await turn(pilot, pane, "d", "d")
        assert "● 5.00 ms" in status(pane)
        assert "98 of 99 tokens as in float32" in status(pane)
        await set_option(pilot, pane, "model", "other.gguf")
        assert formats(pane) == ()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "beside"), [(80, "float32 14.55 MB"), (120, "float32 14.55 MB"), (200, "predicted")])
async def test_a_turned_dial_says_what_it_will_cost(width: int, beside: str) -> None:
    async with live_app("--rate", "5000").run_test(size=(width, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "model", RATED)
        await turn(pilot, pane, "d", "d", "d", "d", "d", "d")
        assert status(pane).startswith("int4")  # never loaded: nothing is known
        await turn(pilot, pane, "d")
        assert status(pane).startswith("auto")
        await run_to_end(pilot, pane)
        await turn(pilot, pane, "d", "d", "d", "d", "d", "d")
        assert status(pane).startswith("int4: 4.19 MB")
        assert "TPOT ≥ 2.69 ms" in status(pane)
        assert beside in status(pane)
        assert len(status(pane)) <= pane.query_one("#generate-status").content_size.width
        await turn(pilot, pane, "t")
        assert status(pane).startswith("✗ int4 weights run on one rank")
        await turn(pilot, pane, "d", "k")
        assert status(pane).startswith("window cache: ")
        await run_to_end(pilot, pane)
        assert "128 tokens" in status(pane)


@pytest.mark.slow
async def test_a_refused_load_leaves_no_figures_of_the_model_before() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane)
        await set_option(pilot, pane, "model", "missing.pt")
        await run_to_end(pilot, pane)
        assert pane.run is not None
        assert pane.run.model is None
        assert text_of(pane, "#cache").startswith("the cache appears here")
        await turn(pilot, pane, "d")
        assert status(pane).startswith("float32")
        assert "float32 14.55" not in status(pane)


@pytest.mark.slow
async def test_the_system_prompt_is_there_for_a_chat() -> None:
    async with live_app(start_engine=False).run_test(size=(80, 24)) as pilot:
        pane = await opened(pilot)
        assert not pane.query_one("#option-system").is_on_screen
        pane.query_one("#dial-chat").focus()
        await pilot.press("right")
        await until(pilot, lambda: pane.query_one("#option-system").is_on_screen)
