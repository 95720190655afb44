"""The frame: keys, help, palette, copy, export, undo, what is remembered, and what is never imported."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from textual.command import CommandList, CommandPalette
from textual.pilot import Pilot
from textual.widget import Widget

from calc.commands.render import as_markdown
from calc.commands.tables import answer_table, tp_table
from calc.sources import load_model
from tests.tui.live_engine import until
from tests.tui.run_app import from_the_start
from tests.tui.screen_text import lines, text, type_into
from tui.app.actions import as_tsv
from tui.app.app import KvscopeApp
from tui.app.help import HelpScreen
from tui.app.panes import PANES
from tui.app.settings import Settings, load_settings, save_settings, settings_path
from tui.form.state import default_state
from tui.panes.base import StateEdited
from tui.panes.memory import MemoryPane
from tui.panes.spec import SpecPane
from tui.widgets.card import Card
from tui.widgets.dial import WORD_S, ChoiceDial
from tui.widgets.keybar import KeyHint, fitting_hints, key_name
from tui.widgets.path_bar import FileWriter, PathBar, complete_path
from tui.widgets.plot import PlotView
from tui.widgets.status import StatusStrip, fitting
from tui.widgets.tabs import TabLine, Tabs


@asynccontextmanager
async def running(
    size: tuple[int, int] = (120, 40), app: KvscopeApp | None = None
) -> AsyncIterator[tuple[KvscopeApp, Pilot[None]]]:
    app = app or KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield app, pilot


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVSCOPE_CONFIG_DIR", str(tmp_path / "config"))
    return settings_path()


# --- panes and keys ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_function_keys_go_to_the_panes_from_inside_a_field() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-context").focus()
        names = {
            "f3": "memory", "f4": "intensity", "f5": "roofline", "f6": "estimate", "f7": "generate", "f8": "benchmark",
            "f2": "spec",
        }  # fmt: skip
        for key, name in names.items():
            await pilot.press(key)
            await until(pilot, lambda: app.focused is not None and app.active_pane in app.focused.ancestors_with_self)
            assert app.query_one(Tabs).active == name


@pytest.mark.slow
async def test_digits_go_to_the_panes_unless_they_are_typed() -> None:
    async with running() as (app, pilot):
        app.screen.set_focus(None)
        await pilot.press("2")
        await until(pilot, lambda: app.query_one(Tabs).active == "memory")
        await pilot.press("1")
        await until(pilot, lambda: app.query_one(Tabs).active == "spec")
        await type_into(pilot, "#field-context", "2")
        assert app.query_one(Tabs).active == "spec"
        assert app.state.study.context == 2


async def test_a_click_on_a_tab_shows_its_pane() -> None:
    async with running() as (app, pilot):
        await pilot.click(TabLine, offset=(8, 0))
        await pilot.pause()
        assert isinstance(app.active_pane, MemoryPane)
        assert "5,637,144,576" in text(app)


@pytest.mark.slow
async def test_the_key_bar_shows_what_works_now_and_can_be_clicked() -> None:
    async with running() as (app, pilot):
        assert lines(app)[-1].strip().startswith("F1 help  F2–F8,F12 panes")
        assert "^q quit" in lines(app)[-1]
        await pilot.press("ctrl+e")
        await pilot.pause()
        assert "Esc cancel" in lines(app)[-1]
        await pilot.press("escape")
        await pilot.pause()
        assert "Esc cancel" not in lines(app)[-1]
        await pilot.click("#keybar", offset=(2, 0))
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape", "f4")
        await until(pilot, lambda: "f standard/flash" in lines(app)[-1])
        await pilot.press("ctrl+f")  # keys of the pane do nothing under the questions
        await until(pilot, lambda: "f standard/flash" not in lines(app)[-1])
        assert "^q quit" in lines(app)[-1]


def test_the_key_bar_leaves_out_the_least_needed() -> None:
    hints = [KeyHint(key=k, shown=k, words="word", rank=rank) for k, rank in (("a", 0), ("b", 3), ("c", 1))]
    assert [hint.key for hint in fitting_hints(hints, 40)] == ["a", "b", "c"]
    assert [hint.key for hint in fitting_hints(hints, 16)] == ["a", "c"]
    assert [hint.key for hint in fitting_hints(hints, 3)] == ["a"]


@pytest.mark.slow
async def test_the_needed_keys_are_seen_at_every_size() -> None:
    async with running((80, 24)) as (app, pilot):
        for size in ((80, 24), (120, 40), (200, 60)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
            for part in ("F1 help", "panes", "^p commands", "^q quit"):
                assert part in lines(app)[-1], size


@pytest.mark.slow
async def test_app_keys_do_nothing_under_a_list_or_the_help() -> None:
    async with running() as (app, pilot):
        await pilot.press("f1")
        await pilot.press("f3", "ctrl+e", "ctrl+o")
        await pilot.pause()
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape")
        await pilot.pause()
        assert app.query_one(Tabs).active == "spec"
        assert not app.query_one(PathBar).is_open


# --- help -------------------------------------------------------------------------------------------------


async def test_help_explains_the_focused_field() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-n_kv_heads").focus()
        await pilot.press("f1")
        await pilot.pause()
        shown = text(app)
        for part in (
            "KV heads",
            "Number of heads whose K and V are cached.",
            "4096, 4_096, 4k (4,000)",
            "n_kv: key/value heads",
        ):
            assert part in shown, part
        assert "Spec pane" in shown
        await pilot.press("f1")
        await pilot.pause()
        assert not isinstance(app.screen, HelpScreen)
        assert app.focused is app.query_one("#field-n_kv_heads")


@pytest.mark.slow
async def test_every_pane_has_help_its_keys_an_export_and_a_command() -> None:
    async with running((120, 60)) as (app, pilot):
        for key, title in zip(("f2", "f3", "f4", "f5", "f6", "f7", "f8", "f12"), PANES, strict=True):
            await pilot.press(key)
            await until(pilot, lambda title=title: app.active_pane is not None and title == app.active_pane.TITLE)
            pane = app.active_pane
            assert pane is not None
            assert pane.export_markdown().startswith("#")
            assert pane.command_line().startswith("kvscope ")
            await pilot.press("f1")
            await until(pilot, lambda: isinstance(app.screen, HelpScreen))
            assert f"{title} pane" in text(app)
            assert "Keys that work now" in text(app)
            await pilot.press("escape")
            await until(pilot, lambda: not isinstance(app.screen, HelpScreen))


def test_keys_are_written_as_on_keyboards() -> None:
    assert [key_name(k) for k in ("f1", "up", "escape", "ctrl+p", "f")] == ["F1", "↑", "Esc", "ctrl+p", "f"]


# --- palette ----------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_palette_runs_our_commands() -> None:
    async with running() as (app, pilot):
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))
        await pilot.press(*"go", "space", *"to", "space", *"mem")
        found = app.screen.query_one(CommandList)
        await until(pilot, lambda: [option.hit.text for option in found.options] == ["Go to Memory"])  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.active_pane, MemoryPane))


@pytest.mark.slow
async def test_every_command_of_the_palette_has_words() -> None:
    async with running() as (app, _):
        commands = app.get_system_commands(app.screen)
        titles = [command.title for command in commands]
        assert len(titles) == len(set(titles))
        wanted = {"Go to Benchmark", "Choose a model", "Copy table as TSV", "Export this pane", "Theme", "Start over"}
        assert wanted <= set(titles)
        assert all(command.help for command in commands)


# --- copy -------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_command_line_is_copied() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-context", "32k")
        await pilot.press("ctrl+y")
        assert app.clipboard == "kvscope memory --context 32000"


@pytest.mark.slow
async def test_copying_writes_osc_52(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as (app, pilot):
        written: list[str] = []
        assert app._driver is not None
        monkeypatch.setattr(app._driver, "write", written.append)
        await pilot.press("ctrl+y")
        code = base64.b64encode(b"kvscope memory").decode()
        assert f"\x1b]52;c;{code}\a" in written


@pytest.mark.slow
async def test_what_has_no_option_is_said_when_copying() -> None:
    async with running() as (app, pilot):
        app.query_one("#field-qkv_bias").focus()
        await pilot.press("space", "ctrl+y")
        await pilot.pause()
        assert any("The command line cannot express qkv_bias" in note.message for note in app._notifications)


@pytest.mark.slow
async def test_the_table_with_the_cursor_is_copied() -> None:
    async with running() as (app, pilot):
        await pilot.press("f3", "ctrl+t")
        assert app.clipboard == as_markdown(answer_table(app.analysis.memory))
        app.query_one("#table-tp").focus()
        await pilot.pause()
        await pilot.press("ctrl+t")
        assert app.clipboard == as_markdown(tp_table(app.analysis.memory))
        app.action_copy_table("tsv")
        assert app.clipboard.split("\n")[2].split("\t")[:4] == ["2", "8.03 GB", "536.87 MB", "134"]
        assert as_tsv(tp_table(app.analysis.memory)) == app.clipboard


# --- export, save, open -----------------------------------------------------------------------------------


async def export_to(app: KvscopeApp, pilot: Pilot[None], path: str) -> None:
    app.screen.query_one("#path").value = path  # type: ignore[attr-defined]
    await pilot.press("enter")
    await pilot.pause()


@pytest.mark.slow
async def test_a_pane_is_exported_and_an_old_file_only_on_a_second_enter(tmp_path: Path) -> None:
    target = tmp_path / "answer.md"
    async with running() as (app, pilot):
        await pilot.press("f3", "ctrl+e")
        assert app.screen.query_one("#path").value == "kvscope-memory.md"  # type: ignore[attr-defined]
        await export_to(app, pilot, str(target))
        written = target.read_text()
        assert "| Total parameters | 8,030,261,248 |" in written
        assert not app.query_one(PathBar).is_open
        target.write_text("mine")
        await pilot.press("ctrl+e")
        await export_to(app, pilot, str(target))
        assert target.read_text() == "mine"
        assert "exists.PressEnteragaintoreplaceit" in "".join(text(app).split())
        await pilot.press("enter")
        await pilot.pause()
        assert target.read_text() == written
        assert [p.name for p in tmp_path.iterdir()] == ["answer.md"]


@pytest.mark.slow
async def test_an_export_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    async with running() as (app, pilot):
        await pilot.press("ctrl+e")
        await export_to(app, pilot, f"{tmp_path}/no/such/folder.md")
        assert ": No such file or directory" in " ".join(text(app).split())
        await export_to(app, pilot, str(tmp_path))
        assert "is a folder" in text(app)
        await pilot.press("escape")
        await pilot.pause()
        assert not app.query_one(PathBar).is_open
        assert app.focused is app.query_one("#field-model")


@pytest.mark.slow
async def test_a_saved_spec_opens_again(tmp_path: Path) -> None:
    target = tmp_path / "spec.toml"
    async with running() as (app, pilot):
        await type_into(pilot, "#field-n_layers", "16")
        app.query_one("#field-qkv_bias").focus()
        await pilot.press("space")
        await pilot.pause()
        await app.action_save_spec()
        await export_to(app, pilot, str(target))
        model = load_model(str(target))
        assert model == replace(app.state.study.model, notes=model.notes)


async def test_the_second_enter_must_be_on_the_same_path(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    done: list[Path] = []
    writer = FileWriter("new", done=done.append)
    assert "exists" in (await writer(str(one)) or "")
    assert "exists" in (await writer(str(two)) or "")
    assert await writer(str(two)) is None
    assert (one.read_text(), two.read_text(), done) == ("1", "new", [two])
    assert await writer("") == "Type a file name."
    assert "cannot write" in (await writer("\0") or "")


def test_paths_are_completed(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "config.json").write_text("{}")
    (tmp_path / ".hidden").write_text("")
    assert complete_path(f"{tmp_path}/mo") == f"{tmp_path}/models/"
    assert complete_path(f"{tmp_path}/models/") == f"{tmp_path}/models/config.json"
    assert complete_path(f"{tmp_path}/.h") == f"{tmp_path}/.hidden"
    assert complete_path(f"{tmp_path}/zzz") is None
    assert complete_path("/no/such/folder/x") is None


@pytest.mark.slow
async def test_a_form_that_is_not_valid_is_marked_on_every_tab_and_gives_no_command() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-context", "8x")
        for key, name in (("f3", "memory"), ("f6", "estimate")):
            await pilot.press(key)
            await until(pilot, lambda tab=name: app.query_one(Tabs).active == tab)  # type: ignore[misc]
            assert "✗ Spec: Context has an unknown suffix in '8x'" in lines(app)[1]
            assert "MAX BATCH" in lines(app)[1]
            await pilot.press("ctrl+y")
            await pilot.pause()
            assert app.clipboard == ""
        await pilot.press("f2")
        await type_into(pilot, "#field-context", "4096")
        assert "✗" not in lines(app)[1]
        await pilot.press("ctrl+y")
        await pilot.pause()
        assert app.clipboard == "kvscope memory --context 4096"


@pytest.mark.slow
async def test_undo_goes_by_field_and_has_a_key() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-context", "4096")
        await type_into(pilot, "#field-tp", "1,2")
        assert (app.state.study.context, app.state.study.tps) == (4096, (1, 2))
        await pilot.press("ctrl+underscore")
        await pilot.pause()
        assert (app.state.study.context, app.state.study.tps) == (4096, (1, 2, 4, 8))
        await pilot.press("ctrl+underscore")
        await pilot.pause()
        assert app.state == default_state()


@pytest.mark.slow
async def test_what_is_typed_on_a_dial_is_taken_by_it() -> None:
    async with running((160, 45)) as (app, pilot):
        await pilot.press("f7")
        await until(pilot, lambda: app.active_pane is not None and app.active_pane.TITLE == "Generate")
        dtype, tp = app.query_one("#dial-dtype", ChoiceDial), app.query_one("#dial-tp", ChoiceDial)
        dtype.focus()
        await pilot.press(*"int4")
        assert (dtype.value, tp.value) == ("int4", "1")
        await pilot.pause(WORD_S)
        await pilot.press(*"bf")
        assert dtype.value == "bfloat16"
        tp.focus()
        await pilot.press("2")
        assert (tp.value, app.active_pane.TITLE) == ("2", "Generate")


# --- state, undo, settings --------------------------------------------------------------------------------


@pytest.mark.slow
async def test_undo_and_start_over() -> None:
    async with running() as (app, pilot):
        await type_into(pilot, "#field-tp", "4")
        app.action_start_over()
        await pilot.pause()
        assert app.state == default_state()
        app.action_undo()
        await pilot.pause()
        assert app.state.study.tps == (4,)
        assert app.query_one("#field-tp").value == "4"  # type: ignore[attr-defined]


@pytest.mark.slow
async def test_the_last_spec_theme_and_marker_are_remembered(config: Path) -> None:
    async with running(app=KvscopeApp(start_engine=False)) as (app, pilot):
        assert not config.exists()
        await type_into(pilot, "#field-context", "4Ki")
        app.theme = "nord"
        app.action_marker("dot")
        await pilot.pause()
        state = app.state
    loaded = load_settings(config)
    assert loaded.problem is None
    assert loaded.settings == Settings(theme="nord", marker="dot", state=state)
    async with running(app=KvscopeApp(start_engine=False)) as (app, _):
        assert app.theme == "nord"
        assert app.state == state
        assert "MAX BATCH 119" in lines(app)[1]


@pytest.mark.slow
async def test_settings_are_saved_soon_after_an_edit(config: Path) -> None:
    async with running(app=KvscopeApp(start_engine=False)) as (_, pilot):
        await type_into(pilot, "#field-context", "4Ki")
        await until(pilot, lambda: load_settings(config).settings.state is not None)


@pytest.mark.slow
async def test_a_broken_settings_file_is_reported_and_the_app_starts(config: Path) -> None:
    config.parent.mkdir()
    config.write_text("theme = [")
    async with running(app=KvscopeApp(start_engine=False)) as (app, pilot):
        await pilot.pause()
        assert any("Ignored invalid settings" in note.message for note in app._notifications)
        assert "MAX BATCH 59" in lines(app)[1]


@pytest.mark.slow
async def test_a_theme_that_no_longer_exists_is_replaced(config: Path) -> None:
    save_settings(config, Settings(theme="gone"))
    async with running(app=KvscopeApp(start_engine=False)) as (app, pilot):
        await pilot.pause()
        assert app.theme == "kvscope-dark"
        assert any("'gone'" in note.message for note in app._notifications)


@pytest.mark.slow
async def test_settings_that_cannot_be_saved_stop_nothing(config: Path) -> None:
    config.parent.write_text("a file where the folder should be")
    async with running(app=KvscopeApp(start_engine=False)) as (app, pilot):
        await type_into(pilot, "#field-context", "4Ki")
        await until(pilot, lambda: any("Cannot save the settings" in note.message for note in app._notifications))
        assert "MAX BATCH 119" in lines(app)[1]


@pytest.mark.slow
async def test_a_state_given_goes_before_the_remembered_one(config: Path) -> None:
    remembered = replace(default_state(), study=replace(default_state().study, context=1024))
    save_settings(config, Settings(state=remembered))
    async with running(app=KvscopeApp(default_state(), start_engine=False)) as (app, _):
        assert app.state == default_state()


@pytest.mark.slow
async def test_the_marker_redraws_the_plots() -> None:
    async with running((200, 60)) as (app, pilot):
        await pilot.pause()
        before = app.query_one("#spec-plot", PlotView).render().plain
        app.action_marker("dot")
        await pilot.pause()
        assert app.query_one("#spec-plot", PlotView).render().plain != before


async def test_an_impossible_state_is_refused_in_a_sentence() -> None:
    async with running() as (app, pilot):
        app.post_message(StateEdited(replace(app.state, attention_context=0), app.query_one(SpecPane)))
        await pilot.pause()
        assert app.state == default_state()
        assert any("context must be at least 1" in note.message for note in app._notifications)


# --- the strip --------------------------------------------------------------------------------------------


def test_the_strip_chooses_the_longest_that_fits() -> None:
    choices = [[("long words", ""), ("more", "")], [("short", "")]]
    assert fitting(choices, 20, "  ") == choices[0]
    assert fitting(choices, 15, "  ") == choices[1]
    assert fitting(choices, 2, "  ") == choices[1]


@pytest.mark.slow
async def test_the_strip_never_overflows_and_keeps_the_batch() -> None:
    async with running() as (app, _):
        strip = app.query_one(StatusStrip)
        strip.show_engine("● ready: a model with a rather long name")
        for width in (20, 40, 60, 78, 98, 118, 198):
            shown = strip.plain(width)
            assert len(shown) == 2
            assert "MAX BATCH 59" in shown[1]
            if width >= 60:
                assert all(len(line) <= width for line in shown), width


# --- what is never imported -------------------------------------------------------------------------------

PROBE = """
import asyncio, sys
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
async def main():
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        for key in ("f3", "f5", "f6", "f7", "f8", "f2"):
            await pilot.press(key)
