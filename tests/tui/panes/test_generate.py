"""The Generate pane with a fake engine: text, numbers, stopping, refusals, a crash, both ways compared."""

from __future__ import annotations

import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from textual.app import App, ComposeResult
from textual.pilot import Pilot
from textual.widgets import Button, Label, Static

from engine.process.events import Generate
from tests.tui.fake_engine import RATED, TOKEN_BYTES, WORDS
from tests.tui.live_engine import live_app, open_pane, until
from tests.tui.screen_text import text as screen_text
from tui.live.engine_link import engine_of
from tui.live.generation import generate_options
from tui.panes.generate import GeneratePane
from tui.widgets.option import Option
from tui.widgets.plot import PlotView
from tui.widgets.prompt import Prompt
from tui.widgets.token_stream import TokenStream

pytestmark = pytest.mark.panes("generate")


async def opened(pilot: Pilot[None]) -> GeneratePane:
    return await open_pane(pilot, "f7", GeneratePane)


async def run_to_end(pilot: Pilot[None], pane: GeneratePane, key: str = "enter") -> None:
    await pilot.press(key)
    await until(pilot, lambda: pane.run is not None and pane.run.over)


def status(pane: GeneratePane) -> str:
    return str(pane.query_one("#generate-status", Label).content)


def text_of(pane: GeneratePane, name: str) -> str:
    return str(pane.query_one(name, Static).content)


async def set_option(pilot: Pilot[None], pane: GeneratePane, name: str, text: str) -> None:
    pane.query_one(f"#option-{name}", Option).text = text
    await pilot.pause()


async def test_enter_streams_the_text_and_shows_measured_beside_predicted() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane)
        expected = "".join(WORDS[i % len(WORDS)] for i in range(128))
        assert pane.query_one(TokenStream).text.startswith("To be, or not to be" + expected)
        assert "limit of 128 new tokens reached" in status(pane)
        # Tokens are 1 ms apart after 10 ms: the fake's timestamps, not the time this test took.
        meter = text_of(pane, "#meter")
        assert "1,000 tokens/s" in meter
        assert "TTFT 10.0 ms" in meter
        assert "TPOT 1.00 ms  p50 1.00 ms  p95 1.00 ms" in meter
        cache = text_of(pane, "#cache")
        assert f"2 · L · n_kv · d · b = {TOKEN_BYTES:,} B per token" in cache
        assert "133 of 134 tokens · measured/predicted 1.000" in cache
        chart = pane.query_one(PlotView).chart
        assert chart is not None
        assert len(chart.series[0].points) == 127


async def test_after_a_run_its_times_stand_beside_those_of_the_models_own_operators() -> None:
    """The fake's tokens are 1 ms apart, as its operators say; its first comes after 10 ms, where 3 are predicted."""
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "model", RATED)
        await run_to_end(pilot, pane)
        await until(pilot, lambda: "predicted" in text_of(pane, "#meter"))
        lines = text_of(pane, "#meter").splitlines()
        assert lines[2].split() == ["●", "measured", "predicted", "ratio"]
        assert lines[3].split() == ["TTFT", "10.0", "ms", "3.00", "ms", "3.33"]
        assert lines[4].split() == ["TPOT", "1.00", "ms", "1.00", "ms", "1.00"]
        assert "differ" not in text_of(pane, "#meter")  # nothing was measured that explains it
        chart = pane.query_one(PlotView).chart
        assert chart is not None
        assert [level.label for level in chart.levels] == ["median 1.00 ms", "predicted 1.00 ms"]
        assert not engine_of(pilot.app).busy


async def test_escape_stops_and_the_run_keeps_its_text_and_numbers() -> None:
    async with live_app("--rate", "300").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "new", "100k")
        assert not pane.check_action("stop", ())
        await pilot.press("enter")
        await until(pilot, lambda: pane.run is not None and len(pane.run.ids) > 5)
        assert pane.check_action("stop", ())
        assert str(pane.query_one("#send", Button).label) == "stop"
        await pilot.press("escape")
        await until(pilot, lambda: pane.run is not None and pane.run.over)
        assert pane.run is not None
        assert 5 < len(pane.run.ids) < 100_000
        assert "stopped by you" in status(pane)
        assert "tokens/s" in text_of(pane, "#meter")
        assert "stopped by you" in pane.query_one(TokenStream).text
        assert str(pane.query_one("#send", Button).label) == "generate"


