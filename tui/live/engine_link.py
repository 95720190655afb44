"""The app's connection to the engine process: started after the first paint, polled while it works, never waited for.

Events are delivered in batches: a tick that finds two hundred new tokens calls its owner once. A request is submitted
with a handler, which gets every event of that request, the terminal event last.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, cast

from textual.message import Message

from engine.generation_events import TokenGenerated
from engine.measure.own import MeasureOwnTimes, OwnTimes, OwnTimesMeasured
from engine.measure.registry import measurement_of
from engine.process.client import EngineClient
from engine.process.events import EngineExited, Failed, Generate, Loaded, Ready, ends
from engine.records import Event, Load, ModelInfo, Progress, Request

if TYPE_CHECKING:
    from textual.app import App
    from textual.timer import Timer

TICK_S, IDLE_TICK_S = 1 / 20, 1.0
"""Polling intervals: while a request is unanswered, and otherwise (to notice an engine that ends by itself)."""
_DOWNLOADING = "downloading "  # before the name of a download
Handler = Callable[[Sequence[Event]], None]


class Phase(StrEnum):
    """What the engine is doing, as the word that is shown."""

    OFF = "off"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    GENERATING = "generating"
    EVALUATING = "evaluating"
    BENCHMARKING = "benchmarking"
    STOPPED = "stopped"


def _work(request: Request) -> Phase:
    """What the engine does to answer `request`."""
    if isinstance(request, Load):
        return Phase.LOADING
    if isinstance(request, Generate):
        return Phase.GENERATING
    measurement = measurement_of(request)
    return Phase.READY if measurement is None else Phase(measurement.doing)


_BULLETS = {Phase.OFF: "○", Phase.STARTING: "◌", Phase.LOADING: "◌", Phase.READY: "●", Phase.STOPPED: "✗"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """State of the engine for display. `detail` says why it stopped or what it loads; `model` is the loaded model.

    `own`: the times of that model's own operators, if they were timed.
    """

    phase: Phase = Phase.OFF
    detail: str = ""
    model: ModelInfo | None = None
    own: OwnTimes | None = None
    pid: int | None = None

    @property
    def line(self) -> str:
        """A few words with a bullet: "● ready: two-layer", "✗ stopped: was killed"."""
        detail = self.detail or (self.model.name if self.model and self.phase is Phase.READY else "")
        return f"{_BULLETS.get(self.phase, '▶')} {self.phase}" + (f": {detail}" if detail else "")


class EngineChanged(Message):
    """The engine's status has changed; posted to the app."""

    def __init__(self, status: EngineStatus) -> None:
        super().__init__()
        self.status = status


@dataclass(slots=True)
class _Pending:
    request: Request
    handler: Handler | None


