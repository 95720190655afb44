"""How the app ends: what is worth keeping is kept, the terminal is given back, and the process is gone.

The interpreter's own end waits for threads and frees what the system takes back anyway, for seconds while a sweep or a
report is at work. Nothing is left to it.
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
"""Those that end a program and that it may answer. Windows has no SIGHUP."""


def leave(driver: Driver | None, code: int) -> None:
    """Give the terminal back as it was found, and end the process with `code`, whatever its threads do."""
    if driver is not None:
        with suppress(OSError):  # a terminal that is gone needs nothing
            driver.stop_application_mode()
            driver.close()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def on_signals(answer: Callable[[int], None]) -> None:
    """Call `answer` with the exit code of a shell (128 and the signal) when the system asks the program to end."""
    loop = asyncio.get_running_loop()
    for name in SIGNALS:
        number = getattr(signal, name, None)
        if number is not None:
            with suppress(NotImplementedError):  # Windows has no handlers in its event loop
                loop.add_signal_handler(number, answer, 128 + number)
