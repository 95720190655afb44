"""The client: events in order, crashes reported, a new process afterwards, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.errors import EngineFailure
from engine.generation_events import GenerationFinished, TokenGenerated
from engine.process.client import EngineClient, default_command
from engine.process.events import EngineExited, Failed, Generate, ProtocolError, Ready, Shutdown
from engine.process.session import describe_returncode
from engine.records import Event, Load
from tests.engine.processes import exists
from tests.patience import wait_until

FAKE = (sys.executable, str(Path(__file__).parents[1] / "fake_engine.py"))


@pytest.fixture
def client() -> Iterator[EngineClient]:
    with EngineClient(FAKE, grace_s=0.3) as client:
        yield client


def poll_until(client: EngineClient, wanted: Callable[[Event], bool], count: int = 1) -> list[Event]:
    """All events up to `count` that are wanted."""
    events: list[Event] = []

    def arrived() -> bool:
        events.extend(client.poll())
        return sum(map(wanted, events)) >= count

    wait_until(arrived)
    return events


def exited(event: Event) -> bool:
    return isinstance(event, EngineExited)


# --- the ordinary way -------------------------------------------------------------------------------------


def test_stream_gives_the_events_of_its_request_in_order(client: EngineClient) -> None:
    events = list(client.stream(Generate(prompt="tokens:3")))
    assert [type(event) for event in events] == [TokenGenerated] * 3 + [GenerationFinished]
    assert [event.index for event in events if isinstance(event, TokenGenerated)] == [0, 1, 2]
    assert {event.request_id for event in events} == {1}


def test_poll_gives_everything_once_and_never_waits(client: EngineClient) -> None:
    assert client.poll() == []
    assert not client.alive
    number = client.submit(Generate(prompt="tokens:2"))
    events = poll_until(client, lambda event: isinstance(event, GenerationFinished))
    assert isinstance(events[0], Ready)
    assert events[0].request_id == 0
    assert events[0].pid == client.pid
    assert [event.request_id for event in events[1:]] == [number] * 3
    assert client.poll() == []
    assert client.alive


def test_request_ids_increase_and_streams_do_not_mix(client: EngineClient) -> None:
    first, second = client.stream(Generate(prompt="tokens:2")), client.stream(Generate(prompt="tokens:4"))
    assert len(list(second)) == 5
    assert len(list(first)) == 3
    assert client.submit(Generate(prompt="tokens:0")) == 3


def test_one_process_serves_all_requests(client: EngineClient) -> None:
    list(client.stream(Generate(prompt="tokens:1")))
    pid = client.pid
    list(client.stream(Generate(prompt="tokens:1")))
    assert client.pid == pid


def test_a_failure_ends_a_stream(client: EngineClient) -> None:
    assert list(client.stream(Load(model="x"))) == [Failed(request_id=1, kind="input", message="no model x")]
    assert client.alive


@pytest.mark.parametrize("first", ["tokens:0", "deaf"])
def test_submit_never_waits_for_the_process(client: EngineClient, first: str) -> None:
    client.submit(Generate(prompt=first))
    for _ in range(499):
        client.submit(Generate(prompt="tokens:0", prompt_ids=tuple(range(200))))  # more than a pipe holds
    if first != "deaf":  # which would read none of it for ten minutes
        last = poll_until(client, lambda event: event.request_id == 500)[-1]
        assert isinstance(last, GenerationFinished)


def test_requests_that_cannot_be_sent_are_refused_at_once(client: EngineClient) -> None:
    with pytest.raises(ProtocolError, match="cannot be sent"):
        client.submit(Generate(prompt="\udcff"))
    assert len(list(client.stream(Generate(prompt="tokens:1")))) == 2


def test_the_process_keeps_the_folder_and_leads_a_session_of_its_own(
    client: EngineClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (finished,) = client.stream(Generate(prompt="cwd"))
    assert isinstance(finished, GenerationFinished)
    folder, session, pid = str(finished.text).split("|")
    assert Path(folder) == tmp_path
    assert session == pid
    assert int(session) != os.getsid(0)


# --- cancelling -------------------------------------------------------------------------------------------


def test_cancel_ends_the_run(client: EngineClient) -> None:
    number = client.submit(Generate(prompt="hang"))
    poll_until(client, lambda event: isinstance(event, TokenGenerated))
    client.cancel(number)
    (finished,) = poll_until(client, lambda event: event.request_id == number)
    assert isinstance(finished, GenerationFinished)
    assert finished.reason == "cancelled"


def test_leaving_a_stream_cancels_it_and_drops_its_events(client: EngineClient) -> None:
    stream = client.stream(Generate(prompt="hang"))
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        raise_in_loop(stream)
    events = list(client.stream(Generate(prompt="tokens:1")))
    assert [event.request_id for event in events] == [2, 2]
    assert all(event.request_id != 1 for event in client.poll())


def raise_in_loop(stream: Iterator[Event]) -> None:
    """Ctrl-C in the consumer's loop: the iterator is closed on the way out."""
    try:
        raise KeyboardInterrupt
    finally:
        stream.close()  # type: ignore[attr-defined]


def test_ctrl_c_while_waiting_cancels(client: EngineClient) -> None:
    stream = client.stream(Generate(prompt="hang"))
    next(stream)
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert client.alive
    assert len(list(client.stream(Generate(prompt="tokens:1")))) == 2


def test_cancel_without_a_process_is_ignored(client: EngineClient) -> None:
    client.cancel(12)
    assert not client.alive


# --- ends of the process ----------------------------------------------------------------------------------


