"""The written answer: its numbers are the reports' numbers, its formulas the calculated ones, its LaTeX sound."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calc.commands.output import guarded
from calc.explain.polynomial import expand
from calc.explain.terms import SYMBOLS, evaluate, substituted, symbol, to_latex
from calc.intensity.attention import Attention, Phase, attention_steps, phase_cost
from calc.intensity.study import intensity_report
from calc.model.parts import Mlp, Norm
from calc.model.spec import DIMENSIONS, uniform
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.sources import load_model
from calc.sources.catalog import find_device, find_model, manual_device
from calc.units import format_decimal
from engine.errors import EngineFailure, InputError
from engine.measure.kinds.evaluate import Evaluate
from engine.process.client import EngineClient
from engine.records import Event, Request
from tests.examples import examples
from tui.form.state import AppState, analyse, initial_state, intensity_query
from tui.live.measured.benchmark import benchmark_table
from tui.live.predict import predicted_cache_bytes
from tui.report import command
from tui.report.attention_part import part_d
from tui.report.content import build_report
from tui.report.formulas_part import addends, step_grid, step_sentences, tensors
from tui.report.latex import to_latex as document_latex
from tui.report.latex_text import escape
from tui.report.markdown import fenced, to_markdown
from tui.report.measure import measure, sample_request
from tui.report.measured_part import LEFT_OUT, Measurements
from tui.report.memory_part import derived_step, rule_steps
from tui.report.model import Derivation, Figure, Grid, Heading, Math, grid_of, paragraph
from tui.report.source import source_of

LAST_PLACE = Fraction(1, 1000)
"""Parts of a byte are written to three places."""

ROOT = Path(__file__).parents[3]
FAKE = Path(__file__).parents[1] / "report_engine.py"
_spec = importlib.util.spec_from_file_location("report_engine", FAKE)
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake)

NASTY = (
    r"my_model_v2 100% {a} } \input{/etc/passwd} \end{document} $x^2$ #1 & ~ <|eot|> ₂ · − ⌊x⌋ → 模型 é [x] *b* `c` | "
    + "x" * 90
    + "/very/long/path/to/a_model-with-parts.safetensors \x00\x07 🙂 \u200b\n\n%par"
)


@pytest.fixture(scope="module")
def llama() -> AppState:
    return AppState(study=Study(model=load_model("llama-3-8b"), device=manual_device(80 * 10**9)))


@pytest.fixture(scope="module")
def nasty(llama: AppState) -> AppState:
    model = uniform(
        name=NASTY,
        **{size: getattr(llama.study.model, size) for size in DIMENSIONS},
        source=NASTY,
        notes=(NASTY, "[a", "*b"),
        mlp=Mlp.PLAIN,
        norm=Norm.LAYER,
        tied=True,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        head_bias=True,
        qk_norm=True,
        n_learned_positions=2048,
        n_sliding_layers=16,
        window=4096,
    )
    study = replace(
        llama.study,
        model=model,
        device=replace(llama.study.device, name=NASTY, reading=NASTY),
        tps=tuple(range(1, 60)),
        weight_format=FORMATS["q4_k"],
        kv_format=FORMATS["q8_0"],
    )
    return replace(llama, study=study)


def edited(state: AppState, **changes: object) -> AppState:
    return replace(state, study=replace(state.study, **changes))


def both(state: AppState, measured: Measurements | None = None) -> tuple[str, str]:
    report = build_report(state, measured)
    return document_latex(report), to_markdown(report)


def grids(report: object) -> dict[str, Grid]:
    return {block.title: block for block in report.blocks if isinstance(block, Grid)}  # type: ignore[attr-defined]


def shown(cell: tuple[object, ...]) -> str:
    return "".join(piece.text if isinstance(piece, Math) else str(piece) for piece in cell)


def flat(latex: str) -> str:
    r"""Without \left and \right, which long formulas do without."""
    return re.sub(r"\\(left|right)(?=[()])", "", latex)


# The numbers


def test_the_answers_of_the_assignment_stand_in_both_documents(llama: AppState) -> None:
    latex, markdown = both(llama)
    for number in ("8,030,261,248", "131,072 B", "542,113,792", "9,437,184", "529,408", "532,992"):
        assert number in markdown
        assert number.replace(" B", "~B") in latex or number in latex
    rows = ("| Max batch size possible | 59 |", "| 2 | 8.03 GB | 536.87 MB | 134 |", "57.444 FLOP/B", "0.993 FLOP/B")
    for row in rows:
        assert row in markdown
    assert "80 GB read as 80 x 10^9 B = 74.51 GiB" in markdown.replace("\\", "")
    assert "16.06~GB (14.96~GiB)" in latex


def test_every_step_of_the_calculation_is_written_out(llama: AppState) -> None:
    latex, markdown = both(llama)
    for term in analyse(llama).memory.steps:
        assert flat(term.latex) in flat(latex)
        assert f"{term.formula}`" in markdown
        assert f"| `{term.substituted}` |" in markdown
        if term.latex_substituted not in (term.latex, f"{int(term.value):,}".replace(",", "{,}")):
            assert flat(term.latex_substituted) in flat(latex)


def test_the_formulas_in_n_and_d_are_the_calculated_ones(llama: AppState) -> None:
    latex, markdown = both(llama)
    analysis = analyse(llama)
    for cost in (analysis.intensity.prefill, analysis.intensity.decode, analysis.intensity.other_prefill):
        for formula in (cost.flops_formula, cost.bytes_formula, cost.intensity_formula):
            assert flat(to_latex(formula)) in flat(latex)
    assert "`F = 4 · N² · d + 5 · N²`" in markdown
    assert "`Q = b · (4 · N² + 4 · N · d)`" in markdown
    assert "`Q = b · (2 · N · d + 4 · N + 2 · d)`" in markdown
    limit = analysis.intensity.prefill
    assert limit.limit_formula is not None
    assert f"`{substituted(limit.limit_formula, limit.values)}` = 64.62 FLOP/B" in markdown


def test_each_result_has_the_symbol_that_later_formulas_use(llama: AppState, nasty: AppState) -> None:
    for state in (llama, nasty):
        steps = [derived_step(term) for term in analyse(state).memory.steps]
        assert all(step.symbol is not None for step in steps)
        used = {name for step in steps for name in step.term.values}
        found = {step.term.gives for step in steps}
        derived_inputs = {"embedding", "attention", "feed_forward", "layer_norms", "final_norm", "head", "parameters"}
        assert used & derived_inputs <= found


@examples(25)
@given(
    n_layers=st.integers(1, 200),
    groups=st.integers(1, 16),
    n_kv_heads=st.integers(1, 16),
    head_dim=st.integers(1, 256),
    hidden=st.integers(1, 10_000),
    context=st.integers(1, 10**6),
    fmt=st.sampled_from(sorted(FORMATS)),
    memory=st.integers(1, 10**13),
    tps=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    kind=st.sampled_from(Attention),
    softmax=st.sampled_from((0, 5)),
    n=st.integers(1, 10**6),
)
def test_every_shown_derivation_equals_its_value(
    n_layers: int, groups: int, n_kv_heads: int, head_dim: int, hidden: int, context: int, fmt: str, memory: int,
    tps: list[int], kind: Attention, softmax: int, n: int,
) -> None:  # fmt: skip
    model = uniform(
        name="drawn",
        n_layers=n_layers,
        n_heads=groups * n_kv_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        hidden_size=hidden,
        intermediate_size=14_336,
        vocab_size=128_256,
    )
    study = Study(
        model=model,
        device=manual_device(memory),
        context=context,
        kv_format=FORMATS[fmt],
        weight_format=FORMATS[fmt],
        tps=tuple(tps),
    )
    state = AppState(
        study=study, attention=kind, attention_context=n, attention_head_dim=head_dim, softmax_flops=softmax
    )
    report = build_report(state, None)
    terms = list(report.terms())
    assert terms
    for term in terms:
        assert Fraction(evaluate(term.expression, term.values)) == Fraction(term.value)
    latex = document_latex(report)
    check_balanced(latex)
    assert all(term.latex_substituted for term in terms)


KINDS = ("llama-3-8b", "qwen3.5-35b-a3b", "deepseek-v3", "gpt-oss-120b", "gemma-3-27b", "nemotron-h-56b")
"""One of each kind: plain, recurrent with experts, latent, windows, local and global, Mamba-2."""
STATED = re.compile(r"(.*): the formulas, and the numbers for X = ([0-9,]+)")


def state_of(
    model: str, *, memory: int = 80 * 10**9, tps: tuple[int, ...] = (1, 2, 4, 8), kv: str = "bf16"
) -> AppState:
    study = Study(model=load_model(model), device=manual_device(memory), tps=tps, kv_format=FORMATS[kv])
    return AppState(study=study)


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize(("memory", "tps"), [(80 * 10**9, (1, 2, 4, 8)), (640 * 2**30, (3, 5, 16)), (10**9, (1,))])
def test_the_steps_of_every_x_give_its_row(model: str, memory: int, tps: tuple[int, ...]) -> None:
    """Weights, cache, state and batch, whatever the model is made of: what is derived is what the table holds."""
    report = analyse(state_of(model, memory=memory, tps=tps, kv="q8_0")).memory
    for policy in Policy:
        for row in report.tp_tables[policy]:
            *held, batch = rule_steps(report, policy, row)
            assert [step.term for step in held] == list(row.steps[:-1])
            assert len(held) == (3 if row.state_bytes_per_sequence_per_gpu else 2)
            expected = row.max_batch if row.fits else row.steps[-1].value
            assert batch.term.value == evaluate(batch.term.expression, batch.term.values) == expected


@pytest.mark.parametrize("model", KINDS)
@pytest.mark.parametrize("memory", [80 * 10**9, 1280 * 10**9])
def test_every_derivation_of_the_report_ends_in_its_cell(model: str, memory: int) -> None:
    """The last step of each calculation, as it is written, against the cell of the table below it, as it is written."""
    report = build_report(state_of(model, memory=memory), None)
    tables = grids(report)
    answers = {shown(row[0]): shown(row[1]) for row in tables["The answer for one device"].rows}
    by_tp = tables[GROUP_TABLE]
    headings = [shown(column) for column in by_tp.columns]
    checked = 0
    for block in report.blocks:
        if not isinstance(block, Derivation):
            continue
        last = block.steps[-1].term
        found = f"{last.value:,}" if last.unit == "requests" else "–"
        if rule := STATED.fullmatch(block.title):
            name = {"Equal split": "Equal split", "Whole KV heads": "Whole heads"}[rule[1]]
            row = next(row for row in by_tp.rows if shown(row[0]) == rule[2])
            assert shown(row[headings.index(f"{name}: batch")]) == found
            weights = next(step.term.value for step in block.steps if step.name.startswith("Weights"))
            assert shown(row[headings.index(f"{name}: weights/GPU")]) == format_decimal(weights)
            checked += 1
        elif block.title == "Calculation, step by step":
            assert answers["Max batch size possible"] == (found if last.unit == "requests" else "0")
            total = next(step.term.value for step in block.steps if step.name == "Total parameters")
            assert answers["Total parameters"] == f"{total:,}"
            checked += 1
    assert checked == 3


@pytest.mark.parametrize("model", KINDS)
def test_every_term_of_every_model_evaluates_to_its_value(model: str) -> None:
    """All calculations of the report, (a) to (d), on models of every kind and formats whose bytes are fractions."""
    state = edited(state_of(model, kv="q8_0"), weight_format=FORMATS["q4_k"])
    for term in build_report(state, None).terms():
        assert Fraction(evaluate(term.expression, term.values)) == Fraction(term.value), term.name


GROUP_TABLE = "By number of GPUs (TP): weights and cache per GPU, largest batch of the whole group"


def test_the_state_counts_on_every_gpu() -> None:
    """Qwen3.5-35B-A3B: 30 gated-delta layers keep 16,711,680 elements per sequence. (80e9 - 69,321,221,376 / 2) /
    (167,772,160 / 2 + 33,423,360 / 2) = 450.7; without the state it would be 540."""
    report = analyse(state_of("qwen3.5-35b-a3b", tps=(2,))).memory
    row = report.tp_tables[Policy.EQUAL_SPLIT][0]
    assert row.max_batch == rule_steps(report, Policy.EQUAL_SPLIT, row)[-1].term.value == 450


def test_both_readings_of_the_memory_are_shown(llama: AppState) -> None:
    """80 GB is 80 x 10^9 B, which holds 59 requests, or 80 x 2^30 B, which holds 65 (worked by hand in FACTS.md)."""
    report = build_report(llama, None)
    grid = grids(report)["Both readings of the device's memory: largest batch, equal split"]
    assert [shown(column) for column in grid.columns][1:] == ["80 x 10^9 B", "80 x 2^30 B"]
    assert [[shown(cell) for cell in row] for row in grid.rows] == [
        ["1", "59", "65"], ["2", "134", "145"], ["4", "283", "305"], ["8", "581", "625"],
    ]  # fmt: skip
    assert "the largest batch is 59 in 80,000,000,000 B of device memory (65 if read as 80 x 2^30 B" in to_markdown(
        report
    )
    known = build_report(edited(llama, device=find_device("h100-sxm")), None)
    assert not any(title.startswith("Both readings") for title in grids(known))


def test_the_growth_of_the_batch_is_explained(llama: AppState) -> None:
    assert "From 1 to 8 GPUs the batch grows 9.85 times, more than the GPUs (8 times)" in both(llama)[1]
    assert "more than the GPUs" not in both(edited(llama, tps=(1,)))[1]


@pytest.mark.parametrize("model", KINDS)
def test_every_symbol_of_the_calculation_is_explained(model: str) -> None:
    report = build_report(state_of(model), None)
    steps = next(b for b in report.blocks if isinstance(b, Derivation)).steps
    tables = grids(report)
    told = {shown(row[1]) for row in tables["Inputs"].rows} | {s.symbol.text for s in steps if s.symbol}
    told |= {shown(row[0]) for row in tables["Other symbols"].rows} if "Other symbols" in tables else set()
    used = {SYMBOLS[name].text for step in steps for name in step.term.values if name in SYMBOLS}
    assert used <= told


def test_impossible_degrees_are_named_and_struck(llama: AppState) -> None:
    latex, markdown = both(edited(llama, tps=(2, 3)))
    assert "~~3~~" in markdown
    assert "~~2~~" not in markdown
    assert "32 query heads are not divisible by 3" in markdown
    assert r"\textit{3}" in latex
    assert "= 3: there, the equal split only exists on paper" in markdown


# (c): why each term arises


@pytest.mark.parametrize("phase", list(Phase))
def test_steps_name_tensors_whose_sizes_sum_to_the_table(llama: AppState, phase: Phase) -> None:
    cost = phase_cost(Attention.STANDARD, phase, context=1024, head_dim=128)
    sizes = {"n_keys": symbol("n_keys"), "head_dim": symbol("head_dim"), "group_size": 1}
    steps = attention_steps(Attention.STANDARD, phase, softmax_flops=5, **sizes)
    named = [tensors(step.name) for step in steps]
    assert named == [("S", ("Q", "K")), ("P", ("S",)), ("O", ("P", "V"))]
    for step, row, (_, operands) in zip(steps, cost.steps, named, strict=True):
        parts = addends(step.reads)
        assert len(parts) == len(operands)
        assert 2 * sum(evaluate(part, cost.values) for part in parts) == row.read_bytes


def test_the_derivation_says_why(llama: AppState) -> None:
    def sentences(phase: Phase, softmax_flops: int = 5) -> list[str]:
        query = intensity_query(replace(llama, softmax_flops=softmax_flops))
        return [shown(text) for text in step_sentences(query, phase)]

    assert sentences(Phase.PREFILL) == [
        "S = Q Kᵀ. Each of the N² entries of S is a dot product of length d: d multiplications and as many additions, "
        "2 · N² · d FLOP in all. Read: Q, N · d and K, N · d elements. Written: S, N² elements.",
        "P = softmax(S). Each of the N² entries of P takes 5 FLOP: 5 · N² FLOP. Read: S, N² elements. "
        "Written: P, N² elements.",
        "O = P V. Each of the N · d entries of O is a dot product of length N: N multiplications and as many additions,"
        " 2 · N² · d FLOP in all. Read: P, N² and V, N · d elements. Written: O, N · d elements.",
    ]
    assert sentences(Phase.DECODE)[0].endswith("Read: Q, d and K, N · d elements. Written: S, N elements.")
    assert "left out of the FLOPs" in sentences(Phase.DECODE, 0)[1]


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("kind", list(Attention))
def test_the_last_row_of_the_step_table_is_the_total(phase: Phase, kind: Attention) -> None:
    cost = phase_cost(kind, phase, context=777, head_dim=96, element_bytes=Fraction(17, 16))
    grid = step_grid(cost)

    def numbers(column: int) -> list[Fraction]:
        return [Fraction(shown(row[column]).replace(",", "")) for row in grid.rows]

    for column in (4, 5, 6):
        *rows, total = numbers(column)
        assert abs(sum(rows) - total) <= 2 * LAST_PLACE
    assert numbers(4)[-1] == cost.flops
    assert abs(numbers(5)[-1] + numbers(6)[-1] - Fraction(cost.bytes)) <= LAST_PLACE
    read = sum((expand(step.reads_formula) for step in cost.steps[1:]), expand(cost.steps[0].reads_formula))
    written = sum((expand(step.writes_formula) for step in cost.steps[1:]), expand(cost.steps[0].writes_formula))
    assert expand(cost.bytes_formula.args[1]).terms == (read + written).terms


def test_standard_attention_comes_first_whatever_the_pane_studies(llama: AppState) -> None:
    standard = build_report(llama, None)
    flash = build_report(replace(llama, attention=Attention.FLASH), None)

    def part_c(report: object) -> list[object]:
        blocks = report.blocks  # type: ignore[attr-defined]
        starts = [i for i, b in enumerate(blocks) if getattr(b, "level", 0) == 1]
        return list(blocks[starts[3] : starts[4]])

    assert part_c(standard) == part_c(flash)
    assert standard.blocks != flash.blocks
    assert any("studies FlashAttention" in shown(b.text) for b in flash.blocks if type(b) is type(paragraph("")))


# Plots


def plotted(latex: str) -> list[tuple[str, list[tuple[float, float]]]]:
    """Legend entry and points of every plot line in the document."""
    found = re.findall(r"coordinates \{(.*?)\};\\addlegendentry\{(.*?)\}\n", latex)

    def read(points: str) -> list[tuple[float, float]]:
        medians = re.sub(r" [+-]= \(0,[^()]+\)", "", points)  # without the bars of the spread
        return [(float(x), float(y)) for x, y in re.findall(r"\(([^,()]+),([^,()]+)\)", medians)]

    return [(name, read(points)) for points, name in found]


def test_plots_hold_the_points_of_the_sweeps(llama: AppState) -> None:
    state = edited(llama, device=find_device("h100-sxm"))
    report = analyse(state).intensity
    lines = plotted(document_latex(build_report(state, None)))
    flash = intensity_report(replace(report.query, attention=Attention.FLASH))
    sweeps = [[(p.context, p.intensity) for p in r.prefill_by_context] for r in (report, flash)]
    compared = [points for name, points in lines if name in ("standard attention", "FlashAttention")]
    for points, sweep in zip([lines[0][1], *compared], [sweeps[0], *sweeps], strict=True):
        assert points == [pytest.approx(point, rel=1e-7) for point in sweep]
    levels = {name: points for name, points in lines if len(points) == 2 and points[0][1] == points[1][1]}
    assert [y for _, y in levels["limit 64.6"]] == [pytest.approx(64.625)] * 2
    ridge = report.query.device.ridge()
    assert [points[0][1] for name, points in levels.items() if name.startswith("ridge")] == [pytest.approx(ridge)]
    decode = [points for name, points in lines[1:] if name.startswith(("attention", "linear", "step"))]
    names = ("attention_intensity", "attention_intensity", "linear_intensity", "step_intensity", "step_intensity")
    sources = (0, 1, 0, 0, 1)
    series = (report.decode_by_batch, report.decode_by_batch_grouped)
    expected = [
        [(p.batch, getattr(p, name)) for p in series[source]] for name, source in zip(names, sources, strict=True)
    ]
    assert len(decode) == len(expected)
    for line, sweep in zip(decode, expected, strict=True):
        assert line == [pytest.approx(point, rel=1e-7) for point in sweep]


def test_common_ridges_are_drawn_and_marked_where_the_device_has_none(llama: AppState) -> None:
    latex, markdown = both(llama)
    drawn = {name.replace("~", " ") for name, _ in plotted(latex) if name.startswith("ridge")}
    assert drawn == {"ridge of a common A100 80 GB 153", "ridge of a common H100 80 GB 295"}
    assert "is unknown, so ridges of common devices are shown: A100 80 GB 153 FLOP/B" in markdown


def test_prefill_is_alone_on_linear_axes_and_flash_is_compared_apart(llama: AppState) -> None:
    report = build_report(llama, None)
    prefill, decode, compared = (block.chart for block in report.blocks if isinstance(block, Figure))
    assert (prefill.x.log, prefill.y.log, [s.label for s in prefill.series]) == (False, False, ["attention"])
    assert (decode.x.log, decode.y.log) == (True, True)
    assert [s.label for s in compared.series] == ["standard attention", "FlashAttention"]
    latex = document_latex(report)
    assert len(re.findall("xmode=log", latex)) == len(re.findall("ymode=log", latex)) == 2


def test_the_layers_of_a_model_that_is_not_plain_are_counted_at_the_end(llama: AppState) -> None:
    model = find_model("deepseek-v3")
    markdown = to_markdown(build_report(initial_state(replace(llama.study, model=model)), None))
    _, _, layers = markdown.partition("### The layers of deepseek-v3")
    assert "This part first studies the plain attention of the question" in markdown
    assert "61 x latent attention, absorbed" in layers
    assert "decode tends to 242 FLOP/B" in layers


def test_markdown_draws_its_plots_as_text(llama: AppState) -> None:
    report = build_report(llama, None)
    figures = [block for block in report.blocks if isinstance(block, Figure)]
    assert len(figures) == 3
    markdown = to_markdown(report)
    assert markdown.count("```text") == 3
    assert "limit 64.6" in markdown
    assert "\x1b" not in markdown


# Text that LaTeX would stumble over


def untex(latex: str) -> str:
    """What `escape` made of printable ASCII, read back with a table of its own."""
    names = {
        "textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~", "textless": "<", "textgreater": ">",
        "textbar": "|", "allowbreak": "",
    }  # fmt: skip
    latex = latex.replace(r"$\mathdollar$", "\x01036")
    text = re.sub(r"\\([a-z]+)\{\}", lambda m: f"\x01{ord(names[m[1]]) if names[m[1]] else 0:03d}", latex)
    text = re.sub(r"\\([{}$&#%_])", lambda m: f"\x01{ord(m[1]):03d}", text)
    text = text.replace("~", " ").replace("{", "").replace("}", "")
    return re.sub(r"\x01([0-9]{3})", lambda m: chr(int(m[1])) if m[1] != "000" else "", text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"'), max_size=120))
def test_escaped_ascii_reads_back_as_itself(text: str) -> None:
    assume(not re.search(r"[0-9]\^[0-9]", text))
    assert untex(escape(text)) == " ".join(text.split())


def check_text_is_safe(latex: str) -> None:
    """No character is special to LaTeX but the markup escape itself writes."""
    assert latex.isascii()
    assert all(c >= " " for c in latex)
    known = (
        r"\\textbackslash\{\}|\\textasciicircum\{\}|\\textasciitilde\{\}|\\textless\{\}|\\textgreater\{\}"
        r"|\\textbar\{\}|\\allowbreak\{\}|\\dots\{\}|\\(?:ss|ae|AE|oe|OE|o|O|l|L|i|S|P|copyright|pounds)\{\}"
        r"|\$[-a-zA-Z\\^{}_0-9+]*\$|\\[`'^~\"rvcuH=.]\{(?:[A-Za-z]|\\[ij])\}|\\[{}$&#%_]|\{\}|\{[\[\]*`]\}|~"
    )
    rest = re.sub(known, "", latex)
    assert not re.search(r"[\\{}$&#%_^~<>|\"\[\]*]", rest)
    assert not re.search(r"--|\?`|!`|``", re.sub(r"\{[`*\[\]]\}", "x", rest.replace("---", "").replace("--", "")))


@examples(300)
@given(st.text(max_size=80) | st.text("\\{}$&#%_^~<>|\"[]*-`'!? aé²₂→–…模", max_size=60))
def test_any_text_escapes_to_safe_ascii(text: str) -> None:
    check_text_is_safe(escape(text))


def test_letters_and_signs_keep_their_look() -> None:
    assert escape("C. Ré, naïve, Škoda") == r"C. R\'{e}, na\"{\i}ve, \v{S}koda"
    assert escape("N² · d₁ → 模") == r"N$^{2}$ $\cdot$ d$_{1}$ $\to$ {[}U+6A21{]}"
    assert escape("80 x 10^9 B = 74.51 GiB, 95 %") == r"80 x 10$^{9}$~B = 74.51~GiB, 95~\%"
    assert escape("a\n\n b\x00\u200b") == "a b"
    assert escape("✓ pass ✗ FAIL ● ○") == r"$\surd$ pass $\times$ FAIL $\bullet$ $\circ$"
    assert escape("--no-measure") == "-{}-no-measure"


def check_balanced(latex: str) -> None:
    """Braces and environments close in order, and dollars come in pairs on every line."""
    depth = 0
    bare = re.sub(r"\\[\\{}$]", "", latex)
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z]+)\}", latex):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    for line in bare.splitlines():
        assert line.count("$") % 2 == 0


def test_a_nasty_name_leaves_the_document_whole(nasty: AppState) -> None:
    latex, _ = both(nasty)
    assert latex.isascii()
    check_balanced(latex)
    assert latex.count(r"\end{document}") == 1
    assert latex.endswith("\\end{document}\n")
    assert r"\input{" not in latex


def cell_count(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


@pytest.mark.slow
@pytest.mark.parametrize("which", ["llama", "nasty"])
def test_markdown_tables_are_rectangular(which: str, request: pytest.FixtureRequest) -> None:
    _, markdown = both(request.getfixturevalue(which))
    tables, current = [], []
    for line in [*re.sub(r"(?s)```text.*?```", "", markdown).splitlines(), ""]:
        if line.startswith("|"):
            current.append(line)
        elif current:
            tables.append(current)
            current = []
    assert len(tables) >= 12
    for table in tables:
        assert re.fullmatch(r"\|( (---:?) \|)+", table[1])
        assert {cell_count(line) for line in table} == {cell_count(table[1])}


def test_markdown_takes_no_markup_from_names(nasty: AppState) -> None:
    _, markdown = both(nasty)
    outside = re.sub(r"(?s)```text.*?```", "", markdown)
    assert "my\\_model\\_v2" in outside
    assert "my_model_v2" not in outside
    assert not re.search(r"(?<!\\)<", outside)


@given(st.text("`ab\n ", max_size=40))
def test_a_fence_is_never_closed_by_what_it_holds(text: str) -> None:
    lines = fenced(text).split("\n")
    fence = lines[-1]
    assert lines[0] == fence + "text"
    assert set(fence) == {"`"}
    assert all(fence not in line for line in lines[1:-1])


# Problem 2


def client(kind: str) -> EngineClient:
    return EngineClient((sys.executable, str(FAKE), kind))


@pytest.fixture(scope="module")
def measured() -> Measurements:
    with client("good") as engine:
        return measure(engine)


def test_measuring_asks_for_everything_once(measured: Measurements) -> None:
    seen: list[str] = []
    with client("good") as engine:
        again = measure(engine, watch=lambda event: seen.append(type(event).__name__))
    assert again == measured
    assert seen == [
        "EvaluationFinished", "EvaluationFinished", "Loaded", "Progress", "BenchmarkFinished", "GenerationStarted",
        "GenerationFinished",
    ]  # fmt: skip
    assert measured.passed is True
    assert measured.evaluate == fake.evaluation(False, passed=True)
    assert measured.kv_evaluate == fake.evaluation(True, passed=True)
    assert measured.benchmark is not None
    assert measured.benchmark.rows == fake.ROWS


def test_predicted_cache_bytes_are_those_of_calc() -> None:
    """A sample of 3 + 48 tokens, whatever the weights are stored in: int8 weights leave the cache at its own type."""
    for dtype in ("float32", "int8", "int4"):
        model = msgspec.structs.replace(fake.MODEL, dtype=dtype, cache_dtype="float32")
        assert predicted_cache_bytes(model, 51) == 51 * 2 * 2 * 2 * 16 * 4


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("input", InputError, "w.pt: truncated."),
        ("crash", EngineFailure, "9"),
        ("cancel", EngineFailure, "stopped before its end"),
        ("short", EngineFailure, "without Loaded"),
    ],
)
def test_what_goes_wrong_in_the_engine_is_said(kind: str, error: type[Exception], words: str) -> None:
    with client(kind) as engine, pytest.raises(error, match=re.escape(words)):
        measure(engine)


def test_measurements_stand_in_the_document(llama: AppState, measured: Measurements) -> None:
    report = build_report(llama, measured)
    assert report.passed is True
    tables = grids(report)
    cases = tables["Largest |logit - expected| by case, tolerance 0.0001"]
    assert [shown(cell) for cell in cases.rows[0]] == [
        "✓ pass", "7", "12", "2.5e-08", *["3.0e-09"] * 3, "4.0e-15",
    ]  # fmt: skip
    apart = tables["Cached against uncached: largest |cached - uncached| by case"]
    assert [shown(cell) for cell in apart.rows[0]] == ["7", "12", *["4.0e-15"] * 3]
    sweep = tables["Latency by prompt length: medians; TTFT is the prefill, p50 and p95 are of single later tokens"]
    assert sweep.rows == grid_of(benchmark_table(fake.ROWS)).rows  # the table of `kvscope benchmark` itself
    assert [shown(cell) for cell in sweep.rows[1]][:6] == [
        "1,000", "80.0 ms", "72.0–120 ms", "1.60 s", "1.44–2.40 s", "20.00x",
    ]  # fmt: skip
    sample = tables["3 tokens after a prompt of 3"]
    assert {shown(a): shown(b) for a, b in sample.rows} == {
        "Time to first token (prefill)": "2.00 ms",
        "Time per output token after the first": "1.00 ms",
        "KV cache allocated by the engine": "26.11 kB (25.50 KiB)",
        "KV cache predicted by the formula of Problem 1 (a)": "26.11 kB (25.50 KiB)",
        "Measured / predicted": "1.0000",
    }
    latex, markdown = document_latex(report), to_markdown(report)
    assert "3.0 times faster with the cache at 10 tokens, 20.0 times faster with the cache at 1,000 tokens" in markdown
    assert "FLOPs, because every new token processes the whole text again; the time grows 53.3 times." in markdown
    # 20 times the weights, 360,448 B, and 512 B for each of 380 or 19,190 tokens: 17,034,240 over 7,403,520 B
    assert (
        "2.30 times in bytes, because the text is processed once and later tokens one at a time; the time grows 8.0 "
        "times."
    ) in markdown
    assert "With the cache, prefill takes 25% of the time at 10 tokens and 25% at 1,000." in markdown
    assert "takes 395 µs at 10 tokens and 3.16 ms at 1,000" in markdown
    assert r"Test \& Co 100\%" in latex
    assert "[}U+" not in latex  # every sign of the tables has a LaTeX form
    assert ("with cache", [(10, 0.01), (1000, 0.08)]) in plotted(latex)
    assert ("without", [(10, 0.03), (1000, 1.6)]) in plotted(latex)
    assert latex.count("error bars/.cd,y dir=both,y explicit] coordinates") == 2  # both arms with their spread
    assert latex.count(r"\end{quote}") == 1
    check_balanced(latex)


def test_problem_2_describes_the_model_and_the_append_from_its_source(llama: AppState, measured: Measurements) -> None:
    report = build_report(llama, measured)
    markdown, latex = to_markdown(report), document_latex(report)
    headings = [block.text for block in report.blocks if isinstance(block, Heading) and block.level == 2]
    assert [text for text in headings if text.startswith("(")] == [
        "(a) The model and its KV cache",
        "(b) Evaluation (evaluate)",
        "(c) Evaluation with the KV cache (kv-evaluate)",
        "(d) Latency with and without the cache (benchmark)",
    ]
    assert "= (2, 2, rows, 2, capacity, 16)" in markdown
    for module, names in (("plain", ("Attention", "forward")), ("cache_kinds", ("KVCache", "append"))):
        lines = [line for line in source_of(f"engine.model.{module}", *names).splitlines() if line]
        text = (ROOT / "engine" / "model" / f"{module}.py").read_text()
        assert all(line.strip() in text and line in markdown and line in latex for line in lines)
    assert "torch.cat((cache[0], k), dim=1)" in markdown
    assert latex.count(r"\begin{verbatim}") == 2


def test_the_sample_of_a_model_without_a_tokenizer_is_of_ids() -> None:
    assert sample_request(fake.MODEL, None).prompt == "The king"
    bare = msgspec.structs.replace(fake.MODEL, has_tokenizer=False, max_positions=20)
    request = sample_request(bare, "w.pt")
    assert (request.model, request.prompt, request.prompt_ids, request.max_new_tokens) == ("w.pt", None, (1, 2, 3), 10)


def test_a_failed_case_is_said(llama: AppState) -> None:
    wrong = Measurements(evaluate=fake.evaluation(False, passed=False))
    report = build_report(llama, wrong)
    assert report.passed is False
    assert "0 of 1 cases pass" in to_markdown(report)
    assert "✗ FAIL" in to_markdown(report)


def test_without_measurements_the_document_says_so(llama: AppState) -> None:
    for nothing in (None, Measurements()):
        report = build_report(llama, nothing)
        assert report.passed is None
        assert LEFT_OUT in to_markdown(report)


# The command


@pytest.fixture
def fake_engine(monkeypatch: pytest.MonkeyPatch) -> object:
    def use(kind: str) -> None:
        monkeypatch.setattr("engine.process.client.default_command", lambda: (sys.executable, str(FAKE), kind))

    return use


def run(*words: object) -> int:
    return guarded(lambda: command.run_report([str(word) for word in words], "kvscope report"), "kvscope report")


@pytest.mark.parametrize("name", ["r.tex", "r.md", "R.TEX"])
def test_the_command_writes_the_file_and_prints_its_path(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    assert run("--output", path, "--no-measure", "--model", "qwen3-8b", "--context", "4k", "--tp", "1,2") == 0
    assert capsys.readouterr().out == f"{path}\n"
    text = path.read_text()
    assert text.startswith("\\documentclass" if name.lower().endswith("tex") else "# qwen3-8b on ")
    assert "4,096" in text or "4,000" in text
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_command_runs_the_engine(fake_engine: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake_engine("good")  # type: ignore[operator]
    path = tmp_path / "r.md"
    assert run("--output", path, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"command": "report", "schema": 1, "output": str(path), "passed": True}
    assert err == ""
    assert "tiny\\_model" in path.read_text()


@pytest.mark.parametrize(("kind", "code", "written"), [("mismatch", 1, True), ("crash", 3, False), ("input", 2, False)])
def test_exit_codes_of_the_engine(
    fake_engine: object, kind: str, code: int, written: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_engine(kind)  # type: ignore[operator]
    path = tmp_path / "r.tex"
    assert run("--output", path) == code
    out, err = capsys.readouterr()
    assert path.exists() is written
    assert list(tmp_path.iterdir()) == ([path] if written else [])
    assert (out, err.count("\n")) == ((f"{path}\n", 0) if written else ("", 1))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--output", "r.pdf"), "must end in .tex"),
        (("--output", "no/such/r.tex"), "there is no folder"),
        (("--output", "r.tex", "--model", "no-such-model"), "no-such-model"),
        (("--output", "r.tex", "--n-heads", "7"), "n_heads"),
    ],
)
def test_bad_input_is_one_sentence_and_no_file(
    words: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*words, "--no-measure") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_and_cases_are_measured(fake_engine: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_engine("good")  # type: ignore[operator]
    asked: list[Request] = []
    stream = EngineClient.stream

    def recording(self: EngineClient, request: Request) -> Iterator[Event]:
        asked.append(request)
        return stream(self, request)

    monkeypatch.setattr(EngineClient, "stream", recording)
    assert run("--weights", "w.pt", "--cases", "c.json", "--output", tmp_path / "r.md") == 0
    evaluate, kv_evaluate, benchmark, sample = asked
    assert evaluate == Evaluate(weights="w.pt", cases="c.json")
    assert kv_evaluate == Evaluate(weights="w.pt", cases="c.json", cached=True)
    assert (benchmark.model, sample.model) == ("w.pt", "w.pt")  # type: ignore[attr-defined]


def test_weights_without_measuring_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--weights", "w.pt", "--no-measure", "--output", tmp_path / "r.md") == 2
    assert "--no-measure cannot be combined with --weights or --cases" in capsys.readouterr().err


def test_output_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no-measure") == 2
    assert "--output" in capsys.readouterr().err


def test_ctrl_c_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Measurements:
        raise KeyboardInterrupt

    monkeypatch.setattr("tui.report.measure.measure", interrupted)
    assert run("--output", tmp_path / "r.tex") == 130
    assert list(tmp_path.iterdir()) == []


def test_a_report_replaces_an_older_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.md"
    path.write_text("old")
    assert run("--output", path, "--no-measure") == 0
    assert path.read_text().startswith("# llama-3-8b")


def test_progress_is_shown_on_a_terminal_and_cleared(
    fake_engine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_engine("good")  # type: ignore[operator]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("--output", tmp_path / "r.md") == 0
    shown = "benchmark 1 of 4, about 2.60 s left"
    assert capsys.readouterr().err == f"\r{shown}\r{' ' * len(shown)}\r"
    assert run("--output", tmp_path / "r.md", "--quiet") == 0
    assert capsys.readouterr().err == ""


# What LaTeX makes of it


def compiled(latex: str, folder: Path) -> str:
    """The log of two runs of pdflatex; fails where it does."""
    (folder / "r.tex").write_text(latex, encoding="utf-8")
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "r.tex"],
            cwd=folder,
            capture_output=True,
            timeout=120,
            check=False,
        )
        log = (folder / "r.log").read_text(encoding="latin-1")
        assert done.returncode == 0, log[-2000:]
    return log


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("which", ["llama", "nasty"])
def test_the_document_compiles(
    which: str, request: pytest.FixtureRequest, measured: Measurements, tmp_path: Path
) -> None:
    state = request.getfixturevalue(which)
    log = compiled(document_latex(build_report(state, measured)), tmp_path)
    too_wide = [float(points) for points in re.findall(r"Overfull \\hbox \(([0-9.]+)pt", log)]
    assert max(too_wide, default=0.0) < (1.0 if which == "llama" else 6.0)
    assert "LaTeX Warning" not in log
    assert "Missing character" not in log
    assert not re.search(r"[0-9]pk>", log)  # a bitmap font, drawn for this machine


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_any_text_compiles(tmp_path: Path) -> None:
    every = "".join(chr(code) for code in range(0x20, 0x2C00) if unicodedata.category(chr(code)) != "Cn")
    lines = [every[i : i + 60] for i in range(0, len(every), 60)]
    body = "\n\n".join(escape(f"{line} {' '.join(line)}") for line in lines)
    document = rf"\documentclass{{article}}\begin{{document}}{body}\end{{document}}"
    log = compiled(document, tmp_path)
    assert "Missing character" not in log
    assert not re.search(r"[0-9]pk>", log)  # a bitmap font, drawn for this machine


def test_derivations_and_figures_are_both_there(llama: AppState) -> None:
    blocks = build_report(llama, None).blocks
    assert sum(isinstance(block, Derivation) for block in blocks) == 5
    assert len(part_d(analyse(llama).intensity)) > 8
