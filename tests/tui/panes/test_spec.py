"""The Spec pane: edits show at once, errors stand at their field, pickers and paths bring models in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widgets import Input, OptionList

from calc.model.parts import Mlp
from calc.model.study import Policy
from calc.sources.catalog import find_device, find_model
from calc.units import GB, GIB
from tests.tui.live_engine import SIZES, until
from tests.tui.screen_text import lines, text, type_into
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.state import default_state
from tui.panes.spec import SpecPane
from tui.widgets.form import FieldInput
from tui.widgets.path_bar import PathBar
from tui.widgets.picker import Picker

pytestmark = pytest.mark.panes()


@asynccontextmanager
async def running(size: tuple[int, int] = (120, 40)) -> AsyncIterator[tuple[KvscopeApp, Pilot[None]]]:
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield app, pilot


def line_of(app: KvscopeApp, start: str) -> str:
    return next(line for line in lines(app) if start in line)


async def test_the_assignments_numbers_are_on_the_first_screen() -> None:
    async with running() as (app, _):
        assert "8,030,261,248" in line_of(app, "Total parameters")
        assert "16.06 GB 14.96 GiB" in line_of(app, "Parameter memory")
        assert "1.07 GB  1.00 GiB" in line_of(app, "KV cache per request (8,192 tokens)")
        assert "59" in line_of(app, "Max batch size possible").split()
        assert "weights 16.06 GB (14.96 GiB)   KV 131,072 B/token · 1.07 GB/request   MAX BATCH 59" in lines(app)[1]


@pytest.mark.parametrize("size", SIZES)
async def test_the_answer_is_seen_at_every_size(size: tuple[int, int]) -> None:
    async with running(size) as (app, _):
        top = "\n".join(lines(app)[:2])
        for part in ("llama-3-8b", "16.06 GB", "131,072 B", "1.07 GB", "MAX BATCH 59"):
            assert part in top
        assert all(len(line) <= size[0] for line in lines(app))


RESULTS = [
    ("Total parameters", "8,030,261,248"),
    ("Parameter memory", "16.06 GB"),
    ("KV cache per token", "131,072 B"),
    ("KV cache per request", "1.07 GB"),
    ("Max batch size possible", "59"),
]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(100, 30), (160, 45), (160, 48)])
async def test_each_value_stands_beside_its_label_on_the_first_screen(size: tuple[int, int]) -> None:
    async with running(size) as (app, pilot):
        await settled(app, pilot)
        for label, value in RESULTS:
            assert value in line_of(app, f"│ {label}").split(label)[1].split("│")[0]
        if size[0] >= 160:
            for tp, kv, batch in (("1", "1.07 GB", "59"), ("4", "268.44 MB", "283"), ("8", "134.22 MB", "581")):
                row = line_of(app, f"││  {tp} ").rpartition("││")[2]
                assert row.count(kv) == 2
                assert row.split().count(batch) == 2


@pytest.mark.slow
async def test_results_follow_the_width_of_the_terminal() -> None:
    async with running((100, 30)) as (app, pilot):
        assert "14.96 GiB" not in line_of(app, "Parameter memory")
        await pilot.resize_terminal(200, 60)
        await settled(app, pilot)
        assert "16.06 GB 14.96 GiB" in line_of(app, "Parameter memory")
        assert "(8,192 tokens)" in line_of(app, "KV cache per request")


async def settled(app: KvscopeApp, pilot: Pilot[None]) -> None:
    """Wait for the third column, which comes after the first paint."""
    await until(pilot, lambda: bool(app.query("#spec-more")))
    for _ in range(4):
        await pilot.pause(0.02)


async def test_an_edit_is_shown_everywhere_at_once() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-context", "16Ki")
        assert app.state.study.context == 16384
        assert "MAX BATCH 29" in lines(app)[1]
        assert "= 16,384 tokens" in line_of(app, "16Ki")
        assert "KV cache per request (16,384 token" in text(app)
        assert "--context 16384" in text(app)


async def test_a_bad_number_is_marked_and_the_last_good_answer_stays() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-n_kv_heads", "5")
        assert "✗ n_heads 32 is not divisible by n_kv_heads 5" in text(app)
        assert app.query_one("#field-n_kv_heads").has_class("-bad")
        assert "MAX BATCH 59" in lines(app)[1]
        await type_into(pilot, "#field-n_kv_heads", "32")
        assert "✗" not in text(app)
        assert app.state.study.model.n_kv_heads == 32
        assert "MAX BATCH 14" in lines(app)[1]
        assert "llama-3-8b (edited)" in lines(app)[0]


REFUSALS = [
    ("memory_bytes", "80", "Memory 80 has no unit: 80GB is 80,000,000,000 B"),
    ("n_layers", "0", "Layers must be at least 1, not 0"),
    ("n_layers", "-2", "Layers must be at least 1, not -2"),
    ("vocab_size", "lots", "Vocabulary must be a number such as 8192"),
    ("context", "", "Context is empty"),
    ("weight_format", "bf15", "unknown storage format 'bf15'"),
    ("tp", "1,0", "TP must be at least 1, not 0"),
    ("hidden_size", "4097", "4,097 is not divisible by 32 query heads"),
]


@pytest.mark.slow
async def test_each_refusal_stands_on_the_screen() -> None:
    async with running() as (app, pilot):
        for field, typed, said in REFUSALS:
            entry = app.query_one(f"#field-{field}", FieldInput)
            good = entry.value
            await type_into(pilot, f"#field-{field}", typed)
            assert said in " ".join(text(app).replace("│", " ").split())
            assert "MAX BATCH 59" in lines(app)[1]
            entry.value = good
            await pilot.pause()
            assert "✗" not in text(app)


@pytest.mark.slow
async def test_fast_typing_loses_no_key() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-context").focus()
        await pilot.press("end", "ctrl+u", *"131072")
        await pilot.pause()
        assert app.query_one("#field-context", FieldInput).value == "131072"
        assert app.state.study.context == 131072


@pytest.mark.slow
async def test_a_redrawing_keeps_what_is_typed_and_undo_replaces_it() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-context", "16Ki")
        await type_into(pilot, "#field-n_layers", "many")
        app.action_marker("dot")
        await pilot.pause()
        assert app.query_one("#field-n_layers", FieldInput).value == "many"
        assert app.query_one("#field-context", FieldInput).value == "16Ki"
        app.action_undo()
        await pilot.pause()
        assert app.query_one("#field-context", FieldInput).value == str(app.state.study.context) != "16Ki"


@pytest.mark.slow
async def test_the_head_dimension_follows_until_it_is_typed() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-hidden_size", "8192")
        assert "256 auto" in line_of(app, "Head dim")
        assert app.state.study.model.head_dim == 256
        await type_into(pilot, "#field-head_dim", "128")
        assert app.state.study.model.head_dim == 128
        await type_into(pilot, "#field-hidden_size", "4096")
        assert app.state.study.model.head_dim == 128


async def test_switches_and_choices_count_by_key_and_by_mouse() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-tied").focus()
        await pilot.press("space")
        await pilot.pause()
        assert app.state.study.model.tied is True
        assert "7,504,924,672" in line_of(app, "Total parameters")
        await pilot.click("#field-tied")
        await pilot.pause()
        assert app.state.study.model == find_model("llama-3-8b")
        app.query_one("#field-mlp").focus()
        await pilot.press("right")
        await pilot.pause()
        assert app.state.study.model.mlp is Mlp.PLAIN
        app.query_one("#field-policy").focus()
        await pilot.press("space")
        await pilot.pause()
        assert app.state.study.policy is Policy.REPLICATED
        assert "replicated" in lines(app)[0]


async def test_a_model_is_found_by_typing() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-model").focus()
        await pilot.press("q", *"wen3-8")
        await pilot.pause()
        assert isinstance(app.screen, Picker)
        assert app.screen.query_one(OptionList).option_count == 1
        assert "weights 16.38 GB · KV 147,456 B/token · max batch 52" in text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert app.state.study.model == find_model("qwen3-8b")
        assert app.query_one("#field-n_layers", FieldInput).value == "36"
        assert "MAX BATCH 52" in lines(app)[1]


@pytest.mark.slow
async def test_keys_that_come_faster_than_the_list_join_its_search() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-model").focus()
        await pilot.pause()
        for character in "qwen3-8b":
            app.post_message(events.Key({"-": "minus"}.get(character, character), character))
        await until(pilot, lambda: isinstance(app.screen, Picker) and bool(app.screen.query("#search")))
        await until(pilot, lambda: app.screen.query_one("#search", Input).value == "qwen3-8b")
        assert len(app.screen_stack) == 2
        assert app.screen.query_one(OptionList).option_count >= 1
        await pilot.press("escape")
        await pilot.pause()
        assert app.query_one(SpecPane).is_on_screen


@pytest.mark.slow
async def test_the_picker_can_be_left_and_says_when_nothing_matches() -> None:
    async with running() as (app, pilot):
        await pilot.press("enter", *"zzz")
        await pilot.pause()
        assert "Nothing matches 'zzz'." in text(app)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, Picker)
        await pilot.press("escape")
        await pilot.pause()
        assert app.state == default_state()
        assert app.focused is app.query_one("#field-model")


@pytest.mark.slow
async def test_a_picked_model_replaces_what_was_wrong() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-n_kv_heads", "5")
        app.query_one("#field-model").focus()
        await pilot.press("enter", "enter")
        await pilot.pause()
        assert app.query_one("#field-n_kv_heads", FieldInput).value == "8"
        assert "✗" not in text(app)


@pytest.mark.slow
async def test_a_device_brings_its_ridge() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-device").focus()
        await pilot.press("enter", *"a100-sxm", "enter")
        await pilot.pause()
        device = app.state.study.device
        assert device.ridge() is not None
        assert f"ridge {device.ridge():.0f}" in text(app)
        assert "pick a device" not in text(app)


@pytest.mark.slow
async def test_the_memory_of_a_device_can_be_edited_and_keeps_its_ridge() -> None:
    async with running() as (app, pilot):
        pane = app.query_one(SpecPane)
        pane.take_device(find_device("h100-sxm"))
        await type_into(pilot, "#field-memory_bytes", "40GiB")
        device = app.state.study.device
        assert (device.memory_bytes, device.ridge()) == (40 * GIB, find_device("h100-sxm").ridge())
        assert device.name.endswith("(edited)")


@pytest.mark.slow
async def test_a_model_too_large_is_an_answer() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-memory_bytes", "16GB")
        assert app.state.study.device.memory_bytes == 16 * GB
        assert "MAX BATCH 0: does not fit" in lines(app)[1]
        assert "Does not fit: the weights alone exceed the memory" in text(app)
        assert "missing 1.13 GB with one request" in text(app)


async def test_a_path_is_opened_in_place_and_a_bad_one_says_why(tmp_path: Path) -> None:
    spec = tmp_path / "small.toml"
    spec.write_text(
        "n_layers = 2\nn_heads = 4\nn_kv_heads = 2\nhead_dim = 8\nhidden_size = 32\nintermediate_size = 64\n"
        "vocab_size = 100\n"
    )
    async with running() as (app, pilot):
        await pilot.press("ctrl+o")
        app.screen.query_one("#path").value = f"{tmp_path}/missing.json"  # type: ignore[attr-defined]
        await pilot.press("enter")
        await pilot.pause()
        flat = "".join(text(app).split())
        assert "missing.json:nosuchfileorfolder" in flat
        assert app.query_one(PathBar).is_open
        app.screen.query_one("#path").value = f"{tmp_path}/sm"  # type: ignore[attr-defined]
        await pilot.press("end", "tab")
        await pilot.pause()
        assert app.screen.query_one("#path").value == str(spec)  # type: ignore[attr-defined]
        await pilot.press("enter")
        await pilot.pause()
        assert not app.query_one(PathBar).is_open
        assert app.state.study.model.n_layers == 2
        assert app.query_one("#field-vocab_size", FieldInput).value == "100"


@pytest.mark.slow
async def test_a_path_can_be_typed_into_the_picker(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    async with running() as (app, pilot):
        await pilot.press("enter")
        app.screen.query_one("#search").value = f"{tmp_path}/config.json"  # type: ignore[attr-defined]
        await pilot.pause()
        await pilot.press("enter")
        await pilot.pause()
        assert any("config.json: not JSON" in note.message for note in app._notifications)
        assert app.state == default_state()


@pytest.mark.slow
async def test_arrows_walk_through_the_fields() -> None:
    async with running() as (app, pilot):
        seen = []
        for _ in range(4):
            await pilot.press("down")
            seen.append(app.focused.id if app.focused else None)
        assert seen == ["field-n_layers", "field-n_heads", "field-n_kv_heads", "field-head_dim"]
        await pilot.press("up")
        assert app.focused is app.query_one("#field-n_kv_heads")


@pytest.mark.slow
async def test_the_form_scrolls_with_the_focus_on_a_small_screen() -> None:
    async with running((80, 24)) as (app, pilot):
        app.query_one("#field-policy").focus()
        await until(pilot, lambda: "Split rule" in text(app))


@pytest.mark.slow
async def test_a_context_beyond_the_models_own_is_remarked() -> None:
    async with running() as (app, pilot):
        app.query_one(SpecPane).take_model(find_model("llama-2-7b"))
        await pilot.pause()
        assert "! this model supports at most 4,096 tokens" in text(app)
