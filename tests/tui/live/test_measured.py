"""Results as tables: marks, errors, the logarithmic bar, the spread."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from calc.commands.render import laid_out
from calc.commands.tables import Table
from engine.measure.kinds.evaluate import CaseResult, Evaluate, EvaluationFinished, EvaluationResult
from engine.measure.registry import MEASUREMENTS
from engine.process.events import Failed
from engine.records import Cancelled
from tests.records import batch_row
from tests.tui.charts.test_plots import row
from tests.tui.live.test_predict import INFO
from tui.live.measured import PRESENTATIONS
from tui.live.measured.batch import batch_table
from tui.live.measured.benchmark import benchmark_table
from tui.live.measured.evaluate import error_bar, evaluation_table, verdict
from tui.live.measurement import Job, JobState
from tui.live.predict import predicted_batches
from tui.live.presentation import plain_presentation
from tui.live.result_text import spread_text


def case(number: int, error: float | None, *, passed: bool = True) -> CaseResult:
    return CaseResult(case=number, prompt_tokens=8, passed=passed, max_abs_error=error)


@pytest.mark.parametrize(
    ("error", "bar"),
    [
        (1e-16, "┄┄┄┄┄┄┄┄┄┄┄┄▐"),
        (1e-10, "━━━━━━┄┄┄┄┄┄▐"),
        (1e-4, "━━━━━━━━━━━━▐"),
        (2e-4, "━━━━━━━━━━━━▐▶"),
        (0.0, "┄┄┄┄┄┄┄┄┄┄┄┄▐"),
        (None, "            ▐"),
    ],
)
def test_the_bar_reaches_the_tolerance_on_a_logarithmic_scale(error: float | None, bar: str) -> None:
    assert error_bar(error, atol=1e-4, width=13) == bar


def test_a_failed_case_is_said_in_a_word_and_a_mark() -> None:
    table = evaluation_table([case(0, 1e-9), case(1, 0.5, passed=False)], cached=False, atol=1e-4)
    assert [r[0] for r in table.rows] == ["✓ pass", "✗ FAIL"]
    assert table.rows[1][-1].endswith("▶")
    assert verdict([case(0, 1e-9), case(1, 0.5, passed=False)], atol=1e-4).startswith("✗ 1 of 2 cases pass")


def test_checks_that_did_not_run_are_dashes() -> None:
    table = evaluation_table([case(3, 1e-9)], cached=True)
    assert table.cells == (("✓ pass", "3", "8", "1.0e-09", "–", "–", "–", "–"),)


def drawn(table: Table, width: int) -> list[str]:
    """Headings of the columns that are drawn in `width`."""
    layout = laid_out(table, width)
    assert layout is not None
    return [table.headings[i] for i in layout.columns]


def test_a_narrow_table_of_cases_keeps_the_error() -> None:
    cases = [
        CaseResult(
            case=1,
            prompt_tokens=8,
            passed=True,
            max_abs_error=1e-9,
            cache_max_abs_error=3e-8,
            sequential_max_abs_error=2e-9,
            chunked_max_abs_error=1e-9,
            cache_max_abs_difference=2e-14,
            sequential_max_abs_difference=5e-14,
        )
    ]
    table = evaluation_table(cases, cached=True, atol=1e-4)
    assert drawn(table, 100) == list(table.headings)
    assert drawn(table, 60)[-4:] == ["cached", "stepwise", "chunks", "cached − uncached"]
    assert drawn(table, 25) == ["", "Case", "error"]
    assert table.rows[0][7] == "5.0e-14"


def test_an_evaluation_without_cases_does_not_pass() -> None:
    assert verdict([], atol=1e-4).startswith("✗")


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(0.0201, 0.0203, "20.1–20.3 ms"), (0.0009, 0.0011, "900 µs–1.10 ms"), (59.0, 65.0, "59 s–1 min 05 s")],
)
def test_spread(low: float, high: float, text: str) -> None:
    assert spread_text(low, high) == text


def test_a_benchmark_row_reads_its_own_fields() -> None:
    table = benchmark_table([row(100, 0.010, 0.050)], new_tokens=40)
    assert table.title == "Latency sweep, 40 new tokens"
    assert table.cells == (
        ("100", "10.0 ms", "10.0–10.0 ms", "50.0 ms", "50.0–50.0 ms", "5.00x", "10.0 ms", "–", "–", "–", "0 B"),
    )


def test_batches_stand_measured_beside_predicted() -> None:
    rows = [batch_row(1, 0.010), batch_row(2, 0.0125), batch_row(32, 0.040)]
    predicted = predicted_batches(INFO, rows, prefill_tokens=256, prefill_s=0.256)
    table = batch_table(rows, predicted)
    assert [row[:6] for row in table.rows] == [
        ("1", "100.0", "100.0", "1.00", "1.00x", "1.00x"),
        ("2", "160.0", "198.3", "0.81", "1.60x", "1.98x"),
        ("32", "800.0", "872.3", "0.92", "8.00x", "8.72x"),
    ]
    assert [row[6] for row in table.rows] == ["memory", "memory", "arithmetic"]
    alone = batch_table(rows, None)
    assert alone.rows[1][:7] == ("2", "160.0", "–", "–", "1.60x", "–", "–")
    assert drawn(table, 55)[:5] == [  # half of 120 columns
        "Batch", "Tokens/s: ● measured", "Tokens/s: predicted", "Tokens/s: ● / pred.", "Rise: ● measured",
    ]  # fmt: skip
    assert batch_table([], None).rows == ()


def test_every_measurement_is_presented_by_a_module_of_its_own_name() -> None:
    """Nothing lists them: the modules of engine and app are found by the same name."""
    offered = ["evaluate", "kv-evaluate", "benchmark", "batch", "formats", "machine"]
    assert list(PRESENTATIONS) == list(MEASUREMENTS) == offered
    keys = [presentation.key for presentation in PRESENTATIONS.values()]
    assert len(set(keys)) == len(keys)
    for measurement in MEASUREMENTS.values():
        assert find_spec(f"engine.measure.runners.{measurement.module}") is not None
        assert find_spec(f"tui.live.measured.{measurement.module}") is not None


def test_a_measurement_without_a_module_here_shows_its_plain_table() -> None:
    presentation = plain_presentation(MEASUREMENTS["evaluate"])
    job = Job(Evaluate())
    assert presentation.table(job).rows == ()
    result = EvaluationResult(
        command="evaluate", weights="w", dtype="float64", atol=1e-4, passed=True, cases=(case(0, 1e-9),)
    )
    job.feed([EvaluationFinished(result=result)])
    table = presentation.table(job)
    assert [column.name for column in table.columns] == ["case", "tokens", "result", "max error"]
    assert [tuple(row) for row in table.rows] == [("0", "8", "passed", "1.00e-09")]


def test_a_job_knows_how_it_ended() -> None:
    ends = {
        JobState.PASSED: EvaluationFinished(result=evaluation(passed=True)),
        JobState.FAILED: EvaluationFinished(result=evaluation(passed=False)),
        JobState.STOPPED: Cancelled(),
    }
    for state, event in ends.items():
        job = Job(Evaluate())
        assert not job.over
        job.feed([event])
        assert (job.state, job.over, job.failed) == (state, True, state is JobState.FAILED)
    crashed = Job(Evaluate())
    crashed.feed([Failed(kind="engine", message="no room")])
    assert (crashed.state, crashed.outcome) == (JobState.FAILED, "✗ no room")


def evaluation(*, passed: bool) -> EvaluationResult:
    return EvaluationResult(
        command="evaluate",
        weights="w",
        dtype="float64",
        atol=1e-4,
        passed=passed,
        cases=(case(0, 1e-9, passed=passed),),
    )
