"""evaluate and kv-evaluate: the engine's logits against expected ones, and those with the cache against both."""

import math
from typing import Literal

import msgspec

from engine.errors import OptionError
from engine.measure.measurement import Measurement, PlainTable, plain_document
from engine.measure.options import DEVICE, DTYPE, MODEL_HELP, Option
from engine.records import Device, DType, MeasurementFinished, Request, RowMeasured


class Evaluate(Request, frozen=True, kw_only=True):
    """Compare logits with a file of expected ones. None stands for the bundled weights, cases, tolerance.

    `cached` also runs every case with the KV cache (whole prompt, token by token, in chunks): kv-evaluate.
    """

    weights: str | None = None
    cases: str | None = None
    atol: float | None = None
    dtype: DType = "float64"
    cached: bool = False
    device: Device = "auto"


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation case. Errors are max |logit - expected|; None is "not run", or not a finite number."""

    case: int
    prompt_tokens: int
    passed: bool
    max_abs_error: float | None
    cache_max_abs_error: float | None = None
    sequential_max_abs_error: float | None = None
    chunked_max_abs_error: float | None = None


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True):
    """All cases. `passed` is true only if there is a case and every case passed."""

    command: Literal["evaluate", "kv-evaluate"]
    weights: str
    dtype: str
    atol: float
    passed: bool
    cases: tuple[CaseResult, ...]


class CaseEvaluated(RowMeasured, frozen=True, kw_only=True):
    """One case of an `Evaluate` is done."""

    case: CaseResult

    @property
    def row(self) -> CaseResult:
        """The case: a measurement's row."""
        return self.case


class EvaluationFinished(MeasurementFinished, frozen=True, kw_only=True):
    """Ends an `Evaluate`."""

    result: EvaluationResult


def check(request: Evaluate) -> None:
    """Raise `OptionError` for an impossible tolerance."""
    if request.atol is not None:
        check_atol(request.atol)


def check_atol(atol: float) -> None:
    """Raise OptionError unless it is a number of at least 0."""
    if not 0 <= atol < math.inf:
        raise OptionError("atol", f"atol is {atol}; it must be a number of at least 0")


def table(result: EvaluationResult) -> PlainTable:
    """A row per case, the verdict last."""
    cached = result.command == "kv-evaluate"
    n_passed = sum(case.passed for case in result.cases)
    verdict = "passed" if result.passed else "FAILED"
    return PlainTable(
        title=f"{result.command} {result.weights}",
        header=(
            "case",
            "tokens",
            "result",
            "max error",
            *(("with cache", "one by one", "in chunks") if cached else ()),
        ),
        rows=tuple(_cells(case, cached=cached) for case in result.cases),
        after=(f"{verdict}: {n_passed} of {len(result.cases)} cases within {result.atol:g} in {result.dtype}",),
    )


def _cells(case: CaseResult, *, cached: bool) -> tuple[str, ...]:
    errors = [case.max_abs_error]
    if cached:
        errors += [case.cache_max_abs_error, case.sequential_max_abs_error, case.chunked_max_abs_error]
    shown = ["-" if error is None else f"{error:.2e}" for error in errors]
    return (str(case.case), f"{case.prompt_tokens:,}", "passed" if case.passed else "FAILED", *shown)


OPTIONS = (
    Option(
        name="weights",
        flags=("--weights", "--model", "--model_state_dict", "--model-state-dict"),
        field="weights",
        metavar="FILE",
        help=MODEL_HELP,
    ),
    Option(
        name="cases",
        flags=("--cases", "--test_cases", "--test-cases"),
        field="cases",
        metavar="FILE",
        help="JSON (default: the bundled cases)",
    ),
    Option(
        name="atol",
        flags=("--atol",),
        field="atol",
        read=float,
        write="{:g}".format,
        metavar="X",
        help="largest absolute error that passes",
    ),
    DTYPE,
    DEVICE,
)


def _measurement(name: str, order: int, summary: str, description: str, *, cached: bool) -> Measurement:
    return Measurement(
        name=name,
        order=order,
        summary=summary,
        description=description,
        doing="evaluating",
        request=Evaluate,
        fixed={"cached": cached},
        row=CaseEvaluated,
        finished=EvaluationFinished,
        options=OPTIONS,
        check=check,
        key=lambda case: case.case,
        document=plain_document,
        table=table,
        rows=lambda result: tuple(result.cases),
        borrows=True,
        passed=lambda result: bool(result.passed),
    )


MEASUREMENTS = (
    _measurement(
        "evaluate",
        1,
        "logits against the expected ones",
        "Compare the logits after each prompt with the expected ones.",
        cached=False,
    ),
    _measurement(
        "kv-evaluate",
        2,
        "the same with the cache, and cached against uncached",
        "Evaluate again with the KV cache: the whole prompt at once, token by token, and in chunks.",
        cached=True,
    ),
)