@pytest.mark.slow
async def test_escape_stops_a_load_too_which_says_how_far_it_is() -> None:
    async with live_app("--rate", "300").run_test(size=(80, 24)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "model", "slow.gguf")
        await pilot.press("enter")
        await until(pilot, lambda: bool(re.fullmatch(r"▶ loading \d\d % of slow.gguf · Esc to stop", status(pane))))
        await pilot.press("escape")
        await until(pilot, lambda: pane.run is not None and pane.run.over)
        assert "stopped by you" in status(pane)
        await set_option(pilot, pane, "model", "")
        await run_to_end(pilot, pane)
        assert len(pane.run.ids if pane.run else ()) == 128


@pytest.mark.slow
async def test_both_ways_are_compared_once_both_have_run() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane)
        pane.query_one("#dial-cache").focus()
        await pilot.press("c")
        assert not pane.form.cache_on
        pane.query_one(Prompt).focus()
        await run_to_end(pilot, pane)
        rows = {row[0]: row[1:] for row in pane.tables()[1].rows}
        assert rows["● TPOT"] == ("1.00 ms", "3.00 ms", "3.0x")
        assert rows["● tokens"] == ("128", "128", "")
        work = rows["  work (calc)"]
        assert float(work[2].removesuffix("x").replace(",", "")) > 10
        assert "no cache: 0 B" in text_of(pane, "#cache")


@pytest.mark.slow
async def test_c_in_the_prompt_is_a_letter() -> None:
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await pilot.press("c", "f", "p")
        assert pane.form.cache_on
        assert {"c", "f", "p"} <= set(pane.query_one(Prompt).text)


@pytest.mark.slow
async def test_ctrl_j_begins_a_new_line_and_does_not_send() -> None:
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await pilot.press("end", "ctrl+j", "x")
        assert "\n" in pane.query_one(Prompt).text
        assert pane.run is None


IMPOSSIBLE = [
    ("top-p", "1.5", "top-p must be above 0 and at most 1"),
    ("new", "0", "new tokens must be at least 1"),
    ("temperature", "hot", "temperature must be a number"),
    ("seed", "-4", "seed must be at least 0"),
]


@pytest.mark.slow
async def test_an_impossible_option_is_named_in_place_and_nothing_is_sent() -> None:
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        for option, text, message in IMPOSSIBLE:
            await set_option(pilot, pane, option, text)
            assert message in status(pane)
            assert pane.query_one(f"#option-{option}").has_class("-invalid")
            await pilot.press("enter")
            assert pane.run is None
            await set_option(pilot, pane, option, "1")
            assert "✗" not in status(pane)


@pytest.mark.slow
async def test_an_empty_prompt_is_refused() -> None:
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one(Prompt).text = "  \n"
        await pilot.press("enter")
        assert "the prompt is empty" in status(pane)
        assert pane.run is None


@pytest.mark.slow
async def test_ids_are_sent_as_ids_and_shown_as_ids() -> None:
    async with live_app("--rate", "5000", "--no-tokenizer").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one(Prompt).text = "ids: 5, 6, 7"
        await set_option(pilot, pane, "new", "4")
        await run_to_end(pilot, pane)
        assert pane.run is not None
        assert pane.run.request.prompt_ids == (5, 6, 7)
        assert pane.query_one(TokenStream).text.startswith("5 6 7 0 1 2 3")


@pytest.mark.slow
async def test_a_list_of_numbers_is_ids_for_a_weight_file_and_text_for_the_bundled_model() -> None:
    async with live_app(start_engine=False).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        pane.query_one(Prompt).text = "1, 2, 3"
        request = pane._request()
        assert isinstance(request, Generate)
        assert (request.prompt, request.prompt_ids) == ("1, 2, 3", None)
        await set_option(pilot, pane, "model", "weights.pt")
        request = pane._request()
        assert isinstance(request, Generate)
        assert (request.prompt, request.prompt_ids) == (None, (1, 2, 3))


