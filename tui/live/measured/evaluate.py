"""evaluate and kv-evaluate as the app shows them: errors per case, with the worst compared with the tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import TYPE_CHECKING

from calc.commands.tables import KEPT, Column, Table
from calc.units import Quantity, format_count
from engine.measure.kinds.evaluate import CaseResult, Evaluate
from engine.measure.registry import MEASUREMENTS
from tui.form.sampling import DTYPE_HELP, read_atol, read_path
from tui.live.presentation import DialField, Presentation, TextField

if TYPE_CHECKING:
    from tui.live.measurement import Job

FORM = (
    (TextField(name="weights", label="weights", read=read_path, placeholder="bundled model"),),
    (TextField(name="cases", label="cases  ", read=read_path, placeholder="bundled cases"),),
    (
        TextField(name="atol", label="tolerance", read=read_atol, placeholder="for dtype", width=12),
        DialField(name="dtype", label="dtype", choices=("float64", "float32"), value="float64", help=DTYPE_HELP),
    ),
)


def table(job: Job) -> Table:
    """A row per case, with the tolerance once it is known: the engine's, or the requested one."""
    asked = job.request.atol if isinstance(job.request, Evaluate) else None
    atol = asked if job.result is None else job.result.atol
    return evaluation_table(job.rows, cached=job.name == "kv-evaluate", atol=atol)


def data_table(job: Job) -> Table:
    """The same without the bar."""
    return evaluation_table(job.rows, cached=job.name == "kv-evaluate")


def outcome(job: Job) -> str:
    """How many cases pass, and the worst error."""
    return verdict(job.result.cases, atol=job.result.atol)


PASSED, FAILED = "✓", "✗"


ERROR_FLOOR = 1e-16
"""The start of the logarithmic error bar: no float64 computation agrees better."""


CHECKS = (
    ("error", "max_abs_error"),
    ("cached", "cache_max_abs_error"),
    ("stepwise", "sequential_max_abs_error"),
    ("chunks", "chunked_max_abs_error"),
)
"""Headings and fields of the errors; evaluate has only the first."""


BAR = 16
"""Cells of an error's bar."""


def error_text(value: float | None) -> str:
    """An error as text; a dash if the check was not run."""
    return "–" if value is None else Quantity(f"{value:.1e}", value)


def worst_error(case: CaseResult) -> float | None:
    """The largest error of a case over all checks that ran."""
    errors = (case.max_abs_error, case.cache_max_abs_error, case.sequential_max_abs_error, case.chunked_max_abs_error)
    return max((e for e in errors if e is not None), default=None)


def error_bar(value: float | None, *, atol: float, width: int) -> str:
    """The error relative to the tolerance, on a logarithmic scale: ``▐`` is the tolerance itself."""
    limit = max(4, width - 1)
    if value is None:
        return " " * limit + "▐"
    span = log10(atol / ERROR_FLOOR) if atol > ERROR_FLOOR else 1.0
    share = log10(max(value, ERROR_FLOOR) / ERROR_FLOOR) / span
    if value > atol:
        return "━" * limit + "▐▶"
    filled = min(limit, max(0, round(share * limit)))
    return "━" * filled + "┄" * (limit - filled) + "▐"


def evaluation_table(cases: Sequence[CaseResult], *, cached: bool, atol: float | None = None) -> Table:
    """A row per case: passed or not, tokens, errors; and the worst relative to the tolerance as a bar, if it is
    known."""
    checks = CHECKS if cached else CHECKS[:1]
    columns = [Column(""), Column("Case", numeric=True), Column("Tokens", numeric=True, priority=1)]
    columns += [Column(name, numeric=True, priority=KEPT if name == "error" else 3) for name, _ in checks]
    columns += [Column("cached − uncached", numeric=True, priority=4)] if cached else []
    columns += [] if atol is None else [Column(f"to {atol:g} (log)", priority=2)]
    return Table(
        title="kv-evaluate" if cached else "evaluate",
        columns=columns,
        rows=[_case_cells(case, checks, cached=cached, atol=atol) for case in cases],
    )


def _case_cells(
    case: CaseResult, checks: Sequence[tuple[str, str]], *, cached: bool, atol: float | None
) -> tuple[str, ...]:
    worst = worst_error(case)
    return (
        f"{PASSED} pass" if case.passed else f"{FAILED} FAIL",
        format_count(case.case),
        format_count(case.prompt_tokens),
        *(error_text(getattr(case, key)) for _, key in checks),
        *((error_text(case.max_abs_difference),) if cached else ()),
        *(() if atol is None else (error_bar(worst, atol=atol, width=BAR),)),
    )


def verdict(cases: Sequence[CaseResult], *, atol: float | None, total: int | None = None) -> str:
    """``✓ 5 of 5 cases pass; the worst error is 3.1e-12, 1/32,000 of the tolerance 1e-04``."""
    passed = sum(case.passed for case in cases)
    mark = PASSED if cases and passed == len(cases) else FAILED
    worst = max((e for case in cases if (e := worst_error(case)) is not None), default=None)
    text = f"{mark} {passed} of {total or len(cases)} cases pass"
    if worst is None:
        return text
    text += f"; the worst error is {worst:.1e}"
    return text if atol is None else f"{text}, the tolerance {atol:g}"


def _presentation(name: str, title: str, hint: str, key: str, explanation: str) -> Presentation:
    return Presentation(
        measurement=MEASUREMENTS[name],
        title=title,
        hint=hint,
        key=key,
        button=name,
        help=explanation,
        side="evaluation",
        place="evaluate",
        form=FORM,
        table=table,
        data_table=data_table,
        outcome=outcome,
    )


PRESENTATIONS = (
    _presentation(
        "evaluate",
        "Evaluate",
        "Compare the engine's logits with the expected ones",
        "e",
        "compares the engine's logits with the expected ones, case by case.",
    ),
    _presentation(
        "kv-evaluate",
        "Evaluate again with the KV cache",
        "Also compare logits with and without the cache",
        "k",
        "evaluates again with the KV cache, and compares cached with uncached: the whole prompt at once, token by "
        "token, and in chunks.",
    ),
)
