"""Threads that pack the pieces of a model's matrices in parallel while it loads."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from engine.machine import usable_cores

_MOST = 8  # a piece takes a few megabytes while it is packed


class Workers:
    """One thread per core. They end with the object.

    torch itself uses one thread while loading (`engine.weights.checkpoint`): more would wait for each other.
    """

    def __init__(self) -> None:
        self._n_threads = min(usable_cores(), _MOST)
        self._pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="engine-pack")

    def run(self, jobs: Iterable[Callable[[], None]]) -> None:
        """Run all jobs, started in order. Only a few are started ahead, so that cancelling is quick."""
        under_way: deque[Future[None]] = deque()
        for job in jobs:
            if len(under_way) > self._n_threads:
                under_way.popleft().result()
            under_way.append(self._pool.submit(job))
        for each in under_way:
            each.result()


def one_by_one(jobs: Iterable[Callable[[], None]]) -> None:
    """Run all jobs in this thread."""
    for job in jobs:
        job()
