"""calc.commands.tables: cells are the report's numbers, sums sum, and a derivation reads as a true equation."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given

from calc.commands import intensity_tables, tables
from calc.commands.render import as_csv
from calc.explain.terms import derive
from calc.fit.memory import equal_share, memory_report
from calc.intensity.attention import Attention, Phase, phase_cost
from calc.intensity.study import IntensityQuery, intensity_report
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.sources.catalog import devices, search_devices, search_models
from calc.units import Quantity
from tests.calc.intensity.test_study import queries
from tests.calc.strategies import LLAMA, QUICK, device, read_text, studies

GB = 10**9


def llama(memory_bytes=80 * GB, **changes):
    return memory_report(Study(model=LLAMA, device=device(memory_bytes), **changes))


def whole(text):
    return int(text.replace(",", ""))


def test_the_assignments_table():
    table = tables.answer_table(llama())
    assert table.cells == (
        ("Total parameters", "8,030,261,248", "", ""),
        ("Parameter memory", "16.06 GB", "14.96 GiB", ""),
        ("KV cache per token", "131,072 B", "", ""),
        ("KV cache per request (8,192 tokens)", "1.07 GB", "1.00 GiB", ""),
        ("Max batch size possible", "59", "", ""),
    )


def test_the_assignments_table_as_numbers():
    assert as_csv(tables.answer_table(llama())).splitlines() == [
        "Quantity,Value,Unit,Note",
        "Total parameters,8030261248,,",
        "Parameter memory,16060522496,B,",
        "KV cache per token,131072,B,",
        '"KV cache per request (8,192 tokens)",1073741824,B,',
        "Max batch size possible,59,,",
    ]


@QUICK
@given(studies())
def test_every_row_of_the_answer_begins_with_the_step_that_gives_its_number(study):
    report = memory_report(study)
    for row in tables.answer_table(report).rows:
        assert isinstance(row[1], Quantity)
        if row.terms[0].unit == "B" and row.title.startswith("Max batch"):  # what is missing for one request
            assert row.remark
            assert row[1] == "0"
        else:
            assert row[1].value == math.ceil(row.terms[0].value) or row[1].value == row.terms[0].value


@QUICK
@given(studies())
def test_every_row_of_the_components_rests_on_the_steps_that_count_it(study):
    """Layer by layer steps times the layers, and the others once, give the row's own number."""
    report = memory_report(study)
    for row in tables.component_table(report).rows[:-1]:
        counted = sum(t.value * (study.model.n_layers if t.name.endswith("(per layer)") else 1) for t in row.terms)
        assert counted == row[1].value
    total = tables.component_table(report).rows[-1]
    assert total.strong
    assert total.terms[0].value == total[1].value


@QUICK
@given(studies())
def test_every_row_of_the_parallel_table_rests_on_both_rules(study):
    report = memory_report(study)
    for i, row in enumerate(tables.tp_table(report).rows):
        equal, whole = (report.tp_tables[policy][i] for policy in (Policy.EQUAL_SPLIT, Policy.REPLICATED))
        assert [t.value for t in row.terms] == [
            t.value for steps in (equal.steps, whole.steps) for t in (steps[-1], *steps[:-1])
        ]
        assert row.struck == bool(equal.problem) == bool(row.remark)


def test_the_assignments_table_where_nothing_fits():
    assert tables.answer_table(llama(GB)).cells[-1] == ("Max batch size possible", "0", "", "does not fit")


@QUICK
@given(studies())
def test_components_sum_to_the_last_row(study):
    rows = tables.component_table(memory_report(study)).rows
    assert sum(whole(row[1]) for row in rows[:-1]) == whole(rows[-1][1])
    assert sum(float(row[2].rstrip("%")) for row in rows[:-1]) == pytest.approx(100, abs=0.05 * len(rows))
    assert rows[-1][2] == "100.0%"


def test_tensor_parallel_rows():
    table = tables.tp_table(llama(tps=(1, 3, 16)))
    assert table.cells == (
        ("1", "16.06 GB", "1.07 GB", "59", "16.06 GB", "1.07 GB", "59", ""),
        ("3", "5.35 GB", "357.91 MB", "208", "–", "–", "–", "32 query heads are not divisible by 3"),
        ("16", "1.00 GB", "67.11 MB", "1,177", "1.04 GB", "134.22 MB", "588", ""),
    )
    assert [row.struck for row in table.rows] == [False, True, False]
    assert len(set(table.headings)) == len(table.headings)


def test_a_row_that_does_not_fit():
    assert tables.tp_table(llama(10 * GB, tps=(1,))).rows[0][3:] == ("–", "16.06 GB", "1.07 GB", "–", "does not fit")