@pytest.mark.slow
async def test_a_refusal_of_the_engine_is_shown_and_the_next_run_works() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "model", "missing.pt")
        await run_to_end(pilot, pane)
        assert status(pane) == "✗ missing.pt: no such file"
        assert pane.query_one("#generate-status").has_class("-problem")
        await set_option(pilot, pane, "model", "")
        await run_to_end(pilot, pane)
        assert "128 tokens" in status(pane)


@pytest.mark.slow
async def test_a_killed_engine_is_said_and_the_next_run_starts_another() -> None:
    app = live_app("--rate", "300")
    async with app.run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "new", "100k")
        await pilot.press("enter")
        await until(pilot, lambda: pane.run is not None and len(pane.run.ids) > 3)
        assert app.engine.pid is not None
        os.kill(app.engine.pid, signal.SIGKILL)
        await until(pilot, lambda: pane.run is not None and pane.run.over)
        assert "SIGKILL" in status(pane)
        assert pane.run is not None
        assert len(pane.run.ids) > 3, "what was made stays"
        await set_option(pilot, pane, "new", "5")
        await run_to_end(pilot, pane)
        assert "limit of 5 new tokens" in status(pane)


@pytest.mark.slow
async def test_a_crash_tells_the_engines_last_words() -> None:
    async with live_app("--rate", "5000", "--crash-after", "4").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane)
        assert "exited with code 7" in status(pane)
        assert "the fake was told to crash" in status(pane)


@pytest.mark.slow
async def test_a_run_waits_visibly_for_an_engine_that_is_still_starting(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    async with live_app("--rate", "5000", "--start-gate", str(gate)).run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert "waiting for the engine" in status(pane)
        assert "starting" in status(pane)
        gate.touch()
        await until(pilot, lambda: pane.run is not None and pane.run.over)
        assert "128 tokens" in status(pane)


@pytest.mark.slow
async def test_a_hidden_pane_keeps_the_data_and_shows_it_when_it_is_back() -> None:
    async with live_app("--rate", "500").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "new", "100k")
        await pilot.press("enter")
        await until(pilot, lambda: pane.run is not None and len(pane.run.ids) > 10)
        run = pane.run
        assert run is not None
        await pilot.press("f2")
        await until(pilot, lambda: not pane.is_on_screen)
        await pilot.pause(0.1)
        painted, made = len(pane.query_one(TokenStream).text), len(run.ids)
        await until(pilot, lambda: len(run.ids) > made + 50)
        assert len(pane.query_one(TokenStream).text) == painted, "nothing is painted off the screen"
        await pilot.press("f7")
        await until(pilot, lambda: len(pane.query_one(TokenStream).text) > painted)
        pane.action_stop()
        await until(pilot, lambda: run.over)
        assert "".join(WORDS[i % len(WORDS)] for i in range(len(run.ids))) in pane.query_one(TokenStream).text


