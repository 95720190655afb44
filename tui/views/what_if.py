"""The largest batch if one thing were otherwise: context and TP, or the storage formats."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

from calc.commands.tables import Row, Table
from calc.explain.terms import Term, derive
from calc.fit.memory import MemoryReport, max_batch, shortfall, weight_bytes
from calc.model.cache import request_term, state_term
from calc.model.spec import Study
from calc.model.storage import FORMATS, StorageFormat
from calc.units import format_count

CONTEXTS = tuple(2**i for i in range(10, 18))
WEIGHT_FORMATS = ("bf16", "fp8", "q4_k")
KV_FORMATS = ("bf16", "fp8", "q4_0")
NONE_FITS = "–"


def batch_of(study: Study, weights: int | Fraction, request: int | Fraction) -> int:
    """Requests of `request` bytes beside `weights` on the device; 0 where not even one fits."""
    memory = study.device.memory_bytes
    if memory < weights + request:
        return 0
    return int(max_batch(memory_bytes=memory, weight_bytes=weights, kv_request_bytes=request))


def request_bytes(study: Study, stored: StorageFormat) -> int:
    """What a request takes with its cache stored so: the cache, and the state where the model has one."""
    cache = ceil(request_term(study.model, stored, study.context).value)
    state = state_term(study.model, stored)
    return cache + (ceil(state.value) if state is not None else 0)


def contexts_around(context: int) -> tuple[int, ...]:
    """Powers of two from 1,024 to 131,072, and `context` itself; 262,144 where it is one of them: always nine."""
    return tuple(sorted({*CONTEXTS, context if context not in CONTEXTS else 2 * CONTEXTS[-1]}))


def batch_by_context(report: MemoryReport) -> Table:
    """The largest batch by context and TP, each device holding an equal share; the study's own context is marked."""
    study, held = report.study, report.weight_bytes
    rows = []
    for context in contexts_around(study.context):
        request = ceil(request_term(study.model, study.kv_format, context).value) + report.state_bytes_per_sequence
        mark = " ◂" if context == study.context else ""
        batches = [batch_of(study, Fraction(held, tp), Fraction(request, tp)) for tp in study.tps]
        rows.append(_row((f"{context:,}{mark}", *map(_shown, batches)), *behind_context(report, context)))
    return Table(
        title="Largest batch by context",
        columns=("Context", *(f"TP {tp}" for tp in study.tps)),
        rows=tuple(rows),
        numeric=frozenset(range(1, len(study.tps) + 1)),
    )


def batch_by_format(report: MemoryReport) -> Table:
    """The largest batch on one device by storage format of weights (rows) and KV cache (columns)."""
    study = report.study
    weights, caches = formats_beside(study)
    rows = []
    for stored in weights:
        held = ceil(weight_bytes(parameters=report.parameters.total, weight_element_bytes=stored.bytes_per_element))
        requests = [request_bytes(study, cache) for cache in caches]
        batches = [batch_of(study, held, request) for request in requests]
        mark = " ◂" if stored == study.weight_format else ""
        rows.append(_row((f"weights {stored.name}{mark}", *map(_shown, batches)), *behind_format(report, stored)))
    return Table(
        title="Largest batch by storage format",
        columns=("One device", *(f"KV {cache.name}{' ◂' * (cache == study.kv_format)}" for cache in caches)),
        rows=tuple(rows),
        numeric=frozenset(range(1, len(caches) + 1)),
    )


def formats_beside(study: Study) -> tuple[tuple[StorageFormat, ...], tuple[StorageFormat, ...]]:
    """Formats of weights and of the cache that the table compares: the study's own among them."""
    return _with(WEIGHT_FORMATS, study.weight_format), _with(KV_FORMATS, study.kv_format)


def _with(names: Sequence[str], own: StorageFormat) -> tuple[StorageFormat, ...]:
    formats = [FORMATS[name] for name in names]
    if all(fmt.bytes_per_element != own.bytes_per_element for fmt in formats):
        formats.insert(0, own)
    return tuple(own if fmt.bytes_per_element == own.bytes_per_element else fmt for fmt in formats)


def _shown(batch: int) -> str:
    return format_count(batch) if batch else NONE_FITS


# --- the calculation behind a row -------------------------------------------------------------------------


def _batch_step(name: str, study: Study, weights: int | Fraction, request: int | Fraction) -> Term:
    fits = study.device.memory_bytes >= weights + request
    return derive(
        name if fits else f"{name}: missing for one request",
        max_batch if fits else shortfall,
        unit="requests" if fits else "B",
        memory_bytes=study.device.memory_bytes,
        weight_bytes=weights,
        kv_request_bytes=request,
    )


def _row(cells: tuple[str, ...], title: str, terms: tuple[Term, ...]) -> Row:
    return Row(cells, title=title, terms=terms, strong=cells[0].endswith("◂"))


def behind_context(report: MemoryReport, context: int) -> tuple[str, tuple[Term, ...]]:
    """Title and steps of a row of `batch_by_context`."""
    study = report.study
    request = request_term(study.model, study.kv_format, context)
    held, needed = report.weight_bytes, ceil(request.value) + report.state_bytes_per_sequence
    batches = (
        _batch_step(f"Largest batch, TP {tp}", study, Fraction(held, tp), Fraction(needed, tp)) for tp in study.tps
    )
    return f"Largest batch at {context:,} tokens", (request, *batches)


def behind_format(report: MemoryReport, stored: StorageFormat) -> tuple[str, tuple[Term, ...]]:
    """Title and steps of a row of `batch_by_format`."""
    study = report.study
    caches = formats_beside(study)[1]
    held = derive(
        f"Weights as {stored.name}",
        weight_bytes,
        unit="B",
        parameters=report.parameters.total,
        weight_element_bytes=stored.bytes_per_element,
    )
    requests = [request_bytes(study, cache) for cache in caches]
    batches = (
        _batch_step(f"Largest batch, KV {cache.name}", study, ceil(held.value), request)
        for cache, request in zip(caches, requests, strict=True)
    )
    return f"Largest batch with {stored.name} weights", (held, *batches)
