"""Problem 1 (c) and (d): the work of attention derived step by step, its intensity, the plots, what they show."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from calc.commands import tables
from calc.explain.polynomial import closed_form, ratio, to_expr
from calc.explain.terms import Expr, Term, as_expr, substituted, symbol, to_text
from calc.intensity.attention import Attention, Phase, PhaseCost, StepCost, attention_steps
from calc.intensity.observations import intensity_observations
from calc.intensity.study import IntensityQuery, IntensityReport, intensity_report
from calc.model.storage import whole
from calc.units import format_count
from tui.report.model import (
    Block,
    Bullets,
    Derivation,
    Figure,
    Grid,
    Heading,
    Inline,
    Math,
    Paragraph,
    Step,
    Text,
    cells,
    formula,
    grid_of,
    paragraph,
    plain_items,
    symbol_math,
)
from tui.views.chart import Axis, Chart, Series
from tui.views.plots import decode_chart, prefill_chart

PHASES = {Phase.PREFILL: "Prefill: all N tokens at once", Phase.DECODE: "Decode: one new token"}


def standard_report(report: IntensityReport) -> IntensityReport:
    """The same study with standard attention as the algorithm, FlashAttention as the other one."""
    if report.query.attention is Attention.STANDARD:
        return report
    return intensity_report(replace(report.query, attention=Attention.STANDARD))


# (c)


def part_c(report: IntensityReport) -> list[Block]:
    """Algorithm 0 in both phases, each term explained, the sums, and FlashAttention beside it."""
    standard = standard_report(report)
    blocks: list[Block] = [
        Heading(1, "Problem 1 (c): FLOPs and bytes of attention, as formulas in N and d"),
        *_setting(standard),
    ]
    for cost in (standard.prefill, standard.decode):
        blocks += _phase_blocks(standard.query, cost)
    return [*blocks, *_flash_blocks(standard)]


def _setting(report: IntensityReport) -> list[Block]:
    query = report.query
    softmax = (
        "the softmax is left out"
        if query.softmax_flops == 0
        else f"the softmax counts {query.softmax_flops} FLOP per element "
        "(maximum, subtraction, exponential, sum, division)"
    )
    return [
        paragraph(
            "Counted is one head: ",
            symbol_math("n_keys"),
            " tokens are attended to, a head has dimension ",
            symbol_math("head_dim"),
            ", an element takes ",
            symbol_math("element_bytes"),
            " bytes. A multiply and an add are two FLOP; ",
            f"{softmax}; there is no causal mask. Algorithm 0 (Dao et al. 2022, section 2.2) computes S, P and O one "
            "after the other, and S and P go to device memory and come back. With K and V of its own for every head, "
            "heads and layers multiply FLOPs and bytes alike and the intensity of one head is that of the whole "
            "model's attention; query heads that share K and V follow in (d).",
        )
    ]


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


def _symbols(query: IntensityQuery) -> dict[str, object]:
    """Arguments of `attention_steps` that trace formulas in N and d (and g where heads are grouped)."""
    group = 1 if query.group_size == 1 else symbol("group_size")
    return {
        "n_keys": symbol("n_keys"),
        "head_dim": symbol("head_dim"),
        "group_size": group,
        "softmax_flops": query.softmax_flops,
    }


def step_sentences(query: IntensityQuery, phase: Phase) -> tuple[Text, ...]:
    """For each step of Algorithm 0: where its FLOPs come from, and which tensors it reads and writes.

    The names of the tensors are those in the step's own name ("O = P V": O is written, P and V are read), their
    sizes the addends of its traced formulas, in the same order.
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
    """Why the step takes its FLOPs: entries of the result times what each one costs."""
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
    """What keeping S and P on the chip saves, from the difference of the two byte formulas."""
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
        Heading(2, "FlashAttention beside it"),
        paragraph(
            "FlashAttention (Algorithm 1 of the same paper) does the same FLOPs block by block and keeps S and P on "
            "the chip: their writes and reads disappear from the bytes. Counted for it is the least traffic possible, "
            "Q, K, V and O once each.",
        ),
        Grid(
            title="Bytes of standard attention, of FlashAttention, and what is saved",
            columns=cells("Phase", "Bytes", "Flash bytes", "Saved", "Bytes", "Flash bytes", "FLOP/B", "Flash FLOP/B"),
            rows=tuple(rows),
            numeric=frozenset({4, 5, 6, 7}),
        ),
    ]


# (d)


