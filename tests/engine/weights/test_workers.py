"""Pieces of matrices packed side by side: all of them, in the order they are read, and an error is the load's."""

import threading

import pytest

from engine.weights.workers import Workers, one_by_one


@pytest.mark.parametrize("run", [one_by_one, Workers().run], ids=["one by one", "workers"])
def test_all_jobs_are_done_and_begun_in_order(run) -> None:
    asked, done = [], []

    def jobs():
        for i in range(100):
            asked.append(i)
            yield lambda i=i: done.append(i)

    run(jobs())
    assert asked == list(range(100))
    assert sorted(done) == asked


def test_an_error_of_a_job_is_raised_and_few_more_are_asked_for() -> None:
    workers, asked = Workers(), []

    def jobs():
        for i in range(100):
            asked.append(i)
            yield lambda: 1 // 0

    with pytest.raises(ZeroDivisionError):
        workers.run(jobs())
    assert len(asked) < 20  # eight threads at most, and one more each before a result is looked at


def test_threads_end_with_the_object() -> None:
    workers, threads = Workers(), set[threading.Thread]()
    workers.run([lambda: threads.add(threading.current_thread())] * 20)
    assert threads
    del workers
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
