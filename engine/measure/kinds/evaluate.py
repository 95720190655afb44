"""evaluate and kv-evaluate: the engine's logits compared with expected ones, and those with the cache compared with
both."""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from engine.errors import OptionError
from engine.measure.measurement import Measurement, PlainTable, plain_document
from engine.measure.options import DEVICE, DTYPE, MODEL_HELP, N_HEADS, Option
from engine.records import Device, DType, MeasurementFinished, Request, RowMeasured
from engine.text import plural


class Evaluate(Request, frozen=True, kw_only=True):
    """Compare logits with a file of expected ones. None means the bundled weights or cases, or the default tolerance.

    `cached` also runs every case with the KV cache (whole prompt, token by token, in chunks): kv-evaluate.
    """

    weights: str | None = None
    cases: str | None = None
    atol: float | None = None
    dtype: DType = "float64"
    cached: bool = False
    device: Device = "auto"
    n_heads: int | None = None
    """Attention heads for weights in the assignment's format, which do not state it; None: one."""


class CaseResult(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation case; None is "not run", or not a finite number.

    An error is max |logit - expected|, of a way with the cache the larger of it and its difference: max |cached -
    uncached|, in which the rounding of the expected logits has no part.
    """

    case: int
    prompt_tokens: int
    passed: bool
    max_abs_error: float | None
    cache_max_abs_error: float | None = None
    sequential_max_abs_error: float | None = None
    chunked_max_abs_error: float | None = None
    cache_max_abs_difference: float | None = None
    sequential_max_abs_difference: float | None = None
    chunked_max_abs_difference: float | None = None

    @property
    def max_abs_difference(self) -> float | None:
        """The largest difference between cached and uncached; None where the cache was not run."""
        found = (self.cache_max_abs_difference, self.sequential_max_abs_difference, self.chunked_max_abs_difference)
        return max((value for value in found if value is not None), default=None)


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True):
    """All cases. `passed` is true only if there is a case and every case passed.

    `expected_decimals`: decimals that the expected logits are written with, which bounds how exact they are.
    """

    command: Literal["evaluate", "kv-evaluate"]
    weights: str
    dtype: str
    atol: float
    passed: bool
    cases: tuple[CaseResult, ...]
    expected_decimals: int | None = None
    notes: tuple[str, ...] = ()


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


def rounding_note(decimals: int | None) -> tuple[str, ...]:
    """How exact the expected logits are, in a sentence; empty if unknown."""
    if decimals is None:
        return ()
    return (
        f"The expected logits have {plural(decimals, 'decimal')}, so their own rounding error is up to "
        f"{0.5 / 10**decimals:.0e}: an error of that size is their rounding.",
    )


def difference_note(cases: Sequence[CaseResult]) -> tuple[str, ...]:
    """The difference of cached and uncached logits, in a sentence; empty if the cache was not run."""
    found = [value for case in cases if (value := case.max_abs_difference) is not None]
    if not found:
        return ()
    return (f"Logits with and without the cache differ by at most {max(found):.1e}, computed in the same run.",)


def tolerance_note(dtype: str, atol: float) -> tuple[str, ...]:
    """A warning on errors besides rounding that a tolerance lets through; empty in float64, where it is small."""
    if dtype == "float64":
        return ()
    return (
        f"A tolerance of {atol:g} is for the rounding of {dtype}, which moved the assignment's logits by up to 6e-03 "
        "at 128 tokens. It also lets small faults through: a norm epsilon of 1e-6 instead of 1e-5 moves them by 7e-04. "
        "Evaluate in float64, where the tolerance is 1e-04, to prove that logits are right.",
    )


def table(result: EvaluationResult) -> PlainTable:
    """A row per case, then the verdict and the notes."""
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
            *(("with cache", "one by one", "in chunks", "cached - uncached") if cached else ()),
        ),
        rows=tuple(_cells(case, cached=cached) for case in result.cases),
        after=(
            f"{verdict}: {n_passed} of {len(result.cases)} cases within {result.atol:g} in {result.dtype}",
            *result.notes,
        ),
    )


def _cells(case: CaseResult, *, cached: bool) -> tuple[str, ...]:
    errors = [case.max_abs_error]
    if cached:
        errors += [case.cache_max_abs_error, case.sequential_max_abs_error, case.chunked_max_abs_error]
        errors.append(case.max_abs_difference)
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
        help="largest absolute error that passes (default 1e-4 in float64, 2e-2 in float32)",
    ),
    DTYPE,
    DEVICE,
    N_HEADS,
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
        refusals={
            "threads": "it measures no time",
            "compile": "it checks the layers themselves, without the compiled step",
            "tp": "it runs in one process",
        },
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
        "compare logits with the expected ones",
        "Compare the logits after each prompt with the expected ones.",
        cached=False,
    ),
    _measurement(
        "kv-evaluate",
        2,
        "the same with the cache, and cached compared with uncached",
        "Evaluate again with the KV cache: the whole prompt at once, token by token, and in chunks.",
        cached=True,
    ),
)