def test_a_crash_is_reported_with_its_code_and_last_words(client: EngineClient) -> None:
    (event,) = client.stream(Generate(prompt="exit:3"))
    assert event == EngineExited(
        request_id=1,
        returncode=3,
        message="the engine exited with code 3; its last output: ValueError: leaving with 3",
        stderr_tail="first words\nValueError: leaving with 3\n",
    )


def test_a_kill_is_reported_and_the_next_request_starts_a_new_process(client: EngineClient) -> None:
    number = client.submit(Generate(prompt="hang"))
    poll_until(client, lambda event: isinstance(event, TokenGenerated))
    dead = client.pid
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    (event,) = poll_until(client, exited)
    assert isinstance(event, EngineExited)
    assert (event.request_id, event.returncode) == (number, -9)
    assert "was killed by SIGKILL" in event.message
    assert not client.alive
    assert len(list(client.stream(Generate(prompt="tokens:1")))) == 2
    assert client.pid not in (None, dead)


def test_a_request_right_after_a_kill_is_served(client: EngineClient) -> None:
    list(client.stream(Generate(prompt="tokens:1")))
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not exists(pid))
    assert isinstance(list(client.stream(Generate(prompt="tokens:1")))[-1], GenerationFinished)


def test_every_unanswered_request_hears_of_the_end(client: EngineClient) -> None:
    hanging = client.submit(Generate(prompt="hang"))
    dying = client.submit(Generate(prompt="signal:15"))
    never_read = client.submit(Generate(prompt="tokens:1"))
    events = poll_until(client, exited, count=3)
    ends = [event for event in events if isinstance(event, EngineExited)]
    assert [event.request_id for event in ends] == [hanging, dying, never_read]
    assert {event.returncode for event in ends} == {-15}


def test_an_idle_process_that_dies_is_reported_once(client: EngineClient) -> None:
    list(client.stream(Generate(prompt="tokens:1")))
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSEGV)
    last = poll_until(client, exited)[-1]
    assert isinstance(last, EngineExited)
    assert (last.request_id, last.returncode) == (0, -11)
    assert "SIGSEGV" in last.message


def test_a_shutdown_is_no_crash(client: EngineClient) -> None:
    list(client.stream(Generate(prompt="tokens:1")))
    client.submit(Shutdown())
    wait_until(lambda: not client.alive)
    time.sleep(0.05)
    assert not any(map(exited, client.poll()))


def test_output_that_is_no_protocol_stops_the_process(client: EngineClient) -> None:
    (event,) = client.stream(Generate(prompt="garbage"))
    assert isinstance(event, EngineExited)
    assert "its output is broken" in event.message
    assert "Hello from a library" in event.message
    assert not client.alive


def test_a_process_that_only_stops_talking_is_killed(client: EngineClient) -> None:
    list(client.stream(Generate(prompt="tokens:1")))
    pid = client.pid
    assert pid is not None
    (event,) = client.stream(Generate(prompt="close-stdout"))
    assert isinstance(event, EngineExited)
    assert not exists(pid)


def test_a_command_that_cannot_be_started_is_an_answer() -> None:
    with EngineClient(["/no/such/python"]) as client:
        (event,) = client.stream(Load())
        assert isinstance(event, EngineExited)
        assert event.returncode is None
        assert "could not be started (/no/such/python)" in event.message
        assert isinstance(next(client.stream(Load())), EngineExited)


@pytest.mark.parametrize(
    ("returncode", "said"),
    [
        (0, "exited with code 0"),
        (-9, "was killed by SIGKILL (perhaps by the system, short of memory)"),
        (-15, "was killed by SIGTERM"),
        (-200, "was killed by signal 200"),
    ],
)
def test_ends_have_names(returncode: int, said: str) -> None:
    assert describe_returncode(returncode) == said


# --- closing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["tokens:1", "hang", "deaf"])
def test_close_leaves_no_process(prompt: str) -> None:
    client = EngineClient(FAKE, grace_s=0.2)
    client.submit(Generate(prompt=prompt))
    poll_until(client, lambda event: isinstance(event, TokenGenerated))
    pid = client.pid
    assert pid is not None
    client.close()
    assert not exists(pid)
    client.close()


def test_close_right_after_submit_leaves_no_process() -> None:
    before = children()
    for _ in range(3):
        client = EngineClient(FAKE, grace_s=0.2)
        client.submit(Generate(prompt="hang"))
        client.close()
    assert not children() - before


def children() -> set[str]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    pids = set(found.stdout.split())
    return {pid for pid in pids if exists(int(pid)) and Path(f"/proc/{pid}/comm").read_text().strip() != "ps"}


def test_close_answers_open_streams() -> None:
    client = EngineClient(FAKE, grace_s=0.2)
    stream = client.stream(Generate(prompt="hang"))
    next(stream)
    client.close()
    (event,) = stream
    assert isinstance(event, EngineExited)
    assert event.message == "the engine was closed before it answered"


def test_a_closed_client_refuses() -> None:
    client = EngineClient(FAKE)
    client.close()
    with pytest.raises(EngineFailure, match="closed"):
        client.submit(Load())


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    """The parent dies without a word; the engine reads the end of its stdin."""
    code = f"""
import time
from engine.process.client import EngineClient
from engine.process.events import Generate
client = EngineClient({FAKE!r})
next(client.stream(Generate(prompt="hang")))
print(client.pid, flush=True)
time.sleep(600)
"""
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert exists(pid)
        parent.kill()
    wait_until(lambda: not exists(pid))


def test_the_default_command_does_not_search_the_current_folder() -> None:
    assert default_command() == (sys.executable, "-P", "-m", "engine", "serve")
