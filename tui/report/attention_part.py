"""Problem 1 (d): arithmetic intensity, its plots and what they show."""

from __future__ import annotations

from dataclasses import replace

from calc.commands import intensity_tables as tables
from calc.explain.terms import substituted
from calc.intensity.attention import Attention
from calc.intensity.observations import intensity_observations, textbook_observations
from calc.intensity.study import IntensityReport, textbook_report
from calc.units import format_count, format_number
from tui.charts.chart import Chart
from tui.charts.plots import decode_chart, flash_chart, prefill_chart
from tui.report.formulas_part import standard_report
from tui.report.model import (
    Block,
    Figure,
    Grid,
    Heading,
    Math,
    Paragraph,
    Text,
    cells,
    formula,
    grid_of,
    paragraph,
    plain_items,
)


def studied_report(report: IntensityReport) -> IntensityReport:
    """The one-head study shown in (d), with the chosen algorithm if the layers are plain."""
    return report if report.layers is None else standard_report(report)


def part_d(report: IntensityReport) -> list[Block]:
    """Intensity at N and d, the two plots with their numbers and observations, then FlashAttention and the layers."""
    study = studied_report(report)
    query = study.query
    return [
        Heading(1, f"Problem 1 (d): arithmetic intensity at N = {query.context:,} and d = {query.head_dim:,}"),
        _intensity_answer(study),
        *_algorithm_note(report),
        intensity_grid(study),
        *_limits(study),
        Heading(2, "Prefill against context, batch 1"),
        Figure(chart=prefill_figure(study), caption=_prefill_caption(study)),
        grid_of(tables.context_table(study), title=f"Prefill by context, {query.attention} attention"),
        Heading(2, "Decode against batch"),
        Figure(chart=decode_chart(study), caption=_decode_caption(study)),
        grid_of(tables.batch_table(study), title="Decode by batch, FLOP/B (g: query heads per KV head)"),
        Heading(2, "What the numbers show"),
        plain_items(textbook_observations(study) if report.layers else intensity_observations(study)),
        *_flash_comparison(study),
        *_layers_blocks(report),
    ]


def _intensity_answer(report: IntensityReport) -> Paragraph:
    """The answer to (d): the intensity of both phases, and what it does as the context and the batch grow."""
    prefill, decode = report.prefill, report.decode
    grows = "grows without limit" if prefill.limit is None else f"tends to {prefill.limit:,.4g}"
    return paragraph(
        f"Answer: {prefill.intensity:,.4g} FLOP/B in prefill, which {grows} as the context grows; "
        f"{decode.intensity:,.3g} FLOP/B in decode at any batch size."
    )


def _algorithm_note(report: IntensityReport) -> list[Block]:
    if report.layers is not None:
        return [
            paragraph(
                "This part first studies the plain attention of the question, with the head dimension of "
                f"{report.query.model.title}; what the model's own layers do follows at the end.",
            )
        ]
    if report.query.attention is Attention.STANDARD:
        return []
    return [
        paragraph("This part studies FlashAttention, as chosen; standard attention is compared with it at the end.")
    ]


def _flash_comparison(report: IntensityReport) -> list[Block]:
    """Both algorithms in a separate figure."""
    standard = standard_report(report)
    flash = textbook_report(replace(report.query, attention=Attention.FLASH))
    other = flash if report.query.attention is Attention.STANDARD else standard
    return [
        Heading(2, "For comparison: FlashAttention"),
        intensity_grid(other),
        Figure(
            chart=flash_chart(standard, flash),
            caption=("Prefill of both algorithms against context, batch 1, both axes logarithmic.",),
        ),
        grid_of(tables.flash_table(report), title="Bytes and intensity of both algorithms (FLOPs are the same)"),
    ]


def _layers_blocks(report: IntensityReport) -> list[Block]:
    """What the model's own layers do, if they are not all plain attention."""
    if report.layers is None:
        return []
    prefill, decode = tables.phase_tables(report, "Prefill by kind of layer", "Decode by kind of layer")
    return [
        Heading(2, f"The layers of {report.query.model.title}"),
        paragraph(
            "The layers of this model are not all plain attention over the whole context. This section counts what "
            "each of them does, for one sequence and all layers.",
        ),
        grid_of(prefill, title=prefill.title),
        grid_of(decode, title=decode.title),
        Figure(chart=decode_chart(report), caption=_decode_caption(report)),
        grid_of(tables.batch_table(report), title="Decode of all layers by batch, FLOP/B"),
        plain_items(intensity_observations(report)),
    ]


def intensity_grid(report: IntensityReport) -> Grid:
    """FLOPs / bytes for both phases."""
    return Grid(
        title=f"Intensity of {report.query.attention} attention: FLOPs over bytes",
        columns=cells("Phase", "Formula", "FLOP", "Bytes", "FLOP/B", "As N grows"),
        rows=tuple(
            cells(
                str(cost.phase),
                formula(cost.intensity_formula),
                format_count(cost.flops),
                format_count(cost.bytes),
                f"{cost.intensity:,.3f}",
                "no limit" if cost.limit is None else f"→ {format_number(cost.limit, figures=4)}",
            )
            for cost in (report.prefill, report.decode)
        ),
        numeric=frozenset({2, 3, 4}),
    )


def _limits(report: IntensityReport) -> list[Block]:
    """The limits in N as formulas, for the studied algorithm."""
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
                    f" = {format_number(cost.limit, figures=4)} FLOP/B.",
                )
            )
        )
    return out


def prefill_figure(report: IntensityReport) -> Chart:
    """The prefill curve on linear axes, with its limit, and the ridge if it is near."""
    return replace(prefill_chart(report), title=f"Prefill · d = {report.query.head_dim}")


def _prefill_caption(report: IntensityReport) -> Text:
    limit = report.prefill.limit
    drawn = "" if limit is None else f"; dashed, the limit {limit:,.2f} FLOP/B"
    return (f"Prefill attention against context, batch 1, both axes linear{drawn}{_ridge_words(report)}.",)


def _decode_caption(report: IntensityReport) -> Text:
    return (
        f"A decode step against batch at N = {report.query.context:,}, both axes logarithmic{_ridge_words(report)}.",
    )


def _ridge_words(report: IntensityReport) -> str:
    values = ", ".join(f"{ridge.name} {ridge.value:,.0f} FLOP/B" for ridge in report.ridges)
    if not report.ridges[0].common:
        return f"; the ridge: {values}"
    return (
        f"; the bandwidth or peak of {report.query.device.name} is unknown, so ridges of common devices are "
        f"shown: {values}"
    )
