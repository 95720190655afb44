"""The command behind docs/accuracy.md: how answers are counted, and that it writes the document."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.accuracy import CONFIG_OF, Tally, document, file_pairs, from_file, run_cases, table

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


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collected data is not beside the project")
def test_the_document_says_what_was_measured() -> None:
    text = document(SHARED, None)
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
