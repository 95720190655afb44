"""What native Windows lacks is not needed: modules of POSIX, its signals, its calls, and streams in UTF-8.

The rest cannot be tried here: there the compiled step says that it is not built, and ^z does nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHOUT_POSIX = """
import builtins, os, pkgutil, signal, sys
import platform, subprocess, tempfile, textual.app, asyncio.unix_events  # these have forms for Windows
OURS = ("calc", "engine", "tui", "assets")
LACKING = {"fcntl", "termios", "resource", "pwd", "grp", "pty", "tty", "posix", "readline", "curses", "syslog"}
load = builtins.__import__

def lacking(name, variables=None, *rest, **named):
    asker = (variables or {}).get("__name__", "")
    if name.partition(".")[0] in LACKING and asker.partition(".")[0] in OURS:
        raise ModuleNotFoundError(f"{asker} imports {name}, which Windows does not have")
    return load(name, variables, *rest, **named)

builtins.__import__ = lacking
for name in ("fork", "setsid", "killpg", "getuid", "geteuid", "sched_getaffinity", "sysconf", "mkfifo",
             "statvfs", "nice", "getloadavg", "O_NONBLOCK", "fchmod", "chown", "pread", "posix_fadvise", "WNOHANG"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGTSTP", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGPIPE", "SIGCONT"):
    delattr(signal, name)
for name in ("TERM", "LANG", "LC_ALL", "LC_CTYPE", "HOME", "USER"):
    os.environ.pop(name, None)
"""
EVERY_MODULE = """
for package in map(__import__, OURS):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            load(module.name)
"""
COMMANDS = """
from tui.headless.cli import main
for words in (["--help"], ["memory", "--policy", "vllm"], ["models"], ["memory", "--model", "C:\\\\no\\\\m.gguf"]):
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code
    assert code == (2 if "--model" in words else 0), (words, code)
"""
APP = """
import asyncio
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
sys.platform = "win32"
async def tried():
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=(100, 30)) as pilot:
        while not app.is_whole:
            await asyncio.sleep(0.01)
        for key in ("f3", "f7", "f12", "ctrl+o", "escape", "f1", "escape", "ctrl+y"):
            await pilot.press(key)
        await pilot.pause()
        assert app.query_one("#pane-load").display
asyncio.run(tried())
"""


def ended(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**kept, **variables}, capture_output=True, encoding="utf-8",
        errors="replace", check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_commands_answer_without_posix_on_a_code_page(tmp_path: Path) -> None:
    """With an encoding named wherever a file is opened."""
    variables = {"PYTHONIOENCODING": "cp437", "PYTHONWARNDEFAULTENCODING": "1", "KVSCOPE_CONFIG_DIR": str(tmp_path)}
    done = ended(WITHOUT_POSIX + COMMANDS, **variables)
    warned = [line for line in done.stderr.splitlines() if "EncodingWarning" in line and "site-packages" not in line]
    assert not warned
    assert "commands (each has --help)" in done.stdout
    assert "m.gguf" in done.stderr


@pytest.mark.slow
def test_every_module_is_imported_without_posix() -> None:
    ended(WITHOUT_POSIX + EVERY_MODULE)


@pytest.mark.slow
def test_the_app_starts_without_posix(tmp_path: Path) -> None:
    ended(WITHOUT_POSIX + APP, KVSCOPE_CONFIG_DIR=str(tmp_path))
