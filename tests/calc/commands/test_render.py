"""calc.commands.render: tables at any width, CSV and Markdown that parse back, files whole or not at all."""

import csv
import io
import re
from collections import Counter
from dataclasses import replace
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from calc.commands.render import Layout, as_csv, as_markdown, as_sentences, as_text, in_encoding, laid_out
from calc.commands.tables import KEPT, Column, Row, Table
from calc.units import format_binary, format_count, format_decimal, format_duration_s
from tests.calc.strategies import QUICK

TABLE = Table(
    title="Things",
    columns=("Name", Column("How many of them", numeric=True), "Remark"),
    rows=(("one", "1", ""), Row(("twenty", "20,000", "a rather long remark about it"), struck=True)),
)
CHAIN = Table(
    title="Calculation",
    columns=("Step", "Formula", "Numbers", "Result"),
    rows=(("Cache per token", "2 · L · d", "2 · 32 · 128", "8,192 B"), ("Sum", "min(T, w) + max", "2 + 7", "9 B")),
    chain=True,
)

cells = st.text(st.sampled_from("abc 12,|·−"), max_size=20).map(lambda t: " ".join(t.split()))


@st.composite
def any_tables(draw):
    n = draw(st.integers(2, 5))
    row = st.tuples(*[cells] * n)
    names = st.text("abcXYZ ", min_size=1, max_size=12).map(lambda t: t.strip() or "x")
    columns = st.builds(Column, names, numeric=st.booleans())
    return Table(
        title="T",
        columns=draw(st.tuples(*[columns] * n)),
        rows=draw(st.lists(row, max_size=4)),
        chain=draw(st.booleans()),
    )


PRICES = Table(
    title="Sizes",
    columns=(
        "Part",
        Column("now", group="Bytes", numeric=True),
        Column("before", group="Bytes", numeric=True, priority=2),
        Column("in binary units", numeric=True, priority=1, repeats=True),
        Column("Remark", priority=3),
    ),
    rows=(
        Row(("head", format_decimal(1500), format_decimal(10**9), format_binary(10**9), "")),
        Row(("all", format_decimal(Fraction(5, 2)), "–", "", ""), strong=True),
    ),
)


def test_groups_stand_over_their_columns_and_empty_columns_are_not_drawn():
    assert as_text(PRICES).splitlines() == [
        "Sizes",
        "      Bytes ──────────",
        "Part      now   before  in binary units",
        "────  ───────  ───────  ───────────────",
        "head  1.50 kB  1.00 GB       953.67 MiB",
        "all    2.50 B        –",
    ]


def test_a_narrow_terminal_leaves_out_the_least_important_columns_and_names_them():
    assert as_text(PRICES, width=30).splitlines() == [
        "Sizes",
        "      Bytes ──────────",
        "Part      now   before",
        "────  ───────  ───────",
        "head  1.50 kB  1.00 GB",
        "all    2.50 B        –",
        "No room for: in binary units.",
        "--format csv has every column.",
    ]
    assert laid_out(PRICES, 20) == Layout((0, 1), (4, 7), (2, 3))
    assert laid_out(PRICES, 12) is None


@QUICK
@given(any_tables(), st.data(), st.integers(20, 100))
def test_columns_are_left_out_in_the_order_of_their_priority(table, data, width):
    """Whatever is drawn fits; nothing drawn is less important than what was left out for it."""
    priorities = data.draw(st.lists(st.integers(1, KEPT), min_size=len(table.columns), max_size=len(table.columns)))
    table = replace(table, columns=[replace(c, priority=p) for c, p in zip(table.columns, priorities, strict=True)])
    layout = laid_out(table, width)
    if layout is not None:
        assert layout.total <= width
        drawn, left = ([priorities[i] for i in part] for part in (layout.columns, layout.left_out))
        assert KEPT not in left
        assert not left or max(left) <= min(drawn, default=KEPT)


def test_csv_is_plain_numbers_with_their_units_in_the_heading():
    assert as_csv(PRICES).splitlines() == [
        "Part,Bytes: now (B),Bytes: before (B),Remark",
        "head,1500,1000000000,",
        "all,2.5,,",
    ]


def test_csv_of_a_column_of_several_units_names_them():
    rows = (("a", format_count(1234)), ("b", format_duration_s(0.25)), ("c", "none"))
    table = Table(title="T", columns=("Quantity", Column("Value", numeric=True)), rows=rows)
    assert as_csv(table).splitlines() == ["Quantity,Value,Unit", "a,1234,", "b,0.25,s", "c,none,"]


def test_text():
    assert as_text(TABLE).splitlines() == [
        "Things",
        "Name    How many of them  Remark",
        "──────  ────────────────  ─────────────────────────────",
        "one                    1",
        "twenty            20,000  a rather long remark about it",
    ]


def test_text_that_fits_is_the_same_at_any_width():
    assert as_text(TABLE, width=55) == as_text(TABLE, width=200) == as_text(TABLE)


