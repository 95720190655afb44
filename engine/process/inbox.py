"""The worker's requests, read in a thread so that a Cancel arrives while another request runs. No torch here."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import IO

import msgspec

from engine.process.events import Cancel, Failed, ProtocolError, Shutdown, decode_request
from engine.records import Cancelled, Event, Request

_EXIT_GRACE_S = 0.5
_PARENT_CHECK_S = 0.1


class Inbox:
    """The queue of requests for the worker, and the stop signal of the running request."""

    def __init__(self, stream: IO[bytes], emit: Callable[[Event], None]) -> None:
        self._stream = stream
        self._emit = emit
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._current = 0
        self._stop = threading.Event()
        self._over = False
        self._ended = False
        self._parent = os.getppid()

    def start(self) -> None:
        """Start reading in a daemon thread."""
        threading.Thread(target=self._read, name="engine-inbox", daemon=True).start()

    def should_stop(self) -> bool:
        """Whether the current request is cancelled, or the worker is to exit."""
        return self._stop.is_set()

    def next(self) -> Request | None:
        """Wait for the next request; None if the worker is to exit or the input has ended."""
        with self._changed:
            self._current = 0
            self._changed.wait_for(lambda: self._over or self._ended or self._waiting)
            if self._over or not self._waiting:
                return None
            request = self._waiting.popleft()
            self._current = request.request_id
            self._stop.clear()
            return request

    def receive(self, line: bytes) -> None:
        """Process one line of input."""
        try:
            request = decode_request(line)
        except ProtocolError as error:
            self._emit(Failed(request_id=_id_in(line), kind="input", message=error.message))
            return
        match request:
            case Cancel(target_id=target_id):
                self._cancel(target_id)
            case Shutdown():
                self.end()
            case _:
                with self._changed:
                    self._waiting.append(request)
                    self._changed.notify_all()

    def end(self) -> None:
        """Stop the running request, drop the queue, and let `next` return None."""
        with self._changed:
            self._over = True
            self._stop.set()
            self._changed.notify_all()

    def _cancel(self, target_id: int) -> None:
        with self._changed:
            if target_id == self._current:
                self._stop.set()
                return
            waiting = [request for request in self._waiting if request.request_id == target_id]
            for request in waiting:
                self._waiting.remove(request)
        for request in waiting:
            self._emit(Cancelled(request_id=request.request_id))

    def _read(self) -> None:
        for line in self._stream:
            if line.strip():
                self.receive(line)
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        # If requests were piped in, their sender still gets the answers. If the parent is gone too, the app has died.
        while os.getppid() == self._parent:
            time.sleep(_PARENT_CHECK_S)
        self.end()
        time.sleep(_EXIT_GRACE_S)  # the running request may be deep inside torch: wait a moment, then exit anyway
        os._exit(0)


def _id_in(line: bytes) -> int:
    """The id of an otherwise invalid request, so that its sender gets the answer."""
    try:
        request_id = msgspec.json.decode(line)["request_id"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, IndexError):
        return 0
    return request_id if isinstance(request_id, int) and not isinstance(request_id, bool) else 0
