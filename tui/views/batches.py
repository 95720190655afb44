"""The largest batch by context or storage format, under the rule of the state, as tables and as a chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from calc.commands.tables import Row, Table
from calc.explain.terms import Term, derive
from calc.fit.admission import Admission, Costs
from calc.fit.memory import weight_bytes
from calc.fit.solve import GridRow
from calc.model.cache import request_term
from calc.model.count import parameters
from calc.model.storage import FORMATS, StorageFormat
from calc.units import format_count
from tui.charts.chart import Axis, Chart, Series
from tui.views.rule import Rule

CONTEXTS = tuple(2**i for i in range(10, 18))
WEIGHT_FORMATS = ("bf16", "fp8", "q4_k")
KV_FORMATS = ("bf16", "fp8", "q4_0")
MOST_FORMATS = 3
"""Formats compared for a server: each pair costs a report."""
NONE_FITS, NOT_RUN = "–", "✗"
SYMBOLS = "●×◆○+"


def contexts_around(context: int) -> tuple[int, ...]:
    """Powers of two from 1,024 to 131,072 and `context` itself, or 262,144 if it is one of them: always nine."""
    return tuple(sorted({*CONTEXTS, context if context not in CONTEXTS else 2 * CONTEXTS[-1]}))


def batch_cell(at: Admission) -> str:
    """The batch; ``–`` if no request fits, ``✗`` if the rule cannot divide the model that way."""
    if not at.runnable:
        return NOT_RUN
    return format_count(at.batch) if at.batch else NONE_FITS


def batch_by_context(rule: Rule, tps: Sequence[int] | None = None, *, explained: bool = True) -> Table:
    """The largest batch by context and TP (by default the rule's); the study's own context is marked.

    Rows carry their calculation if `explained`.
    """
    contexts = contexts_around(rule.study.context)
    grid = rule.grid(rule.tps if tps is None else tps, contexts)
    return Table(
        title=f"Largest batch by context ({rule.name})",
        columns=("Context", *(f"TP {row.tp}" for row in grid)),
        rows=[_context_row(rule, grid, i, context, explained=explained) for i, context in enumerate(contexts)],
        numeric=range(1, len(grid) + 1),
    )


def _context_row(rule: Rule, grid: Sequence[GridRow], i: int, context: int, *, explained: bool) -> Row:
    own = context == rule.study.context
    request = (request_term(rule.study.model, rule.study.kv_format, context),) if explained else ()
    steps = (_steps(row.costs, row.cells[i], context, f"TP {row.tp}") for row in grid if explained)
    refused = [(row.tp, row.cells[i].problem) for row in grid if not row.cells[i].runnable]
    return Row(
        (f"{context:,}{' ◂' if own else ''}", *(batch_cell(row.cells[i]) for row in grid)),
        title=f"Largest batch at {context:,} tokens",
        terms=(*request, *chain.from_iterable(steps)),
        remark=" ".join(f"TP {tp}: {problem}." for tp, problem in refused),
        strong=own,
    )


def _steps(costs: Costs | None, at: Admission, context: int, case: str) -> Iterator[Term]:
    """The calculation of a cell; the one step of a plain rule is named after the `case`."""
    if costs is None or not at.runnable:
        return
    found = costs.steps(at, context)
    for term in found:
        lacks = ": missing for one request" if term.unit == "B" else ""
        yield term if len(found) > 1 else replace(term, name=f"Largest batch, {case}{lacks}")


def batch_by_format(rule: Rule) -> Table:
    """The largest batch by storage format of weights (rows) and KV cache (columns), at the rule's TP."""
    weights, caches = formats_beside(rule)
    costs, counted = rule.costs(rule.tp), parameters(rule.study.model).total
    return Table(
        title=f"Largest batch by storage format ({rule.name})",
        columns=(
            "One device" if rule.tp == 1 else f"TP {rule.tp}",
            *(f"KV {cache.name}{' ◂' * (cache == rule.study.kv_format)}" for cache in caches),
        ),
        rows=[_format_row(costs, weight, caches, counted) for weight in weights],
        numeric=range(1, len(caches) + 1),
    )


def _format_row(costs: Costs, weight: StorageFormat, caches: Sequence[StorageFormat], counted: int) -> Row:
    context, each = costs.study.context, weight.bytes_per_element
    stored = [costs.stored(weight, cache) for cache in caches]
    found = [one.admission() for one in stored]
    steps = (_steps(one, at, context, f"KV {cache.name}") for one, at, cache in zip(stored, found, caches, strict=True))
    chosen = weight == costs.study.weight_format
    held = derive(f"Weights as {weight.name}", weight_bytes, unit="B", parameters=counted, weight_element_bytes=each)
    return Row(
        (f"weights {weight.name}{' ◂' if chosen else ''}", *map(batch_cell, found)),
        title=f"Largest batch with {weight.name} weights",
        terms=(held, *chain.from_iterable(steps)),
        remark=next((f"{at.problem}." for at in found if not at.runnable), ""),
        strong=chosen,
    )


def formats_beside(rule: Rule) -> tuple[tuple[StorageFormat, ...], tuple[StorageFormat, ...]]:
    """Weight and cache formats in the table, including the study's own."""
    if rule.server is not None:
        weights, caches = rule.costs(rule.tp).offered_formats()
        return _first(weights, rule.study.weight_format), _first(caches, rule.study.kv_format)
    return _with(WEIGHT_FORMATS, rule.study.weight_format), _with(KV_FORMATS, rule.study.kv_format)


def _first(known: Sequence[StorageFormat], own: StorageFormat) -> tuple[StorageFormat, ...]:
    return tuple(dict.fromkeys([own, *known]))[:MOST_FORMATS]


def _with(names: Sequence[str], own: StorageFormat) -> tuple[StorageFormat, ...]:
    formats = [FORMATS[name] for name in names]
    if all(fmt.bytes_per_element != own.bytes_per_element for fmt in formats):
        formats.insert(0, own)
    return tuple(own if fmt.bytes_per_element == own.bytes_per_element else fmt for fmt in formats)


def batch_chart(rule: Rule) -> Chart:
    """The largest batch against context, one line per TP; contexts at which nothing fits have no point."""
    contexts, series = contexts_around(rule.study.context), []
    for i, row in enumerate(rule.grid(rule.tps[: len(SYMBOLS)], contexts)):
        points = (
            (float(context), float(at.batch)) for context, at in zip(contexts, row.cells, strict=True) if at.batch
        )
        series.append(Series(label=f"TP {row.tp}", symbol=SYMBOLS[i], points=tuple(points), colour=i))
    return Chart(
        title=f"Largest batch against context ({rule.name})",
        x=Axis(title="tokens of context", log=True, doubling=True),
        y=Axis(title="requests", log=True),
        series=tuple(one for one in series if one.points),
        empty="no request fits",
    )
