"""One engine process from its start to its end, for `engine.process.client`. No torch here.

Two daemon threads serve a process: one starts it and reads its events, one writes the requests. So the caller
never waits, not even for a full pipe. The process has its own session, so that Ctrl-C in the terminal reaches
only the app; if the app dies, the process reads the end of its stdin and exits.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import IO

from engine.apart import apart
from engine.process.events import Cancel, EngineExited, ProtocolError, Shutdown, decode_event, ends
from engine.records import Event, Request

_TAIL_BYTES = 4000
_LAST_LINE_CHARACTERS = 300
_START_TIMEOUT_S = 10.0


class Session:
    """A process and the requests it has not answered. `deliver` gets every event, from another thread."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None,
        deliver: Callable[[Event], None],
        grace_s: float,
    ) -> None:
        self._command = list(command)
        self._environment = environment
        self._deliver = deliver
        self._grace_s = grace_s
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._unanswered: dict[int, Request] = {}
        self._lock = threading.Lock()
        self._over = False
        self._closing = False
        self._process: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _finish)
        self._reader = threading.Thread(target=self._run, name="engine-reader", daemon=True)

    def start(self) -> None:
        """Start the process; requests sent before are waiting for it, so none can be lost if it fails."""
        self._reader.start()

    @property
    def alive(self) -> bool:
        """Whether a request sent now would reach a process (one that is starting counts)."""
        process = self._process
        return not self._over and not self._closing and (process is None or process.poll() is None)

    @property
    def pid(self) -> int | None:
        """The process id, None until it is started."""
        return None if self._process is None else self._process.pid

    def send(self, request: Request, line: bytes) -> bool:
        """Queue a request, encoded as `line`. False when the process is gone: then nothing was queued."""
        with self._lock:
            if not self.alive:
                return False
            if not isinstance(request, Cancel | Shutdown):
                self._unanswered[request.request_id] = request
            self._outbox.put(line)
            return True

    def close(self, grace_s: float) -> None:
        """End the process: ask, wait for the grace time, kill its whole group. Returns when it is gone."""
        self._closing = True
        self._started.wait(_START_TIMEOUT_S)
        self._outbox.put(None)
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            _wait_or_kill(process, grace_s)
        self._reader.join(grace_s)

    # --- the reader thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._process = process = self._spawn()
        except (OSError, ValueError) as error:
            self._finish(None, f"the engine could not be started ({self._command[0]}): {error}")
            return
        finally:
            self._started.set()
        threading.Thread(target=self._write, args=(process,), name="engine-writer", daemon=True).start()
        complaint = self._read(process)
        if complaint:
            _kill_group(process)
        returncode = _wait_or_kill(process, self._grace_s)
        self._outbox.put(None)
        self._finish(returncode, complaint or self._describe(returncode))

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=None if self._environment is None else dict(self._environment),
            **apart(),
        )

    def _read(self, process: subprocess.Popen[bytes]) -> str:
        """Deliver events until the stream ends; returns an error if a line violates the protocol, else ""."""
        assert process.stdout is not None
        with process.stdout as stdout:
            for line in stdout:
                try:
                    event = decode_event(line)
                except ProtocolError as error:
                    return f"the engine was stopped because its output is broken: {error.message}"
                self._settle(event)
                self._deliver(event)
        return ""

    def _settle(self, event: Event) -> None:
        with self._lock:
            request = self._unanswered.get(event.request_id)
            if request is not None and ends(request, event):
                del self._unanswered[event.request_id]

    def _finish(self, returncode: int | None, message: str) -> None:
        with self._lock:
            self._over = True
            unanswered = list(self._unanswered)
            self._unanswered.clear()
        tail = self._take_tail()
        quiet = returncode == 0 or self._closing
        for request_id in unanswered or ([] if quiet else [0]):
            self._deliver(EngineExited(request_id=request_id, returncode=returncode, message=message, stderr_tail=tail))

    # --- what is said about the end -----------------------------------------------------------------------

    def _describe(self, returncode: int) -> str:
        if self._closing:
            return "the engine was closed before it answered"
        ending = describe_returncode(returncode)
        lines = self._peek_tail().strip().splitlines()
        if not lines:
            return f"the engine {ending}"
        return f"the engine {ending}; its last output: {lines[-1].strip()[:_LAST_LINE_CHARACTERS]}"

    def _peek_tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL_BYTES))
        return self._stderr.read().decode("utf-8", "replace")

    def _take_tail(self) -> str:
        tail = self._peek_tail()
        self._stderr.close()
        return tail

    # --- the writer thread --------------------------------------------------------------------------------

    def _write(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            while (line := self._outbox.get()) is not None:
                process.stdin.write(line)
                process.stdin.flush()
        except OSError:
            pass  # the process is gone; the reader thread sees that too, and reports it
        finally:
            _close_quietly(process.stdin)


def describe_returncode(returncode: int) -> str:
    """How a process ended, as the end of a sentence: "was killed by SIGKILL", "exited with code 3"."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    hint = " (perhaps by the system, short of memory)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def _wait_or_kill(process: subprocess.Popen[bytes], grace_s: float) -> int:
    try:
        return process.wait(grace_s)
    except subprocess.TimeoutExpired:
        _kill_group(process)
        return process.wait()


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with its children (it leads its own group), unless it is reaped already."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":  # a system without process groups
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _close_quietly(stream: IO[bytes]) -> None:
    with contextlib.suppress(OSError):
        stream.close()
