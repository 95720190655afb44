"""tui.app.clipboard: the program that reaches the desktop's clipboard, and the file that is kept without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tui.app.clipboard import copy_beside, desktop_tool, encoded


def program(folder: Path, name: str, script: str = "exit 0") -> None:
    """An executable that stands for a desktop's."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("variables", "platform", "tool"),
    [
        ({"WAYLAND_DISPLAY": "wayland-0", "DISPLAY": ":0"}, "linux", "wl-copy"),
        ({"DISPLAY": ":0"}, "linux", "xclip"),
        ({"WSL_DISTRO_NAME": "Debian"}, "linux", "clip.exe"),
        ({}, "darwin", "pbcopy"),
        ({"SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22"}, "darwin", None),
        ({}, "linux", None),
    ],
)
def test_the_program_of_the_desktop(tmp_path: Path, variables: dict[str, str], platform: str, tool: str | None) -> None:
    for name in ("wl-copy", "xclip", "xsel", "clip.exe", "pbcopy"):
        program(tmp_path / "bin", name)
    found = desktop_tool({**variables, "PATH": str(tmp_path / "bin")}, platform)
    assert (found[0] if found else None) == tool


def test_a_display_without_a_program_is_none(tmp_path: Path) -> None:
    assert desktop_tool({"DISPLAY": ":0", "PATH": str(tmp_path)}, "linux") is None


@pytest.mark.skipif(os.name != "posix", reason="runs a shell script")
def test_text_goes_to_the_desktop_else_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SSH_CONNECTION", "SSH_TTY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME"):
        monkeypatch.delenv(variable, raising=False)
    kept = tmp_path / "own" / "copied.txt"
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    program(tmp_path / "bin", "xclip", f"cat > {tmp_path / 'pasted'}")
    assert copy_beside("größer", tmp_path / "own") == "Copied"
    assert (tmp_path / "pasted").read_text(encoding="utf-8") == "größer"
    assert not kept.exists()
    program(tmp_path / "bin", "xclip", "exit 1")
    said = copy_beside("größer", tmp_path / "own")
    assert said == f"Sent to the terminal's clipboard, and saved in {kept}"
    assert kept.read_text(encoding="utf-8") == "größer"
    assert copy_beside("x", None) == "Sent to the terminal's clipboard"


def test_clip_exe_is_given_utf_16_with_its_mark() -> None:
    assert encoded(("clip.exe",), "2·n").decode("utf-16") == "2·n"
    assert encoded(("clip.exe",), "2·n")[:2] in (b"\xff\xfe", b"\xfe\xff")
    assert encoded(("xclip", "-selection"), "2·n") == "2·n".encode()