@QUICK
@given(studies())
def test_the_calculation_reads_as_true_equations(study):
    """The text of every row, numbers put in, worked out by a reader of its own, is the exact result beside it."""
    report = memory_report(study)
    table = tables.derivation_table(report.steps)
    assert table.chain
    for (name, _, numbers, result), term in zip(table.rows, report.steps, strict=True):
        assert name == term.name
        shown = Fraction(result.split(" ")[0].replace(",", ""))
        assert abs(read_text(numbers) - shown) <= Fraction(1, 2000)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (131_072, "B", "131,072 B"),
        (10**9, "B", "1,000,000,000 B = 1.00 GB (953.67 MiB)"),
        (59, "requests", "59 requests"),
        (Fraction(4_000_000, 3), "B", "1,333,333.333 B = 1.33 MB (1.27 MiB)"),
    ],
)
def test_term_value(value, unit, text):
    term = derive("x", equal_share, unit=unit, weight_bytes=value, tp=1)
    assert tables.term_value(term) == text


@QUICK
@given(queries)
def test_step_table_sums(query):
    for cost in (intensity_report(query).prefill, intensity_report(query).decode):
        *steps, total = intensity_tables.step_table(cost, "title").rows
        assert Fraction(total[2].replace(",", "")) == pytest.approx(float(cost.flops), rel=1e-9)
        for column in (2, 4, 6):
            cells = [Fraction(row[column].replace(",", "")) for row in steps]
            assert abs(sum(cells) - Fraction(total[column].replace(",", ""))) <= Fraction(2, 1000)


def test_step_table_of_flash_moves_no_scores():
    rows = intensity_tables.step_table(phase_cost(Attention.FLASH, Phase.PREFILL, context=4, head_dim=2), "t").rows
    assert rows[1].cells == ("P = softmax(S)", "5 · N²", "80", "0", "0", "0", "0")
    assert rows[0][5:] == ("0", "0")


def test_step_table_without_softmax():
    cost = phase_cost(Attention.STANDARD, Phase.DECODE, context=4, head_dim=2, softmax_flops=0)
    assert intensity_tables.step_table(cost, "t").cells[1] == ("P = softmax(S)", "0", "0", "N", "8", "N", "8")


QUERY = IntensityQuery(model=LLAMA, device=device())


def test_formula_table():
    rows = intensity_tables.formula_table(intensity_report(QUERY)).cells
    assert rows[2] == (
        "prefill",
        "intensity",
        "(4 · N · d + 5 · N) / (4 · b · N + 4 · b · d)",
        "57.44 FLOP/B, → 64.62 as N grows",
    )
    assert [row[3] for row in rows[:2]] == ["542,113,792 FLOP", "9,437,184 B"]
    assert [row[3] for row in rows[3:5]] == ["529,408 FLOP", "532,992 B"]
    flash = intensity_tables.formula_table(intensity_report(replace(QUERY, attention=Attention.FLASH))).rows
    assert flash[2][3] == "517 FLOP/B, grows without limit"


def test_context_table():
    rows = intensity_tables.context_table(intensity_report(QUERY)).cells
    assert rows[4] == ("1,024", "542,113,792", "9,437,184", "57.44")
    assert len(rows) == 9


def test_batch_table():
    table = intensity_tables.batch_table(intensity_report(QUERY))
    assert table.headings[1:3] == ("Attention g=1", "Attention g=4")
    assert table.rows[0][:3] == ("1", "0.993", "3.788")
    assert len(set(table.headings)) == len(table.headings)


def test_batch_table_when_both_groupings_are_the_same():
    """Asked with the model's own group size there is one series, not the same one twice."""
    table = intensity_tables.batch_table(intensity_report(replace(QUERY, group_size=4)))
    assert len(set(table.headings)) == len(table.headings)


@QUICK
@given(queries)
def test_tables_never_fail(query):
    report = intensity_report(query)
    for table in (
        intensity_tables.formula_table(report),
        intensity_tables.context_table(report),
        intensity_tables.batch_table(report),
    ):
        assert all(len(row) == len(table.columns) for row in table.rows)


def test_catalog_tables_list_every_entry():
    models = tables.model_catalog_table(search_models(""))
    assert len(models.rows) == len(search_models("")) >= 20
    assert ("llama-3-8b", "8,030,261,248") in {(row[0], row[2]) for row in models.rows}
    listed = tables.device_catalog_table(search_devices(""))
    assert len(listed.rows) == len(search_devices("")) >= 25


def test_what_a_device_lacks_stays_empty():
    unknown = replace(next(iter(devices().values())), bandwidth_bytes_per_s=None, peak_flops_per_s={})
    assert tables.device_catalog_table([unknown]).rows[0][3:] == ("", "", "")


def test_block_formats_in_the_component_table():
    rows = tables.component_table(llama(weight_format=FORMATS["q4_k"])).rows
    assert rows[-1][3] == "4.52 GB"
