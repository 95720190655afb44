"""The time until kvscope answers or shows its first screen: cold processes, interleaved with a bare interpreter.

    .venv/bin/python bench/start.py [--rounds 15]

Prints medians in milliseconds, and the extra time over the bare interpreter of the same round. The first screen
is timed in a pseudo-terminal of 120x40, from the start of the process to the moment the largest batch is drawn.
Byte code is cached as for an installed package, regardless of PYTHONDONTWRITEBYTECODE.
"""

from __future__ import annotations

import argparse
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
DRAWN = b"MAX BATCH"
DEADLINE_S = 30.0
ONE_LABEL = """
from textual.app import App
from textual.widgets import Label
class OneLabel(App):
    def compose(self):
        yield Label("MAX BATCH")
OneLabel().run()
"""


def environment(config: str) -> Mapping[str, str]:
    """What a user's shell would have, with settings of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return {**kept, "TERM": "xterm-256color", "KVSCOPE_CONFIG_DIR": config, "COLUMNS": "120", "LINES": "40"}


def process_s(words: list[str], env: Mapping[str, str]) -> float:
    """Wall time of a whole process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def first_screen_s(env: Mapping[str, str], words: list[str]) -> float:
    """Time until a full-screen program has drawn the largest batch."""
    start = time.perf_counter()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, *words], dict(env))
    try:
        seen = b""
        while DRAWN not in seen:
            if time.perf_counter() - start > DEADLINE_S:
                raise SystemExit("the app has drawn nothing")
            if select.select([terminal], [], [], 0.1)[0]:
                seen += os.read(terminal, 65536)
        return time.perf_counter() - start
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as config:
        env = environment(config)
        timed: dict[str, Callable[[], float]] = {
            "bare interpreter": lambda: process_s(["-c", "pass"], env),
            "kvscope --no-tui memory --json": lambda: process_s(["-m", "tui", "--no-tui", "memory", "--json"], env),
            "kvscope --no-tui intensity --json": lambda: process_s(
                ["-m", "tui", "--no-tui", "intensity", "--json"], env
            ),
            "first screen of an app of one label": lambda: first_screen_s(env, ["-c", ONE_LABEL]),
            "first screen of kvscope": lambda: first_screen_s(env, ["-m", "tui"]),
        }
        taken: dict[str, list[float]] = {name: [] for name in timed}
        for turn in range(rounds + 1):
            for name, measure in timed.items():
                seconds = measure()
                if turn:  # the first round fills the caches
                    taken[name].append(seconds)
    bare = taken["bare interpreter"]
    print(f"{'':36}{'median':>9}{'least':>9}{'above bare':>12}   ({rounds} rounds)")
    for name, seconds in taken.items():
        above = statistics.median(s - b for s, b in zip(seconds, bare, strict=True))
        print(f"{name:36}{statistics.median(seconds) * 1e3:6.0f} ms{min(seconds) * 1e3:6.0f} ms{above * 1e3:9.0f} ms")


if __name__ == "__main__":
    main()
