"""The app in a real terminal: how it ends, what signals do, and where keys go that come in one burst."""

from __future__ import annotations

import os
import signal
import tomllib
from pathlib import Path

import pytest

from tests.tui.terminal import GIVEN_BACK, Terminal, terminal

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are a Unix thing")


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return {"KVSCOPE_CONFIG_DIR": str(tmp_path / "config")}


def settle(term: Terminal) -> None:
    """The panes are there, and the engine has been started."""
    term.until_shown("MAX BATCH")
    term.until(lambda: "engine ○" not in term.text and "○ off" not in term.text)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_gives_the_terminal_back_and_keeps_the_settings(
    env: dict[str, str], tmp_path: Path, number: int, code: int
) -> None:
    with terminal(env) as term:
        settle(term)
        term.send(b"qwen3-8b\r")
        term.until_shown("qwen3-8b ·")
        term.signal(number)
        assert term.ended() == code
        for sequence in GIVEN_BACK:
            assert sequence in term.written
    saved = tomllib.loads((tmp_path / "config" / "settings.toml").read_text())
    assert saved["state"]["model"]["name"] == "qwen3-8b"


def test_quit_leaves_at_once_and_without_an_engine(env: dict[str, str]) -> None:
    with terminal(env) as term:
        settle(term)
        term.send(b"\x11")
        assert term.ended() == 0
        for sequence in GIVEN_BACK:
            assert sequence in term.written


@pytest.mark.slow
def test_suspended_for_the_shell_and_back(env: dict[str, str]) -> None:
    with terminal(env) as term:
        settle(term)
        term.send(b"\x1a")
        term.until(term.stopped)
        assert GIVEN_BACK[0] in term.written
        term.screen.reset()
        term.signal(signal.SIGCONT)
        for words in ("MAX BATCH", "Roofline", "Total parameters"):  # all of it, not only what has changed
            term.until_shown(words)
        term.send(b"\x11")
        assert term.ended() == 0


@pytest.mark.slow
def test_a_burst_reaches_what_its_first_key_opened(env: dict[str, str], tmp_path: Path) -> None:
    with terminal(env) as term:
        settle(term)
        term.send(b"\x0f" + str(tmp_path / "nothing.json").encode() + b"\r")
        term.until_shown("no such file or folder")
        term.send(b"\x1b")
        term.until(lambda: "Tab complete" not in term.text)
        term.send(b"deepseek-v3.2\r")  # on the model's field: its list, searched
        term.until_shown("deepseek-v3.2 ·")
        term.send(b"\x1b[200~llama-3-70b\x1b[201~\r")
        term.until_shown("llama-3-70b ·")


@pytest.mark.slow
def test_a_named_pipe_as_a_model_is_refused(env: dict[str, str], tmp_path: Path) -> None:
    pipe = tmp_path / "model"
    os.mkfifo(pipe)
    with terminal(env) as term:
        settle(term)
        term.send(b"\x0f" + str(pipe).encode() + b"\r")
        term.until_shown("regular file")
        term.send(b"\x1b")
        term.until(lambda: "Tab complete" not in term.text)
        term.send(b"\x11")
        assert term.ended() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"LC_ALL": "C"}, "ASCII"),
        ({"PYTHONIOENCODING": "iso8859-1"}, "iso8859-1"),
        ({"TERM": "dumb"}, "cannot move its cursor"),
    ],
)
def test_a_screen_that_cannot_be_drawn_is_refused(env: dict[str, str], settings: dict[str, str], said: str) -> None:
    with terminal({**env, **settings}, columns=200) as term:
        assert term.ended() == 2
        assert said in term.text
        assert "--no-tui" in term.text
