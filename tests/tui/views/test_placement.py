"""llama.cpp in the Memory pane: its own options, the table of devices and host, the split that fits."""

from __future__ import annotations

import pytest

from calc.model.storage import FORMATS
from calc.model.study import Study
from calc.servers.records import ServerOptions, ServerReport
from calc.sources.catalog import find_device, find_model
from tests.tui.screen_text import lines
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.server import server_answer
from tui.form.server_fields import OPTION_FIELDS, option_words
from tui.form.state import default_state, with_policy, with_study
from tui.views.placement import launch_words, notes, slot_rows, split_of
from tui.views.questions import whole_answer
from tui.views.rule import rule_of
from tui.views.server import parts
from tui.widgets.option import Option

pytestmark = pytest.mark.panes("memory")

SMALL = Study(
    model=find_model("llama-3-8b"), device=find_device("rtx-4060"), context=8192, weight_format=FORMATS["q8_0"]
)


def report(**options: object) -> ServerReport:
    found = server_answer(SMALL, ServerOptions(engine="llamacpp", **options)).report  # type: ignore[arg-type]
    assert found is not None
    return found


def test_what_does_not_start_shows_the_split_that_does() -> None:
    whole = report()
    best = split_of(whole)
    assert best is not None
    assert launch_words(whole) == launch_words(best)
    assert f"--n-gpu-layers {best.n_gpu_layers} " in launch_words(whole)
    assert "does not start" in notes(whole)[0]
    assert [row.title for row in slot_rows(whole)] == ["Does not start"]
    assert split_of(best) is None
    assert [row.title for row in slot_rows(best)] == ["Slots", "Slots that would fit"]


def test_the_parts_of_the_device_hold_the_cache_that_is_missing() -> None:
    sizes = {part.name: part.size for part in parts(report())}
    assert sizes["KV cache"] == 8192 * 131_072
    (device,) = report().devices
    assert sizes["Missing"] == device.free_bytes


def test_options_on_the_command_line() -> None:
    asked = ServerOptions(engine="llamacpp", n_gpu_layers=0, n_cpu_moe=4)
    assert option_words(asked) == ["--policy", "llamacpp", "--n-gpu-layers", "0", "--n-cpu-moe", "4"]
    assert option_words(ServerOptions(engine="llamacpp")) == ["--policy", "llamacpp"]
    read = {field.name: field.read for field in OPTION_FIELDS}
    assert [read["n_gpu_layers"](text) for text in ("", "all", "0", "24")] == [None, None, 0, 24]
    assert [read["n_cpu_moe"](text) for text in ("", "12")] == [0, 12]


@pytest.mark.slow
async def test_the_pane_shows_devices_and_host() -> None:
    shown = with_policy(with_study(default_state(), SMALL), "llamacpp")
    app = KvscopeApp(shown, settings=Settings(), start_engine=False)
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("f3")
        await pilot.pause(0.3)
        screen = "\n".join(lines(app))
        assert "Devices and host" in screen
        assert "kept prompts" in screen
        assert app.query_one("#server-n_gpu_layers", Option).display
        assert not app.query_one("#server-block_size", Option).display
        await pilot.press("ctrl+l")
        await pilot.pause()
        assert app.clipboard.startswith("llama-server --model Meta-Llama-3-8B.gguf --ctx-size 8192 --parallel 1 ")


def test_the_questions_name_the_split_first() -> None:
    rule = rule_of(with_policy(with_study(default_state(), SMALL), "llamacpp"))
    (_, sentences, _), *_ = whole_answer(rule, batch=1, tp=1)
    assert "--n-gpu-layers" in sentences[2]
