"""A real terminal for the app: a pseudo-terminal whose screen pyte draws."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import pyte

from tests.patience import PATIENCE_S

GIVEN_BACK = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1003l", b"\x1b[?2004l")
"""Leaves the alternate screen, shows the cursor, ends mouse reports and bracketed paste."""
KVSCOPE = (sys.executable, "-m", "tui")


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str], columns: int, rows: int) -> None:
        self.screen = pyte.Screen(columns, rows)
        self.written = b""
        self._stream = pyte.ByteStream(self.screen)
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ.update({"TERM": "xterm-256color", "LANG": "C.UTF-8", **env})
            os.environ.pop("LINES", None)
            os.environ.pop("COLUMNS", None)
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execv(words[0], list(words))

    @property
    def text(self) -> str:
        """What stands on the screen."""
        return "\n".join(self.screen.display)

    def send(self, keys: bytes) -> None:
        """Type `keys` in one burst."""
        os.write(self._fd, keys)

    def until(self, reached: Callable[[], bool]) -> None:
        """Read what is drawn until `reached`; fails with the screen when that never comes."""
        end = time.monotonic() + PATIENCE_S
        while not reached():
            assert time.monotonic() < end, self.text
            self._read()

    def until_shown(self, words: str) -> None:
        """Wait for `words` on the screen, wherever its lines end."""
        self.until(lambda: words in " ".join(self.text.split()))

    def signal(self, number: int) -> None:
        """Send the process a signal."""
        os.kill(self.pid, number)

    def stopped(self) -> bool:
        """Whether the process has been suspended since the last call."""
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
        return pid != 0 and os.WIFSTOPPED(status)

    def ended(self) -> int:
        """The exit code, once the process has ended; what it still wrote is read."""
        status = [0]

        def gone() -> bool:
            pid, status[0] = os.waitpid(self.pid, os.WNOHANG)
            return pid != 0

        self.until(gone)
        while self._read():
            pass
        self.pid = 0
        return os.waitstatus_to_exitcode(status[0])

    def close(self) -> None:
        """End what still runs."""
        if self.pid:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        os.close(self._fd)

    def _read(self) -> bool:
        """Take what has been written; False when nothing comes (any more)."""
        if not select.select([self._fd], [], [], 0.02)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # Linux answers EIO once the other side is closed
            return False
        self.written += data
        self._stream.feed(data)
        return bool(data)


@contextmanager
def terminal(
    env: Mapping[str, str], *options: str, columns: int = 100, rows: int = 30, program: Sequence[str] = KVSCOPE
) -> Iterator[Terminal]:
    """`program` with `options` in a terminal of `columns` x `rows`; killed at the end if it still runs."""
    opened = Terminal((*program, *options), env, columns, rows)
    try:
        yield opened
    finally:
        opened.close()
