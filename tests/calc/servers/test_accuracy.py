"""The command behind docs/accuracy.md: how answers are counted, and that it writes the document."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.accuracy import document, findings
from bench.accuracy_files import Case, Kind, gguf_files, our_gguf, rows
from bench.accuracy_servers import CONFIG_OF, file_pairs, from_file
from bench.questions import Verdict, answered, check, value_at
from bench.server_logs import run_cases
from bench.tally import Tally, table

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases" / "calc"
SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"


def test_answers_are_counted_by_their_error() -> None:
    tally = Tally()
    for answer in (1000, 1000.0001, 1005, 1200, None):
        tally.add(answer, 1000)
    assert (tally.answered, tally.exact, tally.close, tally.wrong, tally.refused) == (4, 2, 1, 1, 1)
    assert tally.cells() == ["4", "2", "1", "1", "1", "20 %"]
    nothing = Tally()
    nothing.add(0, 0)
    nothing.add(5, 0)
    assert (nothing.exact, nothing.wrong) == (1, 1)


def test_a_table_in_markdown() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_a_cell_of_the_summary() -> None:
    tally = Tally()
    assert tally.short() == "–"
    for answer in (100, 100.5, 90, None):
        tally.add(answer, 100)
    assert tally.short() == "1 / 1 / 1 / 1"


DOCUMENT = {
    "pool": 4 * 2**30,
    "band": [3 * 2**30, 5 * 2**30],
    "fits": True,
    "tp": [{"tp": 1, "b": 2}, {"tp": 2, "b": 5}],
}


def test_values_are_found_by_their_path() -> None:
    assert value_at(DOCUMENT, "tp[tp=2].b") == 5
    assert value_at(DOCUMENT, "tp[].b") == 7
    assert value_at(DOCUMENT, "tp[tp=3].b") is None
    assert value_at(DOCUMENT, "engine.pool") is None


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"right": "4.00"}, Verdict.EXACT),
        ({"right": "3.97"}, Verdict.CLOSE),
        ({"right": "3.9"}, Verdict.WRONG),
        ({"right": "3.9", "about": True}, Verdict.EXACT),
        ({"right": "3.9", "band": "band"}, Verdict.IN_BAND),
        ({"right": "2.9", "band": "band"}, Verdict.WRONG),
        ({"right": "2", "unit": "", "at": "tp[tp=1].b", "band": "band", "band_per": "pool"}, Verdict.EXACT),
        ({"right": "3.5", "to": "4.0"}, Verdict.EXACT),
        ({"right": "4.1", "to": "4.5"}, Verdict.WRONG),
    ],
)
def test_a_number_against_what_is_right(rule: dict[str, object], verdict: Verdict) -> None:
    assert check({"what": "pool", "at": "pool", "unit": "GiB", **rule}, DOCUMENT).verdict is verdict


def test_words_and_refusals() -> None:
    rule = {"what": "it fits", "at": "fits", "right": False}
    assert check(rule, DOCUMENT).verdict is Verdict.WRONG
    assert check(rule, None).verdict is Verdict.REFUSED
    assert check({**rule, "at": "missing"}, DOCUMENT).verdict is Verdict.REFUSED


@pytest.mark.slow
def test_public_questions() -> None:
    """Those that are wrong or refused say why."""
    for question in answered():
        assert question.verdict < Verdict.WRONG or question.cause, question.id


def test_gguf_headers_against_llama_cpp() -> None:
    with gguf_files() as cases:
        dense = [case for case in cases if case.path.stem in ("llama", "gemma3", "qwen35")]
        (row,) = rows(Kind("gguf", "bytes", "cache", 65_536, dense, our_gguf), None, {})
    assert (row.first.exact, row.second.exact) == (3, 3)


def test_a_case_without_a_truth_is_not_counted() -> None:
    kind = Kind("config", "parameters", "cache", 8192, [Case(Path("x.json"), (7, None))], lambda path, case: (7, 1))
    (row,) = rows(kind, None, {})
    assert (row.first.answered, row.second.answered) == (1, 0)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the collected data is not beside the project")
def test_the_document_says_what_was_measured() -> None:
    text = document(findings(SHARED, CASES, None, "2026-11-30"))
    assert "offline, on 2026-11-30" in text
    assert "| **kvscope** | 71 | 71 | 0 | 0 | 0 | 0 % |" in text
    assert "| tokens | 43 | 43 | 0 | 0 | 3 |" in text


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collected data is not beside the project")
def test_runs_from_the_config_file_itself() -> None:
    pairs = file_pairs(SHARED, run_cases(SHARED / "vllm_h100_runs.csv"))
    assert len(pairs) == len(CONFIG_OF)
    for case, path in pairs:
        report = from_file(case, path)
        assert report is not None
        assert report.kv_tokens == pytest.approx(case.measured("kv_cache_tokens"), rel=0.01), case.id
        # The collected Gemma 3 configs state 163,840 positions, the published ones 131,072: longer rotary tables.
        allowed = 0.016 if "gemma-3" in case.study.model.name else 0.005
        assert report.weight_bytes_per_gpu / 2**30 == pytest.approx(case.measured("weight_memory_gib"), rel=allowed)
