"""Problem 1 (c): the work of attention derived step by step, as formulas in N and d."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

from calc.explain.polynomial import closed_form, ratio, to_expr
from calc.explain.terms import Expr, Term, as_expr, number_text, symbol, to_text
from calc.intensity.attention import Attention, Phase, PhaseCost, StepCost, attention_steps
from calc.intensity.study import IntensityQuery, IntensityReport, textbook_report
from calc.units import format_count, whole
from tui.report.model import (
    Block,
    Bullets,
    Derivation,
    Grid,
    Heading,
    Inline,
    Math,
    Paragraph,
    Step,
    Text,
    cells,
    formula,
    paragraph,
    symbol_math,
)

PHASES = {Phase.PREFILL: "Prefill: all N tokens at once", Phase.DECODE: "Decode: one new token"}


def standard_report(report: IntensityReport) -> IntensityReport:
    """The same study of plain attention, with standard attention as the algorithm and FlashAttention for comparison."""
    if report.query.attention is Attention.STANDARD and report.layers is None:
        return report
    return textbook_report(replace(report.query, attention=Attention.STANDARD))


def part_c(report: IntensityReport) -> list[Block]:
    """Algorithm 0 in both phases, each term explained, the sums, and a comparison with FlashAttention."""
    standard = standard_report(report)
    blocks: list[Block] = [
        Heading(1, "Problem 1 (c): FLOPs and bytes of attention, as formulas in N and d"),
        _formula_answer(standard),
        *_setting(standard),
    ]
    for cost in (standard.prefill, standard.decode):
        blocks += _phase_blocks(standard.query, cost)
    return [*blocks, *_flash_blocks(standard)]


def _formula_answer(report: IntensityReport) -> Paragraph:
    """The answer to (c): FLOPs and bytes of both phases for one head."""
    head = "one head" if report.query.group_size == 1 else "one KV head and its query heads"
    pieces: list[Inline] = []
    for cost in (report.prefill, report.decode):
        pieces += ["; " if pieces else f"Answer: for {head}, ", f"{cost.phase} takes ", formula(cost.flops_formula)]
        pieces += [" FLOP and moves ", formula(cost.bytes_formula), " bytes"]
    return Paragraph((*pieces, "."))


def _setting(report: IntensityReport) -> list[Block]:
    query = report.query
    return [
        paragraph(
            "All counts are for one head: ",
            symbol_math("n_keys"),
            " tokens are attended to, a head has dimension ",
            symbol_math("head_dim"),
            ", an element takes ",
            symbol_math("element_bytes"),
            " bytes. A multiply and an add are two FLOP; ",
            f"{_softmax_words(query)}; {_mask_words(query)}. Algorithm 0 (Dao et al. 2022, section 2.2) computes S, P "
            "and O one after another, and writes S and P to device memory and reads them back. If every head has its "
            "own K and V, heads and layers multiply FLOPs and bytes equally, so the intensity of one head is that of "
            "the whole model's attention; query heads that share K and V follow in (d).",
        )
    ]


def _softmax_words(query: IntensityQuery) -> str:
    if not query.softmax_flops:
        return "the softmax is left out"
    of = " (maximum, subtraction, exponential, sum, division)" if query.softmax_flops == 5 else ""
    return f"the softmax counts {number_text(query.softmax_flops)} FLOP per element{of}"


def _mask_words(query: IntensityQuery) -> str:
    if query.causal:
        return "with the causal mask, only the lower triangle of S and P is computed and moved in prefill"
    return "there is no causal mask"


def _phase_blocks(query: IntensityQuery, cost: PhaseCost) -> list[Block]:
    return [
        Heading(2, PHASES[cost.phase]),
        *_phase_opening(cost),
        Bullets(step_sentences(query, cost.phase), numbered=True),
        step_grid(cost),
        Derivation(title=f"{cost.phase.capitalize()}: the totals", steps=total_steps(cost)),
    ]


def _phase_opening(cost: PhaseCost) -> list[Block]:
    if cost.phase is Phase.PREFILL:
        return []
    return [
        paragraph(
            "The query is a single row; K and V of all ",
            symbol_math("n_keys"),
            " tokens, the new one included, come from the cache.",
        )
    ]


def _symbols(query: IntensityQuery) -> dict[str, Any]:
    """Arguments of `attention_steps` that trace formulas in N and d (and g if heads are grouped)."""
    group = 1 if query.group_size == 1 else symbol("group_size")
    return {
        "n_keys": symbol("n_keys"),
        "head_dim": symbol("head_dim"),
        "group_size": group,
        "softmax_flops": query.softmax_flops,
        "causal": query.causal,
    }


def step_sentences(query: IntensityQuery, phase: Phase) -> tuple[Text, ...]:
    """For each step of Algorithm 0: the source of its FLOPs, and the tensors that it reads and writes.

    The tensors are named in the step's own name ("O = P V": O is written, P and V are read); their sizes are the
    addends of its traced formulas, in the same order.
    """
    steps = attention_steps(Attention.STANDARD, phase, **_symbols(query))
    sentences = []
    for step in steps:
        result, operands = tensors(step.name)
        written = closed_form(as_expr(step.writes))
        read = [(name, closed_form(part)) for name, part in zip(operands, addends(step.reads), strict=True)]
        sentences.append(
            (
                f"{step.name}. ",
                *_flops_sentence(result, step.flops, written, dot_product=len(operands) > 1),
                *_traffic_sentence(read, result, written),
            )
        )
    return tuple(sentences)


def tensors(name: str) -> tuple[str, tuple[str, ...]]:
    """``"S = Q Kᵀ"`` -> what is written, S, and what is read, (Q, K).

    >>> tensors("P = softmax(S)")
    ('P', ('S',))
    """
    left, _, right = name.partition(" = ")
    return left, tuple(re.findall("[A-Z]", right))


def addends(expression: object) -> list[Expr]:
    """The terms of a traced sum, in order."""
    node = as_expr(expression)
    return [*addends(node.args[0]), *addends(node.args[1])] if node.op == "+" else [node]


def _flops_sentence(result: str, flops: object, entries: Expr, *, dot_product: bool) -> Text:
    """Why the step needs its FLOPs: entries of the result times the cost of each."""
    work = as_expr(flops)
    opening: Text = ("Each of the ", formula(entries), f" entries of {result} ")
    if not dot_product:
        each = _quotient(work, entries)
        if to_text(each) == "0":
            return (*opening, "is an exponential over a sum, left out of the FLOPs. ")
        return (*opening, "takes ", formula(each), " FLOP: ", formula(closed_form(work)), " FLOP. ")
    length = formula(_quotient(work, closed_form(2 * entries)))
    return (
        *opening,
        "is a dot product of length ",
        length,
        ": ",
        length,
        " multiplications and as many additions, ",
        formula(closed_form(work)),
        " FLOP in all. ",
    )


def _quotient(above: Expr, below: Expr) -> Expr:
    """`above` / `below` in lowest terms, without a denominator of 1."""
    quotient = ratio(above, below)
    return to_expr(quotient.above) if to_text(to_expr(quotient.below)) == "1" else quotient.expression


def _traffic_sentence(read: list[tuple[str, Expr]], result: str, written: Expr) -> Text:
    parts: list[Inline] = ["Read: "]
    for i, (name, size) in enumerate(read):
        parts += [f"{' and ' if i else ''}{name}, ", formula(size)]
    return (*parts, f" elements. Written: {result}, ", formula(written), " elements.")


def step_grid(cost: PhaseCost) -> Grid:
    """The step table: formulas and values, the last row the sums (which equal the totals)."""
    values = cost.values
    at = f"at N = {values['n_keys']:,}, d = {values['head_dim']:,}"
    rows = [
        cells(
            step.name,
            formula(step.flops_formula),
            formula(step.reads_formula),
            formula(step.writes_formula),
            format_count(step.flops),
            format_count(step.read_bytes),
            format_count(step.write_bytes),
        )
        for step in cost.steps
    ]
    return Grid(
        title=f"{cost.phase.capitalize()}: the three steps as formulas, and their values {at}",
        columns=cells("Step", "FLOP", "Elements read", "Elements written", "FLOP", "Bytes read", "Bytes written"),
        rows=(*rows, _sum_row(cost)),
        numeric=frozenset({4, 5, 6}),
        summed=True,
    )


def _sum_row(cost: PhaseCost) -> tuple[Text, ...]:
    return cells(
        "sum",
        formula(cost.flops_formula),
        formula(_summed(cost.steps, "reads_formula")),
        formula(_summed(cost.steps, "writes_formula")),
        format_count(sum(step.flops for step in cost.steps)),
        format_count(sum(step.read_bytes for step in cost.steps)),
        format_count(sum(step.write_bytes for step in cost.steps)),
    )


def _summed(steps: tuple[StepCost, ...], name: str) -> Expr:
    total: Expr = as_expr(0)
    for step in steps:
        total = Expr("+", (total, getattr(step, name)))
    return closed_form(total)


def total_steps(cost: PhaseCost) -> tuple[Step, ...]:
    """FLOPs, bytes and their ratio of one phase, each as a term."""
    intensity = whole(Fraction(cost.flops) / Fraction(cost.bytes))
    made = (
        ("FLOPs", Math("F", "F"), cost.flops_formula, cost.flops, "FLOP"),
        ("Bytes", Math("Q", "Q"), cost.bytes_formula, cost.bytes, "B"),
        ("Intensity", Math("I = F / Q", r"I = \frac{F}{Q}"), cost.intensity_formula, intensity, "FLOP/B"),
    )
    return tuple(
        Step(
            name=name,
            symbol=mark,
            term=Term(name=name, expression=expression, values=cost.values, value=value, unit=unit),
        )
        for name, mark, expression, value, unit in made
    )


def _flash_blocks(report: IntensityReport) -> list[Block]:
    """What keeping S and P on chip saves, from the difference of the two byte formulas."""
    pairs = ((report.prefill, report.other_prefill), (report.decode, report.other_decode))
    rows = []
    for standard, flash in pairs:
        saved = closed_form(standard.bytes_formula - flash.bytes_formula)
        rows.append(
            cells(
                str(standard.phase),
                formula(standard.bytes_formula),
                formula(flash.bytes_formula),
                formula(saved),
                format_count(standard.bytes),
                format_count(flash.bytes),
                f"{standard.intensity:,.3f}",
                f"{flash.intensity:,.3f}",
            )
        )
    return [
        Heading(2, "Comparison with FlashAttention"),
        paragraph(
            "FlashAttention (Algorithm 1 of the same paper) does the same FLOPs block by block and keeps S and P on "
            "chip, so their reads and writes disappear from the bytes. Its traffic is counted at the minimum: Q, K, "
            "V and O once each.",
        ),
        Grid(
            title="Bytes of standard attention and of FlashAttention, and the difference",
            columns=cells("Phase", "Bytes", "Flash bytes", "Saved", "Bytes", "Flash bytes", "FLOP/B", "Flash FLOP/B"),
            rows=tuple(rows),
            numeric=frozenset({4, 5, 6, 7}),
        ),
    ]
