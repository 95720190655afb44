"""Policy and version switch: the parts of a device, where they come from, and the commands that say the same."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from textual.widgets import Input

from calc.model.study import Policy, Study
from calc.servers.records import CacheGroup, ServerOptions, ServerReport
from calc.sources.catalog import find_device, find_model
from calc.units import GB
from tests.tui.hybrid import hybrid
from tests.tui.live_engine import SIZES, open_pane, until
from tests.tui.screen_text import lines, text, type_into
from tui.app.app import KvscopeApp
from tui.app.settings import Settings, load_settings, save_settings
from tui.form.command_line import memory_command
from tui.form.fields import POLICIES
from tui.form.server_fields import option_words
from tui.form.state import AppState, analyse, default_state, with_policy, with_study
from tui.headless.cli import main
from tui.panes.memory import MemoryPane
from tui.views.server import band_text, device_bytes, parts, parts_table
from tui.widgets.data_table import CalcTable
from tui.widgets.derivation import Derivation
from tui.widgets.option import Option
from tui.widgets.parts_bar import parts_text

pytestmark = pytest.mark.panes("memory")

STUDY = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"))


def report(**changes: object) -> ServerReport:
    """A server's report with round numbers."""
    values: dict[str, object] = {
        "study": STUDY,
        "options": ServerOptions(),
        "name": "vLLM",
        "version": "0.19.0",
        "block_size": 16,
        "weight_bytes_per_gpu": 16 * GB,
        "activation_bytes": 2 * GB,
        "non_torch_bytes": GB // 2,
        "cuda_graph_bytes": GB,
        "kv_pool_bytes": 58 * GB,
        "kv_blocks": 27_000,
        "kv_tokens": 432_000,
        "max_concurrency": 52.73,
        "kv_request_bytes": GB,
        "groups": (CacheGroup(kind="full", layers=32, block_tokens=16, blocks_per_request=512),),
        "assumptions": ("the default of this version",),
        "bands": {"activation_bytes": (9 * GB // 5, 21 * GB // 10)},
        **changes,
    }
    return ServerReport(**values)  # type: ignore[arg-type]


def state(policy: str = "vllm") -> AppState:
    return with_policy(with_study(default_state(), STUDY), policy)


def app_on(shown: AppState) -> KvscopeApp:
    return KvscopeApp(shown, settings=Settings(), start_engine=False)


# --- pure parts -------------------------------------------------------------------------------------------


def test_the_parts_sum_to_the_device() -> None:
    found = parts(report())
    assert [part.name for part in found] == [
        "Weights", "Activations", "Runtime (non-torch)", "CUDA graphs", "KV cache", "Free",
    ]  # fmt: skip
    assert sum(part.size for part in found) == device_bytes(report()) == STUDY.device.memory_bytes
    over = parts(report(kv_pool_bytes=80 * GB))
    assert over[-1].name == "Missing"
    assert sum(part.size for part in over) == device_bytes(report())


@pytest.mark.parametrize("width", [10, 33, 80])
def test_the_bar_is_as_wide_as_told_and_shows_every_part(width: int) -> None:
    drawn = parts_text(report(), width).plain
    assert len(drawn) == width
    assert set(drawn) == {"█", "▓", "▚", "▞", "▒", "·"}
    assert parts_text(report(kv_pool_bytes=90 * GB), width).plain.endswith("✗")


def test_bands_are_of_the_wider_side_and_exact_values_have_none() -> None:
    assert band_text(report(), "activation_bytes") == "± 10.0%"
    assert band_text(report(), "weight_bytes_per_gpu") == ""
    weights, activations, *_ = parts_table(report()).rows
    assert "Exact." in weights.note
    assert "Between 1.80 GB and 2.10 GB." in activations.note


def test_the_table_has_the_pool_in_the_words_of_the_log() -> None:
    rows = {row[0].strip(): row[1] for row in parts_table(report()).rows}
    assert rows["Blocks"] == "27,000"
    assert rows["Tokens"] == "432,000"
    assert rows["Full-length requests"] == "52.73"
    short = parts_table(report(kv_pool_bytes=-3 * GB, kv_blocks=0, kv_tokens=0, max_concurrency=0.0)).rows[-1]
    assert short[0].strip() == "Does not start: no room for the cache"
    assert short[1] == "3.00 GB"
    assert all(row.title and (row.note or row.terms) for row in parts_table(report()).rows)


def test_the_command_line_says_policy_and_options() -> None:
    options = ServerOptions(tp=2, version="0.11.0", gpu_memory_utilization=Fraction(85, 100), enforce_eager=True)
    assert option_words(options) == [
        "--policy", "vllm", "--engine-version", "0.11.0", "--gpu-memory-utilization", "0.85", "--enforce-eager",
    ]  # fmt: skip
    command = memory_command(replace(STUDY, policy=Policy.REPLICATED, context=4096), options)
    assert command.startswith("kvscope memory --device h100-sxm --context 4096 --tp 2 --policy vllm")
    assert command.count("--policy") == 1


def test_what_was_set_of_a_server_is_remembered(tmp_path: Path) -> None:
    options = ServerOptions(engine="sglang", tp=2, gpu_memory_utilization=Fraction(7, 8), max_num_seqs=64)
    saved = Settings(state=replace(state("sglang"), server=options))
    save_settings(tmp_path / "settings.toml", saved)
    assert load_settings(tmp_path / "settings.toml").settings == saved


# --- in the app -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
async def test_the_policy_dial_turns_to_a_server_and_back(size: tuple[int, int]) -> None:
    app = app_on(with_study(default_state(), STUDY))
    async with app.run_test(size=size) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        app.query_one("#dial-policy").focus()
        await pilot.press("right", "right")
        await pilot.pause()
        assert app.state.policy == "vllm"
        assert "vllm HOLDS" in lines(app)[1]
        assert "version" in text(app)
        assert app.query_one("#card-parts").display
        await pilot.press("left", "left")
        await pilot.pause()
        assert app.state.policy == "equal-split"
        assert not app.query_one("#card-parts").display
        assert "MAX BATCH" in lines(app)[1]


@pytest.mark.slow
async def test_the_options_change_what_the_server_holds() -> None:
    app = app_on(state())
    async with app.run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        answer = app.analysis.server
        assert answer is not None
        assert answer.report is not None
        before = answer.report.kv_pool_bytes
        assert f"{answer.report.kv_tokens:,}" in text(app)
        await type_into(pilot, "#server-gpu_memory_utilization Input", "0.5")
        assert app.state.server is not None
        assert app.state.server.gpu_memory_utilization == Fraction(1, 2)
        answer = app.analysis.server
        assert answer is not None
        assert answer.report is not None
        assert answer.report.kv_pool_bytes < before
        await pilot.press("ctrl+l")
        assert "--gpu-memory-utilization 0.5" in app.clipboard
        assert app.active_pane is not None
        assert "--policy vllm --gpu-memory-utilization 0.5" in app.active_pane.command_line()


@pytest.mark.slow
async def test_an_option_that_cannot_be_is_said_in_place_and_the_last_answer_stays() -> None:
    app = app_on(state())
    async with app.run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        await type_into(pilot, "#server-gpu_memory_utilization Input", "2")
        assert "✗ utilization must be above 0 and at most 1, not 2" in text(app)
        assert app.state.server == ServerOptions()
        await type_into(pilot, "#server-gpu_memory_utilization Input", "")
        assert "✗" not in text(app)
        await type_into(pilot, "#server-version Input", "newest")
        assert "an engine version looks like 0.19.0" in text(app)
        assert "server: no result" in lines(app)[1]


@pytest.mark.slow
async def test_a_selected_part_says_where_it_comes_from() -> None:
    app = app_on(with_study(state(), replace(STUDY, model=hybrid())))
    async with app.run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        table = app.query_one("#table-parts", CalcTable)
        table.focus()
        await pilot.press(*["down"] * 4)
        await pilot.pause()
        derivation = app.query_one("#derivation", Derivation)
        assert derivation.title.startswith("KV cache")
        assert "mem · u − W − A_ct − N_t" in derivation.plain()
        await pilot.click("#table-parts", offset=(4, table.header_height + 1))
        await pilot.pause()
        assert derivation.title.startswith("Activations")


@pytest.mark.slow
async def test_the_launch_command_is_copied() -> None:
    app = app_on(state())
    async with app.run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        await pilot.press("ctrl+l")
        await pilot.pause()
        assert app.clipboard.startswith("vllm serve meta-llama/Meta-Llama-3-8B --max-model-len 8192")


@pytest.mark.slow
async def test_the_spec_form_has_the_same_switch() -> None:
    app = app_on(with_study(default_state(), STUDY))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause(0.2)
        app.query_one("#field-policy").focus()
        await pilot.press(*["right"] * POLICIES.index("vllm"))
        await pilot.pause()
        assert app.state.policy == "vllm"
        assert app.active_pane is not None
        assert app.active_pane.command_line() == "kvscope memory --device h100-sxm --tp 1 --policy vllm"
        await type_into(pilot, "#field-context", "4096")
        assert app.state.policy == "vllm"


@pytest.mark.slow
async def test_placeholders_say_what_a_blank_stands_for() -> None:
    app = app_on(state())
    async with app.run_test(size=(120, 40)) as pilot:
        await open_pane(pilot, "f3", MemoryPane)
        answer = app.analysis.server
        assert answer is not None
        assert answer.report is not None
        assert app.query_one("#server-version", Option).placeholder == answer.report.version
        assert app.query_one("#server-block_size", Option).placeholder == str(answer.report.block_size)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "transformers", "llamacpp"])
def test_the_copied_command_gives_the_same_numbers(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = state(engine)
    assert shown.server is not None
    shown = replace(shown, server=replace(shown.server, tp=2))
    assert main([*shlex.split(memory_command(shown.study, shown.server))[1:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["engine"]
    answer = analyse(shown).server
    assert answer is not None
    assert answer.report is not None
    assert (printed["kv_pool_bytes"], printed["kv_tokens"]) == (answer.report.kv_pool_bytes, answer.report.kv_tokens)


@pytest.mark.slow
async def test_the_report_is_written_from_the_app(tmp_path: Path) -> None:
    app = app_on(with_study(default_state(), replace(STUDY, model=hybrid())))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: app.pane("memory") is not None)
        await app.action_report()
        await type_into(pilot, "#path", "report.pdf")
        await pilot.press("enter")
        await pilot.pause()
        assert "must end in .md (Markdown) or .tex (LaTeX)" in text(app)
        for name in ("report.md", "report.tex"):
            await app.action_report()
            app.query_one("#path", Input).value = str(tmp_path / name)
            await pilot.press("enter")
            await until(pilot, (tmp_path / name).exists)
            assert "hybrid-40" in (tmp_path / name).read_text()
