"""No text from outside reaches the terminal as a command: models, files, errors, and what the app draws."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.app import ComposeResult
from textual.widgets import Static

import engine.plain
from calc.errors import CalcError
from calc.plain import one_line, plain
from engine.commands import cli as engine_cli
from engine.commands.run import follow, print_text
from engine.errors import EngineError
from engine.generation_events import GenerationFinished, TokenGenerated
from engine.process.events import Failed, Generate, Loaded
from engine.records import Event
from tests.tui.fake_engine import model
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.headless import cli

ROOT = Path(__file__).parents[2]
TITLE, CLEAR, CLIPBOARD = "\x1b]0;pwned\x07", "\x1b[2J\x1b[H", "\x1b]52;c;cm0gLXJm\x1b\\"
C1 = "\x9b31m\x9d0;pwned\x9c"
BIDI = "\u202etxt.exe\u202c\u2066a\u2069\u200e\u200f\u061c"
HOSTILE = f"a{TITLE}{CLEAR}{CLIPBOARD}{C1}{BIDI}\u2028\x7f\x00\rz"
BIDI_CONTROLS = {"\u061c", "\u200e", "\u200f", *map(chr, range(0x202A, 0x202F)), *map(chr, range(0x2066, 0x206A))}


def acts(character: str) -> bool:
    """Whether a terminal may act upon it, by Unicode's own classes."""
    category = unicodedata.category(character)
    return category in ("Cc", "Cs", "Zl", "Zp") or character in BIDI_CONTROLS


def unsafe(text: str) -> list[str]:
    """What of a program's output should not be there."""
    return [character for character in text if acts(character) and character not in "\t\n"]


@pytest.mark.slow
def test_every_character_is_judged_right_and_alike_in_both_packages() -> None:
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        kept = not acts(character) or character in "\t\n"
        assert plain(character) == (character if kept else f"\\u{code:04x}")
        assert engine.plain.plain(character) == plain(character)
        assert engine.plain.one_line(character) == one_line(character)
    assert (one_line("a\tb\nc"), plain("a\tb\nc")) == ("a\\tb\\nc", "a\tb\nc")


@given(st.text(st.sampled_from(HOSTILE)), st.text(st.sampled_from(HOSTILE)))
def test_it_does_not_matter_where_a_stream_is_cut(first: str, second: str) -> None:
    assert plain(first) + plain(second) == plain(first + second)
    assert plain(plain(first)) == plain(first)


