"""How the app ends: it saves what must be saved, restores the terminal, and ends the process.

The interpreter's own exit waits for threads and frees memory that the system reclaims anyway, which takes seconds while
a sweep or report is running. So it is skipped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from textual.driver import Driver

SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")
"""Signals that end a program and can be handled. Windows has no SIGHUP."""


def leave(driver: Driver | None, code: int) -> None:
    """Restore the terminal and end the process with `code`, whatever its threads do."""
    if driver is not None:
        with suppress(OSError):  # a terminal that is gone needs nothing
            driver.stop_application_mode()
            driver.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def on_signals(answer: Callable[[int], None]) -> None:
    """Call `answer` with the shell's exit code (128 plus the signal) when the system asks the program to end."""
    loop = asyncio.get_running_loop()
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None:
            with suppress(NotImplementedError):  # Windows event loops have no signal handlers
                loop.add_signal_handler(number, answer, 128 + number)
