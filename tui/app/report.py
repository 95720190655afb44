"""The app's report, with this session's measurements or with new ones made in the background."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from textual.app import App
from textual.worker import Worker, get_current_worker

from calc.errors import SourceError
from calc.files import write_whole
from engine.errors import EngineError, EngineFailure
from engine.process.client import EngineClient
from engine.records import Event
from tui.form.state import AppState
from tui.live.measurement import Job
from tui.report.command import renderer_for
from tui.report.content import build_report
from tui.report.measure import measure
from tui.report.measured_part import Measurements


def measured_in(jobs: Mapping[str, Job]) -> Measurements | None:
    """The measurements of the latest finished jobs, by name; None if the report uses none of them."""
    evaluate, kv_evaluate, benchmark = (jobs.get(name) for name in ("evaluate", "kv-evaluate", "benchmark"))
    if evaluate is kv_evaluate is benchmark is None:
        return None
    return Measurements(
        evaluate=None if evaluate is None else evaluate.result,
        kv_evaluate=None if kv_evaluate is None else kv_evaluate.result,
        benchmark=None if benchmark is None else benchmark.result,
        model=None if benchmark is None else benchmark.model,
    )


def measured_report(app: App[None], state: AppState, path: Path) -> None:
    """Measure with a separate engine, write the report of `state`, and report success or failure.

    Runs in a thread.
    """
    worker = get_current_worker()
    try:
        with EngineClient() as client:
            measured = measure(client, watch=partial(_go_on, worker))
        write_whole(path, renderer_for(path)(build_report(state, measured)))
    except (EngineError, SourceError) as error:
        if not worker.is_cancelled:
            app.call_from_thread(app.notify, f"{path} has no new measurements: {error}", severity="error", markup=False)
        return
    app.call_from_thread(app.notify, f"Wrote {path} with its measurements.", markup=False)


def _go_on(worker: Worker[None], event: Event) -> None:
    """Stop between two runs when the app closes."""
    if worker.is_cancelled:
        raise EngineFailure(f"The app was closed after {type(event).__name__}.")
