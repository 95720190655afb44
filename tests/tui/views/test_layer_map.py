"""The layer map: which layer keeps what, and bytes of each kind that sum to the report's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import Input

from calc.commands.tables import answer_table, component_table, tp_table
from calc.fit.memory import memory_report
from calc.model.count import parameters
from calc.model.edit import edit
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.study import Study
from calc.sources.catalog import find_device, find_model
from tests.tui.hybrid import hybrid, latent, windowed
from tests.tui.live_engine import SIZES, open_pane, until
from tests.tui.run_app import from_the_start
from tests.tui.screen_text import lines, text, type_into
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.state import default_state, with_study
from tui.panes.memory import MemoryPane
from tui.views.batches import batch_by_context, batch_by_format
from tui.views.layer_map import kinds_table, layer_map, map_lines
from tui.views.rule import Rule
from tui.widgets.data_table import CalcTable
from tui.widgets.derivation import Derivation

pytestmark = pytest.mark.panes("memory")

DEVICE = find_device("h100-sxm")
CONFIGS = Path(__file__).parents[4] / "shared" / "data" / "configs"
MODELS = [hybrid, windowed, latent]


def study_of(model: ModelSpec, **changes: object) -> Study:
    return replace(Study(model=model, device=DEVICE), **changes)  # type: ignore[arg-type]


def app_on(model: ModelSpec) -> KvscopeApp:
    state = with_study(default_state(), study_of(model))
    return KvscopeApp(state, settings=Settings(), start_engine=False)


def test_the_cells_are_the_layers_in_their_order() -> None:
    found = layer_map(study_of(hybrid()))
    assert found is not None
    assert found.keeps == "~~~█" * 10
    assert found.feeds == "d" + "E" * 39
    near = layer_map(study_of(windowed()))
    assert near is not None
    assert (near.keeps, near.feeds) == ("▄▄▄▄▄█" * 8, "")
    low = layer_map(study_of(latent()))
    assert low is not None
    assert (low.keeps, low.feeds) == ("◆" * 61, "ddd" + "E" * 58)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("context", [1, 1000, 8192, 100_000])
@pytest.mark.parametrize("stored", ["bf16", "q8_0"])
def test_bytes_of_the_kinds_sum_to_the_report(make: Callable[[], ModelSpec], context: int, stored: str) -> None:
    study = study_of(make(), context=context, kv_format=FORMATS[stored])
    report, found = memory_report(study), layer_map(study)
    assert found is not None
    cache = sum(kind.bytes_held for kind in found.kinds if kind.held == "/req")
    state = sum(kind.bytes_held for kind in found.kinds if kind.held == "/seq")
    assert 0 <= cache - report.kv_bytes_per_request < len(found.kinds)
    assert state == report.state_bytes_per_sequence
    assert sum(kind.layers for kind in found.kinds if kind.mark not in "Ed") == study.model.n_layers


@pytest.mark.parametrize("make", [hybrid, latent])
def test_bytes_of_the_feed_forwards_are_those_of_the_parameters(make: Callable[[], ModelSpec]) -> None:
    found, counts = layer_map(study_of(make())), parameters(make())
    assert found is not None
    assert sum(kind.bytes_held for kind in found.kinds if kind.mark == "E") == 2 * counts.experts
    assert sum(kind.bytes_held for kind in found.kinds if kind.mark == "d") == 2 * counts.mlp


def test_a_plain_model_has_no_map_and_a_windowed_one_says_that_the_order_is_not_known() -> None:
    assert layer_map(study_of(find_model("llama-3-8b"))) is None
    plain = edit(find_model("llama-3-8b"), n_sliding_layers=16, window=512)
    study = study_of(plain)
    found = layer_map(study)
    assert found is not None
    assert not found.ordered
    assert found.keeps == "█" * 16 + "▄" * 16
    assert sum(kind.bytes_held for kind in found.kinds) == memory_report(study).kv_bytes_per_request


@pytest.mark.parametrize("width", [6, 20, 47, 80])
def test_the_map_keeps_to_its_width_and_loses_no_layer(width: int) -> None:
    found = layer_map(study_of(latent()))
    assert found is not None
    drawn = map_lines(found, width)
    assert all(len(label) + len(cells) <= width for label, cells, _ in drawn)
    assert "".join(cells for _, cells, row in drawn if row == "keeps") == found.keeps
    assert "".join(cells for _, cells, row in drawn if row == "feeds") == found.feeds


@pytest.mark.parametrize("make", MODELS)
def test_every_row_of_every_table_is_explained(make: Callable[[], ModelSpec]) -> None:
    study = study_of(make())
    report, found = memory_report(study), layer_map(study)
    assert found is not None
    for kind, row in zip(found.kinds, kinds_table(found).rows, strict=True):
        assert row.terms == kind.steps
        assert row[0].startswith(kind.mark)
    assert all(row.terms for table in (component_table(report), tp_table(report)) for row in table.rows)
    for cells in batch_by_context(Rule(study=study)).rows:
        own = memory_report(replace(study, context=int(cells[0].split()[0].replace(",", ""))))
        assert cells[1] == (f"{own.max_batch:,}" if own.fits else "–")
        assert cells.terms[1].value == (own.max_batch if own.fits else own.steps[-1].value)
    one = batch_by_format(Rule(study=study)).rows[1]
    own = memory_report(replace(study, weight_format=FORMATS["fp8"], kv_format=FORMATS["q4_0"]))
    assert one[3] == (f"{own.max_batch:,}" if own.fits else "–")
    assert one.terms


def test_the_answer_has_active_parameters_and_the_state_where_there_are_any() -> None:
    report = memory_report(study_of(hybrid()))
    titles = [row.title for row in answer_table(report).rows]
    assert titles == [
        "Total parameters", "Active parameters per token", "Parameter memory", "KV cache per token",
        "KV cache per request", "State per sequence", "Max batch size possible",
    ]  # fmt: skip
    values = [row.terms[0].value for row in answer_table(report).rows]
    assert values == [
        report.parameters.total, report.parameters.active, report.weight_bytes, 20_480,
        report.kv_bytes_per_request, report.state_bytes_per_sequence, report.max_batch,
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
async def test_the_memory_pane_shows_the_map_and_its_legend(size: tuple[int, int]) -> None:
    app = app_on(hybrid())
    async with app.run_test(size=size) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        await pilot.press(*["down"] * 7)
        await pilot.pause()
        shown = text(app)
        assert "~~~█~~~█~~~█" in shown
        for part in ("gated delta", "33.42 MB/seq", "167.77 MB/req", "256 experts of 512 (8 active)"):
            assert part in shown
        assert app.query_one("#derivation", Derivation).title == "Gated delta: 30 layers"
        assert "e_s · b_s" in app.query_one("#derivation", Derivation).plain()


@pytest.mark.slow
async def test_the_map_goes_when_a_plain_model_comes_and_the_cursor_is_somewhere() -> None:
    app = app_on(hybrid())
    async with app.run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        await pilot.press(*["down"] * 7)
        assert app.focused is app.query_one("#table-layers")
        app.take_state(default_state())
        await pilot.pause()
        assert "gated delta" not in text(app)
        assert not app.query_one("#card-layers").display
        assert app.focused is app.query_one("#table-answer")
        await pilot.press("end", "down")
        await pilot.pause()
        assert app.query_one("#table-tp", CalcTable).show_cursor


@pytest.mark.parametrize("make", [hybrid, pytest.param(latent, marks=pytest.mark.slow)])
async def test_the_form_opens_a_layered_model_read_only_with_a_sentence_why(make: Callable[[], ModelSpec]) -> None:
    app = app_on(make())
    async with app.run_test(size=(120, 60)) as pilot:
        await pilot.pause()
        flat = " ".join(text(app).replace("│", " ").split())
        assert f"Read-only: the {make().n_layers} layers are not all alike" in flat
        assert app.query_one("#field-n_layers", Input).disabled
        assert app.query_one("#field-mlp").disabled
        assert not app.query_one("#field-vocab_size").disabled
        await type_into(pilot, "#field-vocab_size", "1000")
        assert app.state.study.model.vocab_size == 1000
        assert app.state.study.model.layers == make().layers
        assert "✗" not in text(app)


@pytest.mark.slow
async def test_after_a_layered_model_a_plain_one_can_be_edited() -> None:
    app = app_on(hybrid())
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        assert await app.open_model("llama-3-8b") is None
        await pilot.pause()
        assert "Read-only" not in text(app)
        await type_into(pilot, "#field-n_layers", "16")
        assert app.state.study.model.n_layers == 16
        assert "llama-3-8b (edited)" in lines(app)[0]


@pytest.mark.slow
async def test_window_layers_follow_the_layers_until_they_are_typed() -> None:
    app = app_on(edit(find_model("llama-3-8b"), name="half", n_sliding_layers=16, window=512, source="by hand"))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        await type_into(pilot, "#field-n_layers", "9")
        assert app.query_one("#field-n_sliding_layers", Input).value == "5"
        assert app.state.study.model.n_sliding_layers == 5
        await type_into(pilot, "#field-n_layers", "32")
        assert app.state.study.model.n_sliding_layers == 16
        await type_into(pilot, "#field-n_sliding_layers", "3")
        await type_into(pilot, "#field-n_layers", "12")
        assert app.state.study.model.n_sliding_layers == 3
        assert app.query_one("#field-n_sliding_layers", Input).value == "3"


@pytest.mark.slow
@pytest.mark.panes("intensity")
async def test_a_pane_key_pressed_before_the_panes_are_made_counts() -> None:
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with from_the_start(app, size=(120, 40)) as pilot:
        assert app.pane("intensity") is None
        app.action_go(2)
        await until(pilot, lambda: app.active_pane is not None and app.active_pane.TITLE == "Intensity")
        await until(pilot, lambda: app.is_whole)


@pytest.mark.slow
@pytest.mark.skipif(not CONFIGS.is_dir(), reason="no published configs beside the project")
@pytest.mark.parametrize(
    "start", ["Qwen__Qwen3.5-35B", "ai21labs", "openai__gpt-oss", "deepseek-ai__DeepSeek-V3.2", "google__gemma-3-4b"]
)
async def test_a_published_config_is_opened_by_a_completed_path(start: str) -> None:
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.pane("memory") is not None)
        await pilot.press("ctrl+o")
        bar = app.query_one("#path", Input)
        bar.value = f"{CONFIGS}/{start}"
        bar.cursor_position = len(bar.value)
        await pilot.press("tab", "enter")
        await until(pilot, lambda: app.state.study.model.name != "llama-3-8b")
        found = layer_map(app.state.study)
        assert found is not None
        assert len(found.keeps) == app.state.study.model.n_layers
        await pilot.press("f3")
        await until(pilot, lambda: app.query_one("#card-layers").display)
        assert found.kinds[0].label[:20] in text(app)