@given(st.text(st.characters(codec=None)))
def test_json_text_stays_the_same_document(text: str) -> None:
    written = plain(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(written) == {text: [text]}
    assert unsafe(written) == []


@pytest.mark.parametrize("error", [CalcError, EngineError])
def test_errors_are_one_safe_line(error: type[Exception]) -> None:
    said = str(error(f"cannot read {HOSTILE}\nrm -rf"))
    assert unsafe(said) == []
    assert "\n" not in said
    assert "\\u001b]0;pwned\\u0007" in said


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(words)
    return (code, *capsys.readouterr())


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A model whose file name and name are hostile."""
    folder = tmp_path / f"m{TITLE.replace('/', '')}{BIDI}{C1}"
    folder.mkdir()
    fields = json.loads((ROOT / "assets" / "model" / "config.json").read_text())
    file = folder / "config.json"
    file.write_text(json.dumps({**fields, "_name_or_path": HOSTILE}))
    return file


@pytest.mark.parametrize("form", ["text", "csv", "md", "json"])
@pytest.mark.parametrize("command", ["memory", "intensity", "solve"])
def test_a_hostile_model_in_every_format(
    command: str, form: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run([command, "--model", str(config), "--format", form], capsys)
    assert (code, err) == (0, "")
    assert unsafe(out) == []
    if form == "json" and command == "memory":
        assert str(config) in json.loads(out)["model"]["source"]


def test_a_hostile_model_of_a_sweep(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ("csv", "json", "text"):
        code, out, err = run(["sweep", "--models", str(config), "--format", form], capsys)
        assert (code, unsafe(out), unsafe(err)) == (0, [], [])


@pytest.mark.parametrize(
    "words",
    [
        ["memory", "--model", f"./{HOSTILE}"],
        ["memory", "--model", HOSTILE],
        ["memory", "--context", HOSTILE],
        ["memory", "--gpu-memory", HOSTILE],
        ["memory", "--policy", HOSTILE],
        ["memory", "--device", HOSTILE],
        ["memory", f"--{HOSTILE}"],
        ["memory", HOSTILE],
        ["memory", "--output", f"/no/{HOSTILE}/x"],
        ["sweep", "--models", HOSTILE],
        ["report", "--output", f"{HOSTILE}.pdf"],
        ["generate", f"--{HOSTILE}"],
        ["generate", "--prompt-file", f"/no/{HOSTILE}"],
        ["benchmark", "--lengths", HOSTILE],
        [HOSTILE],
    ],
)
def test_refusals_are_one_safe_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(words, capsys)
    assert (code, out) == (2, "")
    assert unsafe(err) == []
    assert err.count("\n") == 1


def test_the_name_of_a_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"a{TITLE}{BIDI}.txt"
    code, _, err = run(["memory", "--output", name], capsys)
    assert (code, unsafe(err)) == (0, [])
    assert err.startswith("wrote a\\u001b]0;pwned\\u0007\\u202e")
    assert unsafe(Path(name).read_text()) == []


def answered(text: str, cuts: list[int]) -> Iterator[Event]:
    """A model that answers `text` in tokens that end at `cuts`."""
    yield Loaded(model=model(None, tokenizer=True))
    for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(text)], strict=True)):
        yield TokenGenerated(
            request_id=0, index=index, token_id=index, text=text[start:end], time_ns=index, kv_tokens=0, kv_used_bytes=0
        )
    ids = tuple(range(len(cuts) + 1))
    yield GenerationFinished(
        request_id=0, reason="length", prompt_ids=(1,), ids=ids, text=text, start_ns=0, token_times_ns=ids,
        kv_cache_bytes=0,
    )  # fmt: skip


def options(*words: str) -> argparse.Namespace:
    return engine_cli.parse(["--mode", "generate", "--prompt", "x", *words])


@pytest.mark.parametrize("words", [(), ("--no-stream",), ("--output", "out.txt")])
def test_a_model_that_answers_escape_sequences(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cuts = [2, 3, 4, 15, 16, 20, 40]
    outcome = follow(options(*words), [Generate(prompt="x")], lambda _: answered(HOSTILE + "\nend", cuts))
    print_text(options(*words), outcome)
    out, err = capsys.readouterr()
    written = Path("out.txt").read_text() if "--output" in words else out
    assert unsafe(out + err + written) == []


def test_an_engine_that_fails_with_escape_sequences() -> None:
    failing = Failed(request_id=0, kind="engine", message=HOSTILE)
    with pytest.raises(EngineError) as caught:
        follow(options(), [Generate(prompt="x")], lambda _: iter([failing]))
    assert unsafe(caught.value.message) == []


class Forgetful(KvscopeApp):
    """The app with a widget that shows what it is given."""

    def compose(self) -> ComposeResult:
        yield Static(f"{HOSTILE}\nsurrogate \ud800!", markup=False, id="hostile")
        yield from super().compose()


async def test_what_the_app_draws_holds_no_control_character() -> None:
    app = Forgetful(settings=Settings(), start_engine=False)
    async with app.run_test(size=(100, 30)) as pilot:
        while not app.is_whole:
            await asyncio.sleep(0.01)
        await pilot.pause()
        strips = app.screen._compositor.render_strips()
        drawn = [segment.text for strip in strips for segment in strip]
        assert unsafe("".join(drawn)) == []
        assert "surrogate \ufffd!" in "".join(drawn)
        assert all(strip.cell_length == 100 for strip in strips)