@pytest.mark.slow
async def test_the_screen_can_be_resized_while_tokens_stream() -> None:
    async with live_app("--rate", "3000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "new", "900")
        await pilot.press("enter")
        for size in ((80, 24), (200, 60), (60, 16), (120, 40)):
            await until(pilot, lambda: pane.run is not None and bool(pane.run.ids))
            await pilot.resize_terminal(*size)
            await pilot.pause(0.05)
        await until(pilot, lambda: pane.run is not None and pane.run.over)
        expected = "".join(WORDS[i % len(WORDS)] for i in range(900))
        assert expected in pane.query_one(TokenStream).text


def test_the_command_line_says_what_differs_from_the_defaults() -> None:
    request = Generate(prompt="it's", max_new_tokens=8, temperature=0.5, top_k=3, seed=0, use_cache=False)
    assert generate_options(request) == [
        *("--prompt", "it's", "--max-new-tokens", "8", "--temperature", "0.5", "--top-k", "3", "--seed", "0"),
        "--no-cache",
    ]
    ids = Generate(prompt_ids=(1, 2), model="w.pt", dtype="float64")
    assert generate_options(ids) == [
        *("--model", "w.pt", "--prompt-ids", "1,2", "--max-new-tokens", "64", "--dtype", "float64"),
    ]


@pytest.mark.slow
async def test_export_and_copied_command() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        assert "Nothing has been generated" in pane.export_markdown()
        await run_to_end(pilot, pane)
        text = pane.export_markdown()
        assert "the cache keeps what was read before" in text
        assert f"| KV cache allocated | {134 * TOKEN_BYTES:,} B | measured |" in text
        assert f"| KV cache predicted | {134 * TOKEN_BYTES:,} B | for 134 tokens |" in text
        assert shlex.split(pane.command_line())[:4] == ["kvscope", "generate", "--prompt", "To be, or not to be"]


@pytest.mark.slow
async def test_runs_of_other_prompts_or_models_are_never_compared() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await run_to_end(pilot, pane)
        await set_option(pilot, pane, "model", "other.safetensors")
        pane.query_one("#dial-cache").focus()
        await pilot.press("c")
        pane.query_one(Prompt).focus()
        await run_to_end(pilot, pane)
        assert pane.pair.cached is None
        assert pane.pair.uncached is pane.run
        rows = {row[0]: row[1:] for row in pane.tables()[1].rows}
        assert rows["● TPOT"] == ("–", "3.00 ms", "–")


async def test_rarer_options_of_sampling_are_one_field() -> None:
    async with live_app("--rate", "5000").run_test(size=(120, 40)) as pilot:
        pane = await opened(pilot)
        await set_option(pilot, pane, "more", 'min-p 0.05, stop "END", model')
        await run_to_end(pilot, pane)
        assert pane.run is not None
        request = pane.run.request
        assert (request.min_p, request.stop, request.model_sampling) == (0.05, ("END",), True)
        line = shlex.join(generate_options(request))
        assert "--min-p 0.05" in line
        assert "--stop END" in line
        assert "--model-sampling" in line
        await set_option(pilot, pane, "more", "min-q 3")
        assert "'min-q' is not known" in pane.query_one("#option-more", Option).problem


# --- the prompt -------------------------------------------------------------------------------------------


class OnePrompt(App[None]):
    """A prompt alone, that says what was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def compose(self) -> ComposeResult:
        yield Prompt("To be, or not to be")

    def on_prompt_sent(self) -> None:
        prompt = self.query_one(Prompt)
        self.sent.append(prompt.text)
        prompt.remember()


async def test_typing_replaces_the_prompt_that_is_offered_and_enter_takes_it() -> None:
    app = OnePrompt()
    async with app.run_test() as pilot:
        await pilot.press("enter", "h", "i", "enter")
        assert app.sent == ["To be, or not to be", "hi"]


async def test_the_arrow_keys_bring_back_what_was_sent() -> None:
    app = OnePrompt()
    async with app.run_test() as pilot:
        prompt = app.query_one(Prompt)
        for text in ("one", "two", "two", "three\nlines"):
            prompt.text = text
            await pilot.press("enter")
        prompt.text = "draft"
        seen = []
        for key in ("up", "up", "up", "up", "up", "up", "up", "down"):
            await pilot.press(key)
            seen.append(prompt.text)
        # Inside "three lines" the arrow moves first: from its end to its first line, then to what came before.
        assert seen[:4] == ["three\nlines", "three\nlines", "two", "one"]
        assert seen[6:] == ["one", "two"]
        prompt.move_cursor(prompt.document.end)
        await pilot.press("down")
        assert prompt.text == "three\nlines"
        await pilot.press("down")
        assert prompt.text == "draft"


@pytest.mark.slow
async def test_a_path_that_is_not_there_is_said_at_once() -> None:
    async with live_app(start_engine=False).run_test(size=(160, 45)) as pilot:
        model = (await opened(pilot)).query_one("#option-model", Option)
        model.text = "/no/such/model.gguf"
        await until(pilot, lambda: "✗ no such file or folder: /no/such/model.gguf" in screen_text(pilot.app))
        model.text = ""
        await until(pilot, lambda: "Press Enter to generate" in screen_text(pilot.app))
