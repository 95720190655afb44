"""Threads that pack the pieces of a model's matrices side by side while it loads."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from engine.machine import usable_cores

_MOST = 8  # a piece takes a few megabytes while it is packed


class Workers:
    """As many threads as there are cores. They end with the object.

    torch's own threads would wait for each other beside them: a load has one (`engine.weights.checkpoint`).
    """

    def __init__(self) -> None:
        self._n_threads = min(usable_cores(), _MOST)
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="engine-pack")

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """All of them, begun in order. Few are begun before they are needed, so that a stop comes soon."""
        under_way: deque[Future[None]] = deque()
        for job in jobs:
            if len(under_way) > self._n_threads:
                under_way.popleft().result()
            under_way.append(self._pool.submit(job))
        for each in under_way:
            each.result()


def one_by_one(jobs: Iterable[Callable[[], None]]) -> None:
    """All of them, in this thread."""
    for job in jobs:
        job()
