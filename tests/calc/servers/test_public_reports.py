"""Public reports of servers: what follows from the question is exact, and bands hold what they say they hold."""

from __future__ import annotations

import pytest

from tests.calc.servers.public_reports import Line, lines, markdown, reports

LINES = tuple(lines())


def test_every_report_is_held_against_something_or_says_why() -> None:
    assert len(reports()) == 42
    for report in reports():
        assert ("ask" in report) is ("said" in report) is not ("why" in report), report["id"]
        assert report["source"]


@pytest.mark.parametrize("line", [x for x in LINES if x.band is None], ids=lambda x: f"{x.id} {x.what}")
def test_what_follows_from_the_question_is_exact(line: Line) -> None:
    assert line.predicted == pytest.approx(line.said, rel=0.005)


@pytest.mark.parametrize("line", [x for x in LINES if x.band is not None], ids=lambda x: f"{x.id} {x.what}")
def test_bands_hold_what_was_said(line: Line) -> None:
    assert line.held, (line.said, line.predicted, line.band)


def test_the_table_for_the_document() -> None:
    text = markdown()
    assert text.count("| vllm-") + text.count("| sglang-") + text.count("| llama.cpp-") == len(LINES)
    assert ", missed" not in text
    assert "- vllm-83: host memory." in text
