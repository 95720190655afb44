"""The line to the engine: visible states, batches to whoever asked, a crash, and no orphan."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import pytest

from engine.generation_events import GenerationFinished, TokenGenerated
from engine.measure.kinds.evaluate import Evaluate, EvaluationFinished
from engine.measure.own import MeasureOwnTimes
from engine.process.events import EngineExited, Failed, Generate
from engine.records import Cancelled, Event, Load, Progress, Request
from tests.patience import wait_until
from tests.tui.fake_engine import RATED
from tests.tui.live_engine import fake_engine
from tui.live.engine_link import IDLE_TICK_S, TICK_S, EngineLink, EngineStatus, Phase, loading_text

if TYPE_CHECKING:
    from textual.app import App


@pytest.fixture
def link() -> Iterator[EngineLink]:
    made = EngineLink(fake_engine("--rate", "20000"))
    yield made
    made.close()


def spin(link: EngineLink, condition: Callable[[], bool]) -> int:
    """Tick until `condition` holds; returns how often."""
    ticks = 0

    def reached() -> bool:
        nonlocal ticks
        if condition():
            return True
        ticks += 1
        link.tick()
        return condition()

    wait_until(reached)
    return ticks


def is_gone(pid: int) -> bool:
    """Whether a process is over (a zombie is)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_it_goes_from_off_to_ready_and_tells_every_state(link: EngineLink) -> None:
    seen: list[EngineStatus] = [link.status]
    link.watch(seen.append)
    link.start()
    spin(link, lambda: link.status.phase is Phase.READY and not link.busy)
    phases = list(dict.fromkeys(status.phase for status in seen))
    assert phases == [Phase.OFF, Phase.STARTING, Phase.LOADING, Phase.READY]
    assert link.status.model is not None
    assert link.status.line == "● ready: fake"
    assert link.status.pid == link.pid


class Ticks:
    """What an app gives for an interval."""

    def __init__(self) -> None:
        self.going = True

    def resume(self) -> None:
        self.going = True

    def pause(self) -> None:
        self.going = False


class FakeApp:
    """What the link uses of an app; the test ticks."""

    is_running = True

    def __init__(self) -> None:
        self.intervals: dict[float, Ticks] = {}

    def set_interval(self, seconds: float, call: Callable[[], None]) -> Ticks:
        self.intervals[seconds] = Ticks()
        return self.intervals[seconds]

    def post_message(self, message: object) -> None:
        """Nobody listens."""


def test_panes_of_an_app_that_is_closing_get_no_events(link: EngineLink) -> None:
    app = FakeApp()
    link.attach(cast("App[None]", app))
    spin(link, lambda: link.status.phase is Phase.READY)
    seen: list[EngineStatus] = []
    link.watch(seen.append)
    link.submit(Generate(prompt="a", max_new_tokens=1))
    seen.clear()
    app.is_running = False
    for _ in range(40):
        link.tick()
        time.sleep(0.005)
    assert not seen
    app.is_running = True
    spin(link, lambda: bool(seen))


def test_times_of_a_models_own_operators_go_with_the_model(link: EngineLink) -> None:
    link.submit(MeasureOwnTimes(model=RATED))
    spin(link, lambda: not link.busy)
    assert link.status.own is not None
    link.submit(Generate(prompt="a", max_new_tokens=1, model="other.gguf"))
    spin(link, lambda: not link.busy)
    assert link.status.own is None


def test_starting_twice_is_starting_once(link: EngineLink) -> None:
    link.start()
    link.start()
    assert len(link._pending) == 1


def test_events_come_in_batches_in_order_to_their_own_handler(link: EngineLink) -> None:
    batches: list[list[Event]] = []
    others: list[Event] = []
    link.submit(Generate(prompt="a b", max_new_tokens=2000), lambda batch: batches.append(list(batch)))
    link.submit(Evaluate(), others.extend)
    ticks = spin(link, lambda: not link.busy)
    events = [event for batch in batches for event in batch]
    assert [e.index for e in events if isinstance(e, TokenGenerated)] == list(range(2000))
    assert isinstance(events[-1], GenerationFinished)
    assert len(batches) <= ticks, "a call per tick, never per token"
    assert max(map(len, batches)) > 1
    assert isinstance(others[-1], EvaluationFinished)
    assert not any(isinstance(e, TokenGenerated) for e in others)


def test_a_cancelled_run_keeps_its_tokens(link: EngineLink) -> None:
    got: list[Event] = []
    number = link.submit(Generate(prompt="a", max_new_tokens=10**6), got.extend)
    spin(link, lambda: any(isinstance(e, TokenGenerated) for e in got))
    link.cancel(number)
    spin(link, lambda: not link.busy)
    last = got[-1]
    assert isinstance(last, GenerationFinished)
    assert last.reason == "cancelled"
    assert 0 < len(last.ids) < 10**6
    assert link.status.phase is Phase.READY
    link.cancel(number)  # an ended one is ignored
    link.cancel(None)