def test_headings_are_wrapped_before_words():
    assert as_text(TABLE, width=48).splitlines() == [
        "Things",
        "         How many",
        "Name      of them  Remark",
        "──────  ─────────  ─────────────────────────────",
        "one             1",
        "twenty     20,000  a rather long remark about it",
    ]


def test_words_are_wrapped():
    assert as_text(TABLE, width=32).splitlines() == [
        "Things",
        "           How",
        "          many",
        "            of",
        "Name      them  Remark",
        "──────  ──────  ────────────────",
        "one          1",
        "twenty  20,000  a rather long",
        "                remark about it",
    ]


def test_a_narrow_terminal_stacks_the_rows():
    assert as_text(TABLE, width=24).splitlines() == [
        "Things",
        "  one",
        "    How many of them  1",
        "  twenty",
        "    How many of them  20,000",
        "    Remark            a rather",
        "                      long",
        "                      remark",
        "                      about it",
    ]


def test_equations_on_one_line_where_they_fit():
    assert as_text(CHAIN, width=53).splitlines() == [
        "Calculation",
        "  Cache per token  2 · L · d = 2 · 32 · 128 = 8,192 B",
        "  Sum              min(T, w) + max = 2 + 7 = 9 B",
    ]


def test_equations_line_by_line():
    assert as_text(CHAIN, width=38).splitlines() == [
        "Calculation",
        "  Cache per token  2 · L · d",
        "                   = 2 · 32 · 128",
        "                   = 8,192 B",
        "  Sum              min(T, w) + max",
        "                   = 2 + 7",
        "                   = 9 B",
    ]


def test_equations_below_their_names():
    assert as_text(CHAIN, width=28).splitlines()[:5] == [
        "Calculation",
        "  Cache per token",
        "      2 · L · d",
        "      = 2 · 32 · 128",
        "      = 8,192 B",
    ]


def test_a_formula_breaks_at_its_sums():
    table = Table(title="T", columns=("A", "B"), rows=(("x", "4 · N · d + 5 · N + 7 · d"),))
    assert [line[3:] for line in as_text(table, width=15).splitlines()[3:]] == ["4 · N · d +", "5 · N +", "7 · d"]


@QUICK
@given(any_tables(), st.integers(30, 120))
def test_lines_keep_to_the_width(table, width):
    for line in as_text(table, width=width).splitlines():
        assert len(line) <= width
        assert line == line.rstrip()


@QUICK
@given(any_tables(), st.integers(20, 120))
def test_nothing_is_lost_at_any_width(table, width):
    """Every sign of every cell is printed, as often as it occurs; only a word wider than the screen is broken."""
    shown = as_text(table, width=width)
    assert Counter("".join("".join(row) for row in table.rows).replace(" ", "")) <= Counter(shown)
    for word in " ".join(" ".join(row) for row in table.rows).split():
        assert word in shown or len(word) > width - max(map(len, table.headings)) - 8


def test_a_table_without_rows():
    empty = replace(TABLE, rows=())
    assert as_text(empty).splitlines()[0] == "Things"
    assert as_text(replace(CHAIN, rows=()), width=12).splitlines()[0] == "Calculation"
    assert as_csv(empty) == "Name,How many of them,Remark"


def test_style_is_only_added():
    styled = as_text(TABLE, styled=True)
    assert styled.startswith("\x1b[1mThings\x1b[0m\n")
    assert re.sub(r"\x1b\[\d*m", "", styled) == as_text(TABLE)
    assert "\x1b[2mtwenty" in styled
    assert "\x1b" not in as_text(TABLE)


def test_sentences():
    assert as_sentences(["One.", "Two words."]) == "· One.\n· Two words."
    assert as_sentences(["One two three four."], width=12) == "· One two\n  three\n  four."
    long = "word " * 60
    assert max(map(len, as_sentences([long], width=500).splitlines())) <= 100


@QUICK
@given(any_tables())
def test_csv_parses_back(table):
    assert list(csv.reader(io.StringIO(as_csv(table)))) == [list(table.headings), *map(list, table.rows)]


@QUICK
@given(any_tables())
def test_markdown_parses_back(table):
    title, empty, *lines = as_markdown(table).splitlines()
    assert (title, empty) == ("### T", "")
    parsed = [[c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert parsed[0] == list(table.headings)
    assert parsed[1] == ["---:" if column.numeric else "---" for column in table.columns]
    assert parsed[2:] == [list(row) for row in table.rows]


def test_struck_rows_in_markdown():
    assert as_markdown(TABLE).splitlines()[-1] == "| ~~twenty~~ | ~~20,000~~ | ~~a rather long remark about it~~ |"


def test_other_encodings():
    assert in_encoding("⌊N² · d⌋ → 5", "utf-8") == "⌊N² · d⌋ → 5"
    assert in_encoding("⌊N² · d⌋ → 5 − Qᵀ", "ascii") == "floor(N^2 * d) -> 5 - Q^T"
    assert in_encoding("naïve", "latin-1") == "naïve"
    assert in_encoding("naïve 漢", "latin-1") == "naïve ?"
