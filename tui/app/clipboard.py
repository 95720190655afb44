"""Where copied text goes: the terminal's clipboard (OSC 52), the desktop's, or else a file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from calc.errors import SourceError
from calc.files import write_whole

TOOLS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("WSL_DISTRO_NAME", ("clip.exe",)),
)
"""Programs that write the desktop clipboard, and the environment variable that shows that it exists."""
LONGEST_S = 2.0
FILE_NAME = "copied.txt"


def desktop_tool(env: Mapping[str, str], platform: str = sys.platform) -> tuple[str, ...] | None:
    """The program that reaches the clipboard of the user at this terminal; None over SSH, or if there is none."""
    if "SSH_CONNECTION" in env or "SSH_TTY" in env:
        return None
    own = {"darwin": ("pbcopy",), "win32": ("clip.exe",)}.get(platform)
    candidates = [own] if own else [words for variable, words in TOOLS if env.get(variable)]
    return next((words for words in candidates if shutil.which(words[0], path=env.get("PATH"))), None)


def copy_beside(text: str, folder: Path | None) -> str:
    """Copy `text` to the desktop clipboard, else into a file in `folder`; returns a few words on where it is.

    It was already sent to the terminal, but there is no way to know whether the terminal accepted it.
    """
    sent = "Sent to the terminal's clipboard"
    if folder is None:
        return sent
    tool = desktop_tool(os.environ)
    if tool is not None and _given_to(tool, text):
        return "Copied"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / FILE_NAME, text)
    except (OSError, SourceError):
        return sent
    return f"{sent}, and saved in {folder / FILE_NAME}"


def encoded(tool: tuple[str, ...], text: str) -> bytes:
    """`text` encoded for `tool`: clip.exe assumes the console's code page unless there is a UTF-16 mark."""
    return text.encode("utf-16" if tool[0] == "clip.exe" else "utf-8")


def _given_to(tool: tuple[str, ...], text: str) -> bool:
    try:
        ended = subprocess.run(
            tool,
            input=encoded(tool, text),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=LONGEST_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ended.returncode == 0