def test_a_killed_engine_is_reported_and_the_next_request_starts_another(link: EngineLink) -> None:
    got: list[Event] = []
    link.submit(Generate(prompt="a", max_new_tokens=10**6), got.extend)
    spin(link, lambda: len(got) > 3)
    first = link.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    spin(link, lambda: link.status.phase is Phase.STOPPED)
    assert isinstance(got[-1], EngineExited)
    assert "SIGKILL" in link.status.line
    assert link.status.model is None
    again: list[Event] = []
    link.submit(Generate(prompt="a", max_new_tokens=3), again.extend)
    assert link.status.phase is Phase.STARTING
    spin(link, lambda: not link.busy)
    assert isinstance(again[-1], GenerationFinished)
    assert link.pid not in (None, first)
    assert link.status.phase is Phase.READY


def test_an_idle_engine_that_dies_is_noticed(link: EngineLink) -> None:
    link.start()
    spin(link, lambda: not link.busy)
    assert link.pid is not None
    os.kill(link.pid, signal.SIGTERM)
    spin(link, lambda: link.status.phase is Phase.STOPPED)
    assert "SIGTERM" in link.status.detail


def test_a_command_that_does_not_exist_is_a_state_not_an_exception() -> None:
    link = EngineLink(["/nonexistent/engine"])
    got: list[Event] = []
    link.submit(Load(), got.extend)
    spin(link, lambda: link.status.phase is Phase.STOPPED)
    assert "/nonexistent/engine" in link.status.detail
    assert isinstance(got[-1], EngineExited)
    link.close()


def test_a_model_that_cannot_be_loaded_leaves_the_engine_ready(link: EngineLink) -> None:
    got: list[Event] = []
    link.submit(Load(model="missing.pt"), got.extend)
    spin(link, lambda: not link.busy)
    assert isinstance(got[-1], Failed)
    assert link.status.phase is Phase.READY
    assert link.status.detail == "missing.pt: no such file"


def test_a_load_says_how_far_it_is_and_what_was_held_is_gone_with_it(link: EngineLink) -> None:
    link.start()
    spin(link, lambda: link.status.model is not None and not link.busy)
    got: list[Event] = []
    number = link.submit(Generate(model="slow.gguf", prompt="a"), got.extend)
    spin(link, lambda: "%" in link.status.line)
    assert link.status.line.startswith("◌ loading: 3")
    assert link.status.line.endswith(" % of slow.gguf")
    assert link.status.model is None
    link.cancel(number)
    spin(link, lambda: not link.busy)
    assert isinstance(got[-1], Cancelled)
    assert (link.status.line, link.status.model) == ("● ready", None)


def test_how_far_a_load_is_in_words() -> None:
    def text(detail: str, done: int, total: int) -> str:
        return loading_text(Progress(stage="load", done=done, total=total, elapsed_ns=0, detail=detail))

    assert text("m.gguf", 0, 0) == "m.gguf"
    assert text("m.gguf", 999, 1000) == "99 % of m.gguf"
    assert text("downloading m", 45, 100) == "downloading 45 % of m"


def test_it_looks_often_only_while_something_is_unanswered(link: EngineLink) -> None:
    app = FakeApp()
    link.attach(cast("App[None]", app))
    often, seldom = app.intervals[TICK_S], app.intervals[IDLE_TICK_S]
    assert often.going
    spin(link, lambda: not link.busy)
    link.tick()
    assert (often.going, seldom.going) == (False, True)
    link.submit(Generate(prompt="a", max_new_tokens=3))
    assert often.going
    spin(link, lambda: not link.busy and not often.going)


def test_closing_leaves_no_process() -> None:
    link = EngineLink(fake_engine())
    got: list[Event] = []

    def take(batch: Sequence[Event]) -> None:
        got.extend(batch)

    link.submit(Generate(prompt="a", max_new_tokens=10**6), take)
    spin(link, lambda: bool(got))
    pid = link.pid
    assert pid is not None
    link.close()
    assert is_gone(pid)
    count = len(got)
    link.tick()
    assert len(got) == count, "a closed link calls nobody"


class Recorder:
    """A client that only writes down what it is told."""

    alive = True

    def __init__(self) -> None:
        self.submitted: list[Request] = []
        self.cancelled: list[int] = []

    def submit(self, request: Request) -> int:
        self.submitted.append(request)
        return len(self.submitted)

    def cancel(self, request_id: int) -> None:
        self.cancelled.append(request_id)


def test_what_is_timed_for_predictions_makes_way_for_whatever_is_asked_for() -> None:
    link, client = EngineLink(fake_engine()), Recorder()
    link._client = client  # type: ignore[assignment]
    link.submit(Generate(prompt="x"))
    link.submit(MeasureOwnTimes())
    assert client.cancelled == []  # a run is never stopped
    link.submit(Load())
    assert client.cancelled == [2]
