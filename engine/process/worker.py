"""The engine process: requests as JSON lines on stdin, events as JSON lines on stdout.

Stdout carries the protocol only: its descriptor is taken over at the start, and anything that code prints goes
to stderr. The process ends on request, when its stdin has ended and all requests are answered (at once if its
parent is gone), or when nobody reads its output.
"""

import os
import sys
import threading
from typing import IO, TYPE_CHECKING

from engine.process.events import Failed, ProtocolError, encode
from engine.process.inbox import Inbox
from engine.records import Cancelled, Event

if TYPE_CHECKING:
    from engine.process.service import Service


class Outlet:
    """Writes whole events, from any thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Send one event immediately. If nobody reads any more, the process ends."""
        try:
            line = encode(event)
        except ProtocolError as error:
            line = encode(Failed(request_id=event.request_id, kind="engine", message=error.message))
        with self._lock:
            try:
                self._stream.write(line)
                self._stream.flush()
            except OSError:
                os._exit(0)


def serve() -> int:
    """Answer requests until the end; returns the exit code. Takes over the process's stdin and stdout."""
    emit = Outlet(_take_over_stdout())
    inbox = Inbox(os.fdopen(os.dup(0), "rb"), emit)
    inbox.start()

    from engine.process.service import Service, ready  # imports torch, which takes seconds; requests are read meanwhile

    emit(ready())
    service = Service()
    try:
        run(service, inbox, emit)
    finally:
        service.close()
    return 0


def run(service: "Service", inbox: Inbox, emit: Outlet) -> None:
    """The loop: one request after the other, until the inbox says it is over."""
    while (request := inbox.next()) is not None:
        if inbox.should_stop():
            emit(Cancelled(request_id=request.request_id))
            continue
        for event in service.answer(request, inbox.should_stop):
            emit(event)


def _take_over_stdout() -> IO[bytes]:
    """A private stream to the real stdout; descriptor 1 and `sys.stdout` write to stderr from now on."""
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return private
