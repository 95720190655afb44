"""The words of the command line: which front end, which command, which refusal."""

from __future__ import annotations

import pytest

from tui.headless import cli


def test_version_and_help_exit_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("kvscope 0.")
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in cli.all_commands())


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["memroy"]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert "did you mean memory?" in out.err
    assert out.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["memory", "--json"], ["--no-tui", "memory", "--json"], ["memory", "--json", "--no-tui"]]
)
def test_a_command_is_headless_with_and_without_the_flag(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert '"total": 8030261248' in capsys.readouterr().out


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
def test_without_a_terminal_it_says_how_to_run_headless(
    stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}.isatty", lambda name=name: name != stream, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert cli.main([]) == 2
    assert "kvscope --no-tui" in capsys.readouterr().err


def test_bad_options_of_the_app_are_refused_before_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--gpu-memory", "80"]) == 2
    said = capsys.readouterr().err
    assert "80GB is 80,000,000,000 B" in said
    assert "80GiB is 85,899,345,920 B" in said
