"""When nothing is left to do: what a test of the app waits for after a key, whatever the machine's load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

SOON_S = 0.02
"""A timer that is due sooner belongs to what was asked (Textual repaints 60 times per second); one that reads the
engine or blinks a cursor does not."""
MOST_TIMERS = 8
"""How many of them are waited for, one after the other: something may repeat for ever."""
TURNS = 3
"""Turns of the loop with nothing to run: between two it asks for news from pipes and threads."""
THREAD_S = 10.0
"""How long a thread that reads or writes a file is waited for: a disk that never answers is on trial too."""

_threads = [0]
"""How many of them are at work."""


@contextmanager
def threads_counted() -> Iterator[None]:
    """Count what works in a thread; one that reads the pipe of another process may wait for long, and is not."""
    to_thread = asyncio.to_thread

    async def counted(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        files = int(getattr(work, "__name__", "") != "readline")
        _threads[0] += files
        try:
            return await to_thread(work, *args, **options)
        finally:
            _threads[0] -= files

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "to_thread", counted)
        yield


async def nothing_due() -> None:
    """Wait until the event loop has nothing to run now, nor within `SOON_S`, and no thread is at a file."""
    loop = asyncio.get_running_loop()
    end = time.monotonic() + THREAD_S
    quiet = timers = 0
    while quiet < TURNS:
        await asyncio.sleep(0)
        quiet = 0 if loop._ready else quiet + 1  # type: ignore[attr-defined]
        due = min((timer.when() for timer in loop._scheduled if not timer.cancelled()), default=None)  # type: ignore[attr-defined]
        if quiet and due is not None and due < loop.time() + SOON_S and timers < MOST_TIMERS:
            quiet, timers = 0, timers + 1
            await asyncio.sleep(max(0.0, due - loop.time()))
        if _threads[0] and time.monotonic() < end:
            quiet = 0
            await asyncio.sleep(0.001)
