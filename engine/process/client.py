"""The client of the engine process, for the app and the headless commands. No torch here.

with EngineClient() as client:
    for event in client.stream(Generate(prompt="Once", max_new_tokens=8)):   # headless: blocks
        ...
    number = client.submit(Benchmark())                                      # app: returns at once
    events = client.poll()                                                   # app: every tick
"""

import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import msgspec

from engine.apart import default_environment
from engine.errors import EngineFailure
from engine.process.events import Cancel, encode, ends
from engine.process.session import Session
from engine.records import Event, Request

# Ctrl-C wakes a waiting main thread only if the system delivers the signal to that thread: never wait for long.
_INTERRUPTIBLE_S = 0.25


def default_command() -> tuple[str, ...]:
    """The command that starts the engine; ``-P`` keeps modules of the current folder out of it."""
    return (sys.executable, "-P", "-m", "engine", "serve")


class EngineClient:
    """Talks to one engine process, started by the first request, and restarted by the first request after it has
    ended.

    Thread-safe. Only `stream` and `close` wait. Every request gets exactly one terminal event
    (`engine.process.events.ends`); if the process dies first, that event is `EngineExited`.
    """

    def __init__(self, command: Sequence[str] | None = None, *, grace_s: float = 1.0) -> None:
        """`command` replaces the one that starts the engine; `grace_s`: time to exit before it is killed."""
        self._command = tuple(command) if command is not None else default_command()
        self._grace_s = grace_s
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._last_id = 0
        self._closed = False
        self._mail = _Mailbox()

    @property
    def alive(self) -> bool:
        """Whether a process is running or starting."""
        session = self._session
        return session is not None and session.alive

    @property
    def pid(self) -> int | None:
        """The process id of the engine; None when no process is running."""
        session = self._session
        return session.pid if session is not None and session.alive else None

    def submit(self, request: Request) -> int:
        """Send a request, and start the process if none is alive. Returns the number that its events carry.

        Raises `ProtocolError` for text that is not valid Unicode, `EngineFailure` after `close`.
        """
        with self._lock:
            return self._submit(request)

    def poll(self) -> list[Event]:
        """The events since the last call, oldest first. Does not wait."""
        return self._mail.take_all()

    def stream(self, request: Request) -> Iterator[Event]:
        """Send a request now, and yield its events as they come; the terminal event is the last.

        Leaving early (an exception in the loop, Ctrl-C, closing the iterator) cancels the request.
        """
        return self._follow(request, self.submit(request))

    def cancel(self, request_id: int) -> None:
        """Ask the engine to stop a request. Its terminal event still comes; unknown ids are ignored."""
        with self._lock:
            if self._session is not None:
                request = Cancel(target_id=request_id)
                self._session.send(request, encode(request))

    def close(self, grace_s: float | None = None) -> None:
        """End the process and wait until it has exited. Open streams end with `EngineExited`.

        It is killed after `grace_s` (None: the client's own value).
        """
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close(self._grace_s if grace_s is None else grace_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, request: Request) -> int:
        if self._closed:
            raise EngineFailure("the engine client is closed; make a new one")
        numbered = msgspec.structs.replace(request, request_id=self._last_id + 1)
        line = encode(numbered)  # before anything is started: it may refuse
        self._last_id += 1
        if self._session is None or not self._session.send(numbered, line):
            self._session = self._new_session()
            self._session.send(numbered, line)
            self._session.start()
        return self._last_id

    def _new_session(self) -> Session:
        return Session(
            self._command,
            environment=default_environment(),
            deliver=self._mail.put,
            grace_s=self._grace_s,
        )

    def _follow(self, request: Request, request_id: int) -> Iterator[Event]:
        done = False
        try:
            while not done:
                event = self._mail.wait_for(request_id)
                done = ends(request, event)
                yield event
        finally:
            if not done:
                self._mail.abandon(request_id)
                self.cancel(request_id)


class _Mailbox:
    """Events on their way from the reader threads to the caller."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._abandoned: set[int] = set()
        self._arrival = threading.Condition()

    def put(self, event: Event) -> None:
        with self._arrival:
            if event.request_id not in self._abandoned:
                self._events.append(event)
                self._arrival.notify_all()

    def take_all(self) -> list[Event]:
        with self._arrival:
            events = list(self._events)
            self._events.clear()
            return events

    def wait_for(self, request_id: int) -> Event:
        """Take the oldest event of one request; other events stay in the queue."""
        with self._arrival:
            while True:
                for event in self._events:
                    if event.request_id == request_id:
                        self._events.remove(event)
                        return event
                self._arrival.wait(_INTERRUPTIBLE_S)

    def abandon(self, request_id: int) -> None:
        """Drop the events of a request, now and in the future."""
        with self._arrival:
            self._abandoned.add(request_id)
            self._events = deque(event for event in self._events if event.request_id != request_id)