def part_d(report: IntensityReport) -> list[Block]:
    """Intensity at N and d, the two plots with their numbers, and the observations."""
    query = report.query
    return [
        Heading(1, f"Problem 1 (d): arithmetic intensity at N = {query.context:,} and d = {query.head_dim:,}"),
        *_algorithm_note(query),
        intensity_grid(report),
        *_limits(report),
        Heading(2, "Prefill against context, batch 1"),
        Figure(chart=prefill_figure(report), caption=_prefill_caption(report)),
        grid_of(tables.context_table(report), title=f"Prefill by context, {query.attention} attention"),
        Heading(2, "Decode against batch"),
        Figure(chart=decode_chart(report), caption=_decode_caption(report)),
        grid_of(tables.batch_table(report), title="Decode by batch, FLOP/B (g: query heads per KV head)"),
        Heading(2, "What the numbers show"),
        plain_items(intensity_observations(report)),
    ]


def _algorithm_note(query: IntensityQuery) -> list[Block]:
    if query.attention is Attention.STANDARD:
        return []
    return [paragraph("This part studies FlashAttention, as chosen; standard attention stands beside it.")]


def intensity_grid(report: IntensityReport) -> Grid:
    """FLOPs over bytes of both phases, both algorithms."""
    standard = standard_report(report)
    labelled = (
        ("standard", standard.prefill),
        ("standard", standard.decode),
        ("flash", standard.other_prefill),
        ("flash", standard.other_decode),
    )
    return Grid(
        title="Intensity: FLOPs over bytes",
        columns=cells("Algorithm", "Phase", "Formula", "FLOP", "Bytes", "FLOP/B", "As N grows"),
        rows=tuple(
            cells(
                kind,
                str(cost.phase),
                formula(cost.intensity_formula),
                format_count(cost.flops),
                format_count(cost.bytes),
                f"{cost.intensity:,.3f}",
                "no limit" if cost.limit is None else f"→ {cost.limit:.4g}",
            )
            for kind, cost in labelled
        ),
        numeric=frozenset({3, 4, 5}),
    )


def _limits(report: IntensityReport) -> list[Block]:
    """The limits in N as formulas, for the algorithm that is studied."""
    out: list[Block] = []
    for cost in (report.prefill, report.decode):
        if cost.limit_formula is None or cost.limit is None:
            out.append(paragraph(f"{cost.phase.capitalize()} has no limit: the intensity grows with N."))
            continue
        numbers = Math(
            substituted(cost.limit_formula, cost.values), substituted(cost.limit_formula, cost.values, latex=True)
        )
        out.append(
            Paragraph(
                (
                    f"{cost.phase.capitalize()}, as N grows: the intensity tends to ",
                    formula(cost.limit_formula),
                    " = ",
                    numbers,
                    f" = {cost.limit:.4g} FLOP/B.",
                )
            )
        )
    return out


def prefill_figure(report: IntensityReport) -> Chart:
    """Both algorithms on logarithmic axes, with the limit of the standard one and the ridge where known."""
    standard = standard_report(report)
    flash = intensity_report(replace(report.query, attention=Attention.FLASH))
    base, other = prefill_chart(standard), prefill_chart(flash)
    series = (
        *(replace(line, label="standard attention") for line in base.series),
        *(_restyled(line, label="FlashAttention", symbol="×", colour=1) for line in other.series),
    )
    limits = tuple(level for level in base.levels if level.label.startswith("limit"))
    ridge = tuple(level for level in other.levels if level.label.startswith("ridge"))
    return replace(
        base,
        title=f"Prefill · d = {report.query.head_dim}",
        y=Axis(title=base.y.title, log=True, tick=other.y.tick),
        series=series,
        levels=(*limits, *ridge),
        notes=() if ridge else other.notes,
    )


def _restyled(line: Series, *, label: str, symbol: str, colour: int) -> Series:
    return replace(line, label=label, symbol=symbol, colour=colour)


def _prefill_caption(report: IntensityReport) -> Text:
    limit = standard_report(report).prefill.limit
    drawn = "" if limit is None else f"; dashed, the limit {limit:,.2f} FLOP/B of standard attention"
    return (f"Prefill attention against context, batch 1, both axes logarithmic{drawn}{_ridge_words(report)}.",)


def _decode_caption(report: IntensityReport) -> Text:
    return (
        f"A decode step against batch at N = {report.query.context:,}, both axes logarithmic{_ridge_words(report)}.",
    )


def _ridge_words(report: IntensityReport) -> str:
    device = report.query.device
    ridge = device.ridge()
    if ridge is None:
        return f"; {device.name} has no known bandwidth or peak, so no ridge is drawn"
    return f"; the ridge of {device.name} lies at {ridge:,.0f} FLOP/B"
