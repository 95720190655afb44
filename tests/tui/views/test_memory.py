"""Grids of a memory report at the width of their card: every value beside its label, nothing cut."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from calc.commands.tables import answer_table
from calc.fit.memory import MemoryReport, memory_report
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model
from tests.tui.hybrid import hybrid
from tui.views.memory import answer_grid, tp_grid

REPORTS = {
    name: memory_report(Study(model=model, device=find_device("h100-sxm"), context=context, tps=(1, 2, 4, 8)))
    for name, model, context in (
        ("llama", find_model("llama-3-8b"), 8192),
        ("experts", find_model("deepseek-v3"), 1_048_576),
        ("states", hybrid(), 131_072),
    )
}


@given(report=st.sampled_from(sorted(REPORTS)).map(REPORTS.__getitem__), width=st.integers(20, 160))
def test_a_value_stands_under_its_label_only_where_the_two_do_not_fit(report: MemoryReport, width: int) -> None:
    lines = answer_grid(report, width).plain.split("\n")
    for name, value, *_ in answer_table(report).rows:
        short = name.partition(" (")[0]
        at = next(i for i, line in enumerate(lines) if line.startswith(short))
        if len(short) + 1 + len(value) <= width:
            assert value in lines[at]
        else:
            assert lines[at + 1].strip() == value


@given(report=st.sampled_from(sorted(REPORTS)).map(REPORTS.__getitem__), width=st.integers(27, 160))
def test_labels_are_whole_and_differ_at_every_width(report: MemoryReport, width: int) -> None:
    text = answer_grid(report, width).plain
    assert "…" not in text
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert text.count("KV cache per token") == text.count("KV cache per request") == 1


def test_what_a_narrow_card_leaves_out_comes_back_as_it_grows() -> None:
    report = REPORTS["llama"]
    assert "14.96 GiB" not in answer_grid(report, 39).plain
    assert "14.96 GiB" in answer_grid(report, 48).plain
    assert "(8,192 tokens)" not in answer_grid(report, 48).plain
    assert "KV cache per request (8,192 tokens)" in answer_grid(report, 70).plain


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("width", [49, 54, 72, 100])
def test_a_row_of_tensor_parallelism_is_one_line(name: str, width: int) -> None:
    """49 cells: what the card has on the narrowest screen that shows it, 160 cells wide."""
    report = REPORTS[name]
    lines = tp_grid(report, width).plain.split("\n")
    rows = report.tp_tables[Policy.EQUAL_SPLIT]
    assert [line.split()[0] for line in lines[-len(rows) :]] == [str(row.tp) for row in rows]
    assert all(cell_len(line) <= width for line in lines)


def test_the_rows_of_both_rules_stand_in_their_columns() -> None:
    study = replace(REPORTS["llama"].study, tps=(1, 16))
    report = memory_report(study)
    lines = tp_grid(report, 80).plain.split("\n")
    assert lines[-3].split()[0] == "TP"
    free = study.device.memory_bytes - 16_060_522_496 // 16
    equal = free // 2**26  # 2^30 bytes per request, a sixteenth of them here
    whole = report.tp_tables[Policy.REPLICATED][1].max_batch
    assert whole < equal // 2 + 1  # one KV head of eight: an eighth, and its projections as well
    assert lines[-1].split() == [
        "16", "1.00", "GB", "67.11", "MB", f"{equal:,}", "1.04", "GB", "134.22", "MB", f"{whole:,}",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [30, 44, 60])
def test_the_devices_of_the_largest_batch_are_said_in_every_width(width: int) -> None:
    report = memory_report(Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"), tps=(4,)))
    assert "(TP 4)" in answer_grid(report, width).plain
