"""The state of a run, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len

from engine.measure.kinds.formats import Formats
from engine.text import plural
from tui.form.sampling import new_tokens_text
from tui.live.engine_link import EngineStatus, Phase
from tui.live.generation import Generation
from tui.live.measurement import Job


def waiting_line(status: EngineStatus, *, cache_on: bool) -> str:
    """The line before the first run."""
    if status.phase is Phase.STOPPED:
        return f"✗ the engine stopped: {status.detail}"
    return f"Press Enter to generate (KV cache {'on' if cache_on else 'off'})"


def run_line(run: Generation, status: EngineStatus, *, rate: str) -> str:
    """The progress of `run`, or how it ended; `rate`: its tokens per second."""
    if run.problem is not None:
        return f"✗ {run.problem}"
    if run.over:
        return f"{plural(len(run.ids), 'token')} · {rate} · {run.outcome}"
    if run.start_ns is None and status.phase is Phase.LOADING:
        return f"▶ loading {status.detail} · Esc to stop"
    if run.start_ns is None:
        return f"waiting for the engine ({status.line})"
    tokens = f"{len(run.ids):,} of {new_tokens_text(run.request.max_new_tokens)} tokens"
    return f"▶ {tokens} · {rate} · Esc to stop"


def comparison_lines(job: Job, status: EngineStatus) -> tuple[str, str]:
    """The progress of a comparison with float32, with and without what is compared."""
    line = f"{job.progress_line or f'waiting for the engine ({status.line})'} · Esc to stop"
    what = job.request.choices[-1].dtype if isinstance(job.request, Formats) else ""
    return f"{what} against float32: {line}", line


def fitting(lines: Sequence[str], width: int) -> str:
    """The first of `lines`, longest first, that fits; the last one if none does."""
    return next((line for line in lines if cell_len(line) <= width), lines[-1])