asyncio.run(main())
print(sorted({"torch", "numpy", "sympy", "tokenizers", "safetensors"} & sys.modules.keys()))
"""


@pytest.mark.slow
def test_the_app_never_imports_torch_or_numpy() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def rules_of(app: KvscopeApp) -> dict[Widget, dict[str, object]]:
    return {widget: dict(widget.styles.base._rules) for widget in app.screen.walk_children(Widget)}


@pytest.mark.slow
async def test_all_widgets_have_the_style_that_a_second_styling_would_give() -> None:
    """The screen and its cards leave out stylings that Textual would do."""
    async with running() as (app, pilot):
        for key in ("tab", "tab", "f3", "f7", "f2"):
            await pilot.press(key)
            await pilot.pause()
            styled = rules_of(app)
            app.stylesheet.update(app.screen)
            assert rules_of(app) == styled, key


async def test_the_card_with_the_focus_is_lit() -> None:
    async with running() as (app, pilot):
        for field, title in (
            ("n_layers", "Model"),
            ("n_heads", "Model"),
            ("memory_bytes", "Device"),
            ("tp", "Workload"),
        ):
            app.query_one(f"#field-{field}").focus()
            await pilot.pause()
            assert [card.border_title for card in app.query(Card) if card.has_class("-lit")] == [title]
        app.screen.set_focus(None)
        await pilot.pause()
        assert not app.query(".-lit")


async def test_a_pane_asked_for_before_it_is_there_is_shown_when_it_comes() -> None:
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with from_the_start(app, size=(120, 40)) as pilot:
        app.action_go(PANES.index("Load"))
        await until(pilot, lambda: app.is_whole)
        await until(pilot, lambda: app.focused is not None and app.pane("load") in app.focused.ancestors)
        assert app.query_one(Tabs).active == "load"


@pytest.mark.slow
async def test_a_click_on_a_title_puts_the_focus_into_the_pane() -> None:
    async with running() as (app, pilot):
        await pilot.click(TabLine, offset=(app.query_one(TabLine).starts()[PANES.index("Generate")] + 2, 0))
        await until(pilot, lambda: app.focused is not None and app.focused.id == "prompt")
        await pilot.click(TabLine, offset=(2, 0))
        await until(pilot, lambda: app.focused is not None and app.pane("spec") in app.focused.ancestors)


async def test_no_cursor_blinks() -> None:
    async with running() as (app, pilot):
        for field in ("#field-n_layers", "#option-seed Input", "#prompt"):
            app.query_one(field).focus()
            await pilot.pause()
            assert getattr(app.focused, "cursor_blink", None) is False, field


@pytest.mark.slow
@pytest.mark.parametrize("size", [(60, 16), (80, 24)])
async def test_whatever_takes_the_focus_is_seen(size: tuple[int, int]) -> None:
    async with running(size) as (app, pilot):
        for index, title in enumerate(PANES):
            app.action_go(index)
            await until(pilot, lambda: app.focused is not None and app.active_pane in app.focused.ancestors_with_self)
            met: set[Widget] = set()
            while app.focused is not None and app.focused not in met:
                met.add(app.focused)
                place = app.screen.find_widget(app.focused)
                seen = place.region.intersection(place.clip)
                assert seen.width >= min(4, place.region.width), (title, app.focused)
                assert seen.height, (title, app.focused)
                await pilot.press("tab")
                await pilot.pause()
            assert len(met) > 3, title