class EngineLink:
    """One engine for the whole app. Nothing here blocks but `close`."""

    def __init__(self, command: Sequence[str] | None = None) -> None:
        """`command` replaces the command that starts the engine (tests use a fake)."""
        self._client = EngineClient(command)
        self._pending: dict[int, _Pending] = {}
        self._app: App[Any] | None = None
        self._started = False
        self._ticks: Timer | None = None
        self._watchers: list[Callable[[EngineStatus], None]] = []
        self.status = EngineStatus()

    def watch(self, watcher: Callable[[EngineStatus], None]) -> None:
        """Call `watcher` with every new status."""
        self._watchers.append(watcher)

    def attach(self, app: App[Any], *, start: bool = True) -> None:
        """Tick with `app` from now on, and start the process with the bundled model. Called from the app's
        `on_ready`."""
        self._app = app
        # Everything alive now (modules, widgets, styles) stays alive. Without this, the collector would walk all of it
        # once or twice per second while tokens stream, and each walk would delay a key by 80 to 110 ms.
        gc.freeze()
        gc.enable()
        self._ticks = app.set_interval(TICK_S, self.tick)
        app.set_interval(IDLE_TICK_S, self.tick)
        if start:
            self.start()

    def start(self) -> None:
        """Start the process and let it load the bundled model, so that it is ready for the first prompt."""
        if not self._started:
            self._started = True
            self.submit(Load())

    def submit(self, request: Request, handler: Handler | None = None) -> int:
        """Send `request`; its events go to `handler` in batches, from `tick`. Starts a process if none is alive."""
        self._started = True
        self._make_way()
        starting = not self._client.alive
        request_id = self._client.submit(request)
        self._pending[request_id] = _Pending(request, handler)
        if self._ticks is not None:
            self._ticks.resume()
        awaited = starting or self.status.phase is Phase.STARTING
        self._show(phase=Phase.STARTING if awaited else self._phase(), detail="", **_forget(starting))
        return request_id

    def _make_way(self) -> None:
        """Stop measurements that only serve predictions: the new request comes first."""
        for request_id, pending in self._pending.items():
            if isinstance(pending.request, MeasureOwnTimes):
                self._client.cancel(request_id)

    def cancel(self, request_id: int | None) -> None:
        """Cancel a request; its terminal event still comes. None and ended requests are ignored."""
        if request_id is not None and request_id in self._pending:
            self._client.cancel(request_id)

    @property
    def busy(self) -> bool:
        """Whether a request is unanswered."""
        return bool(self._pending)

    @property
    def pid(self) -> int | None:
        """The process id of the engine, None when there is none."""
        return self._client.pid

    def tick(self) -> None:
        """Deliver what has come since the last call: one call per request, however many events."""
        if self._app is not None and not self._app.is_running:
            return  # the app is closing: panes no longer have the widgets that an event would change
        events = self._client.poll()
        if not self._pending and self._ticks is not None:
            self._ticks.pause()
        if not events:
            return
        batches: dict[int, list[Event]] = {}
        for event in events:
            batches.setdefault(event.request_id, []).append(event)
        for request_id, batch in batches.items():
            self._deliver(request_id, batch)

    def close(self, grace_s: float | None = None) -> None:
        """End the process, by force after `grace_s`; returns when it is gone."""
        if self._app is not None:
            gc.unfreeze()
        self._app = None
        self._watchers.clear()
        self._pending.clear()
        self._client.close(grace_s)

    # --- one request's events -----------------------------------------------------------------------------

    def _deliver(self, request_id: int, batch: list[Event]) -> None:
        pending = self._pending.get(request_id)
        over = pending is not None and ends(pending.request, batch[-1])
        if over:
            del self._pending[request_id]
        borrows = pending is not None and _borrows(pending.request)
        for event in batch:
            if not isinstance(event, TokenGenerated) or self.status.phase is Phase.LOADING:  # tokens come in thousands
                self._note(event, borrows=borrows)
        if over and not isinstance(batch[-1], EngineExited | Failed):
            self._show(phase=self._phase())
        if pending is not None and pending.handler is not None:
            pending.handler(batch)

    def _note(self, event: Event, *, borrows: bool) -> None:
        """Update the engine's own status from an event."""
        if isinstance(event, Ready):
            self._show(phase=self._phase(), pid=event.pid)
        elif isinstance(event, Loaded):
            self._show(phase=self._phase(), model=event.model, own=None, detail="")
        elif isinstance(event, OwnTimesMeasured):
            self._show(own=event.times)
        elif isinstance(event, Progress) and event.stage == "load":
            gone = {} if borrows else {"model": None, "own": None}
            self._show(phase=Phase.LOADING, detail=loading_text(event), **gone)
        elif isinstance(event, EngineExited):
            self._show(phase=Phase.STOPPED, detail=event.message, model=None, own=None, pid=None)
        elif isinstance(event, Failed):
            failed_load = self.status.model is None
            self._show(phase=self._phase(), detail=event.message if failed_load else "")
        elif self.status.phase is Phase.LOADING:  # the loaded model is at work, or the load was stopped
            self._show(phase=self._phase(), detail="")

    def _phase(self) -> Phase:
        for pending in self._pending.values():
            return _work(pending.request)
        return Phase.READY

    def _show(self, **changes: object) -> None:
        status = replace(self.status, **changes)  # type: ignore[arg-type]
        if status != self.status:
            self.status = status
            if self._app is not None:
                self._app.post_message(EngineChanged(status))
            for watcher in self._watchers:
                watcher(status)


def _borrows(request: Request) -> bool:
    """Whether `request` loads its model in addition to the held one."""
    measurement = measurement_of(request)
    return measurement is not None and measurement.borrows


def _forget(starting: bool) -> dict[str, object]:
    """Reset what is no longer true for a new process."""
    return {"model": None, "own": None, "pid": None} if starting else {}


def loading_text(progress: Progress) -> str:
    """Progress of a load: "45 % of SmolLM2.gguf", "downloading 45 % of SmolLM2.gguf". A narrow bar cuts off the
    name."""
    if not progress.total:
        return progress.detail
    name = progress.detail.removeprefix(_DOWNLOADING)
    doing = progress.detail.removesuffix(name)
    return f"{doing}{100 * progress.done // progress.total} % of {name}"


class HasEngine(Protocol):
    """The part of the app that the live panes use."""

    engine: EngineLink


def engine_of(app: object) -> EngineLink:
    """The app's engine link."""
    return cast(HasEngine, app).engine
