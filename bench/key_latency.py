"""Key to screen: milliseconds from a key sent to a real terminal until its glyph comes back, idle and streaming.

    python bench/key_latency.py [--rate 5000] [--blocks 6] [--keys 20] [--size 120x35]

The app runs in a pseudo-terminal with a fake engine that streams tokens at `rate`. Letters are typed into the
prompt, and each is searched for in the app's output. Idle and streaming blocks alternate, so that other load on the
machine affects both equally. Prints medians, 95th percentiles and how many tokens per second arrived.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LETTERS = "QWZXVJY"
"""Letters that the fake engine's words, the panes and escape sequences do not hold."""
COUNT = re.compile(rb"([0-9,]+) of [0-9,]+ tokens")


class Terminal:
    """The app in a pseudo-terminal."""

    def __init__(self, command: list[str], *, columns: int, rows: int, folder: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "KVSCOPE_CONFIG_DIR": folder}
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
        )
        os.close(slave)
        self.seen = bytearray()

    def read(self, timeout_s: float) -> bytes:
        """What has come, waiting at most `timeout_s` for the first of it."""
        ready, _, _ = select.select([self.master], [], [], max(0.0, timeout_s))
        if not ready:
            return b""
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            raise SystemExit(f"the app ended: {self.seen[-2000:].decode(errors='replace')}") from None
        self.seen += data
        return data

    def drain(self, seconds: float) -> bytes:
        """Everything within `seconds`."""
        end, got = time.perf_counter() + seconds, bytearray()
        while (left := end - time.perf_counter()) > 0:
            got += self.read(left)
        return bytes(got)

    def wait_for(self, pattern: bytes, timeout_s: float = 20.0) -> None:
        """Until `pattern` has been written."""
        end = time.perf_counter() + timeout_s
        while pattern not in self.seen:
            if time.perf_counter() > end:
                raise TimeoutError(f"{pattern!r} did not appear")
            self.read(0.1)

    def send(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def glyph_ms(self, letter: str, timeout_s: float = 5.0) -> float:
        """Milliseconds from pressing `letter` to its glyph."""
        began = time.perf_counter()
        self.send(letter.encode())
        while time.perf_counter() - began < timeout_s:
            if letter.encode() in self.read(0.5):
                return (time.perf_counter() - began) * 1000
        raise TimeoutError(f"{letter} did not appear")

    def close(self) -> None:
        """End the app."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
        os.close(self.master)


def block(terminal: Terminal, keys: int) -> list[float]:
    """Type `keys` letters, each taken back before the next."""
    found = []
    for i in range(keys):
        found.append(terminal.glyph_ms(LETTERS[i % len(LETTERS)]))
        terminal.drain(0.05)
        terminal.send(b"\x7f")
        terminal.drain(0.12 + 0.013 * (i % 7))  # not in step with the 30 Hz tick
    return found


def percentile(values: list[float], percent: float) -> float:
    """Linear between neighbours."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (rank - low)


def arrived(output: bytes) -> int | None:
    """The last count of tokens on the status line."""
    counts = COUNT.findall(output)
    return int(counts[-1].replace(b",", b"")) if counts else None


def measure(terminal: Terminal, options: argparse.Namespace) -> tuple[list[float], list[float], list[float]]:
    """Idle latencies, streaming latencies, tokens per second of each streaming block."""
    idle, streaming, rates = [], [], []
    terminal.send(b"\x1b[F")  # keep the prompt that is offered: the first letter would replace it
    terminal.drain(0.3)
    for _ in range(options.blocks):
        idle += block(terminal, options.keys)
        terminal.send(b"\r")
        terminal.drain(1.0)
        began, mark = time.perf_counter(), len(terminal.seen)
        first = arrived(terminal.drain(0.5))
        first_at = time.perf_counter() - began
        streaming += block(terminal, options.keys)
        last = arrived(bytes(terminal.seen[mark:]))
        if first is not None and last is not None:
            rates.append((last - first) / (time.perf_counter() - began - first_at))
        terminal.send(b"\x1b")
        terminal.drain(1.0)
    return idle, streaming, rates


def child(rate: float) -> None:
    """The app itself, with the fake engine and a run that does not end by itself."""
    sys.path.insert(0, str(ROOT))
    from tui.app.app import KvscopeApp
    from tui.app.panes import PANES
    from tui.app.settings import Settings
    from tui.panes.generate import GeneratePane
    from tui.widgets.option import Option

    fake = [sys.executable, str(ROOT / "tests" / "tui" / "fake_engine.py"), "--rate", str(rate)]
    app = KvscopeApp(None, Settings(), fake)

    async def begin() -> None:
        while not app.query(GeneratePane):
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        app.query_one(GeneratePane).query_one("#option-new", Option).text = "1000k"
        app.action_go(PANES.index(GeneratePane.TITLE))

    app.run(auto_pilot=lambda _: begin())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=5000.0)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--size", default="120x35")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.rate)
        return
    import tempfile

    columns, rows = map(int, options.size.split("x"))
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--rate", str(options.rate)]
    with tempfile.TemporaryDirectory() as folder:
        terminal = Terminal(command, columns=columns, rows=rows, folder=folder)
        try:
            terminal.wait_for(b"ready")
            terminal.drain(2.5)
            idle, streaming, rates = measure(terminal, options)
        finally:
            terminal.close()
    for name, values in (("idle", idle), ("streaming", streaming)):
        print(
            f"{name:<10} n {len(values):3d}   median {percentile(values, 50):6.1f} ms   "
            f"p95 {percentile(values, 95):6.1f} ms   max {max(values):6.1f} ms"
        )
    if rates:
        print(f"tokens/s   median {percentile(rates, 50):,.0f} of {options.rate:,.0f} asked, {options.size}")


if __name__ == "__main__":
    main()
