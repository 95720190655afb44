"""Loading in a separate thread, with progress events and cancellation between two weights. No torch here.

The loader counts the bytes it has taken (`Watch.add`); the caller passes the events on (`followed`).
"""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from engine.errors import Stopped
from engine.records import NS_PER_S, Progress

T = TypeVar("T")
REPORT_NS = NS_PER_S // 10
"""Minimum time between two reports, except the first and the last."""
_ASK_S = 0.02
_GRACE_S = 0.15
"""How long to wait for a cancelled load: it ends between two weights, but a silent server may block it."""


def _nobody(progress: Progress) -> None:
    """The default `report`: does nothing."""


class Watch:
    """Counts the bytes that a load has taken, reports them now and then, and raises Stopped on cancellation."""

    def __init__(
        self,
        name: str = "",
        *,
        report: Callable[[Progress], None] = _nobody,
        should_stop: Callable[[], bool] = lambda: False,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """``name``: of the model or file, the `detail` of every report."""
        self._name = name
        self._report = report
        self._should_stop = should_stop
        self._clock_ns = clock_ns
        self._lock = threading.Lock()  # downloads use several threads
        self._start_ns = self._begun_ns = self._told_ns = clock_ns()
        self._doing = ""
        self._done = self._total = 0
        self._tell(self._start_ns)

    def begin(self, total_bytes: int, doing: str = "") -> None:
        """Restart the count, up to ``total_bytes``; ``doing`` ("downloading") precedes the name. Raises Stopped."""
        self.check()
        self._begun_ns = self._clock_ns()
        self._done, self._total, self._doing = 0, total_bytes, doing

    def add(self, n_bytes: int) -> None:
        """Count some more bytes, never beyond the total. Raises Stopped."""
        self.reach(self._done + n_bytes)

    def reach(self, done_bytes: int) -> None:
        """Set the number of bytes taken so far. Raises Stopped."""
        self.check()
        with self._lock:
            self._done = max(self._done, min(done_bytes, self._total))
            now_ns = self._clock_ns()
            if now_ns - self._told_ns >= REPORT_NS:
                self._tell(now_ns)

    def end(self) -> None:
        """Set the count to the total."""
        self._done = self._total
        self._tell(self._clock_ns())

    def check(self) -> None:
        """Raise Stopped if the load was cancelled."""
        if self._should_stop():
            raise Stopped

    def _tell(self, now_ns: int) -> None:
        self._told_ns = now_ns
        rest = self._total - self._done
        remaining_s = (now_ns - self._begun_ns) / NS_PER_S / self._done * rest if self._done else None
        self._report(
            Progress(
                stage="load",
                done=self._done,
                total=self._total,
                elapsed_ns=now_ns - self._start_ns,
                remaining_s=remaining_s,
                detail=f"{self._doing} {self._name}".strip(),
            )
        )


@dataclass(frozen=True, slots=True)
class _Made(Generic[T]):
    """The outcome of a load."""

    value: T


_News = Progress | _Made[T] | BaseException


def followed(load: Callable[[Watch], T], name: str, should_stop: Callable[[], bool]) -> Generator[Progress, None, T]:
    """Run ``load`` in a thread: yield its reports, return its result. Raises its exceptions, and Stopped.

    A cancelled load leaves nothing behind. A load that does not respond (waiting for a silent server) is abandoned,
    and ends when it counts next.
    """
    told: SimpleQueue[_News[T]] = SimpleQueue()
    stop = threading.Event()

    def work() -> None:
        try:
            told.put(_Made(load(Watch(name, report=told.put, should_stop=stop.is_set))))
        except Stopped as error:
            told.put(error.with_traceback(None))  # its frames hold half a model
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=work, name="engine-load", daemon=True)
    thread.start()
    try:
        while isinstance(news := _next(told, should_stop), Progress):
            yield news
        return news.value
    finally:
        stop.set()
        thread.join(_GRACE_S)


def _next(told: "SimpleQueue[_News[T]]", should_stop: Callable[[], bool]) -> "Progress | _Made[T]":
    """The next report or the outcome. Raises the exceptions of the load, and Stopped."""
    while True:
        try:
            news = told.get(timeout=_ASK_S)
        except Empty:
            if should_stop():
                raise Stopped from None
            continue
        if not isinstance(news, BaseException):
            return news
        try:
            raise news
        finally:
            del news  # break the cycle of error and frame, which would keep the loaded weights in memory
