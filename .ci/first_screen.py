"""Start a program in a pseudo-terminal, wait for its first screen, quit it: fails unless both happen."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import sys
import time

WANTED, DEADLINE_S = b"MAX BATCH", 30.0


def read_until(terminal: int, wanted: bytes) -> bool:
    """Whether `wanted` is drawn before the deadline."""
    seen, end = b"", time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            seen += os.read(terminal, 65536)
            if wanted in seen:
                return True
    return False


def main() -> int:
    """Exit code 0 when the screen came and ctrl+q ended the program cleanly."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="120", LINES="40")
        os.execv(sys.argv[1], sys.argv[1:2])
    if not read_until(terminal, WANTED):
        os.kill(child, 9)
        print("no first screen", file=sys.stderr)
        return 1
    os.write(terminal, b"\x11")
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):  # Linux answers EIO once the other side is closed.
                os.read(terminal, 65536)
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
    os.kill(child, 9)
    print("did not quit", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
