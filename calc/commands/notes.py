"""Notes for a reader of the memory table: sentences built from, and chosen by, the numbers.

Separate from `calc.intensity.observations`, so that a cold ``memory`` imports nothing of the intensity study.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from calc.fit.memory import MemoryReport, memory_report
from calc.model.cache import request_term
from calc.model.spec import ModelSpec
from calc.model.study import Policy, Study
from calc.units import format_bytes, format_decimal

if TYPE_CHECKING:
    from calc.servers.records import ServerReport

SMALLEST_WEIGHT = 25
"""Hundredths of a byte: no format stores a weight in less than 2 bits."""


BEYOND_LIMIT = "longer than the model's limit"
"""Part of the note on a context beyond the model's limit."""


def memory_notes(report: MemoryReport, *, devices: int = 1) -> tuple[str, ...]:
    """Notes on the memory table: how sizes are read, what is assumed, and what would fit.

    If the answer is for several `devices`, the sentence on what fits says that it is for one.
    """
    model = report.study.model
    alone = _fit_note(report) if devices == 1 else f"On one device: {_lowered(_fit_note(report))}"
    notes = [*_model_notes(report), alone]
    if model.n_sliding_layers and model.uniform:
        notes.append(_window_note(report))
    notes += context_notes(report.study)
    notes.extend(f"TP {row.tp} cannot be served: {row.problem}." for row in report.tp if row.problem)
    notes.extend(_replication_notes(report) if model.uniform else [])
    if report.study.weight_format.note:
        notes.append(report.study.weight_format.note)
    notes.append(f"{_bytes_note(report)}; activations, runtime and graphs are not counted.")
    return (*notes, *map(as_sentence, model.notes))


def served_notes(report: MemoryReport, served: ServerReport) -> list[str]:
    """The notes of `memory_notes` that also hold for a server. A server has its own notes on what fits and what each
    layer keeps, and on the device's memory if it sees another size than the nominal one.
    """
    from calc.servers.budget import visible_bytes

    model = report.study.model
    drafted = served.options.speculative_layers > 0
    said = [as_sentence(note) for note in model.notes if not (drafted and UNCOUNTED_DRAFTS in note)]
    reading = [] if visible_bytes(report.study.device)[1] else [_reading_note(report)]
    if model.uniform:
        return [*reading, _grouping_note(model), *said]
    from calc.commands.layered_notes import kind_notes, repeated_heads

    repeated = repeated_heads(report) if served.options.engine in REPEATS_HEADS else []
    return [*reading, *kind_notes(report), *repeated, *said]


UNCOUNTED_DRAFTS = "multi-token-prediction layers are not counted"
"""A note of the config reader that is false if --speculative-layers counts these layers."""
REPEATS_HEADS = ("vllm", "sglang")
"""Servers that split a cache by heads and repeat them."""


def _model_notes(report: MemoryReport) -> list[str]:
    """How the memory size is read, and what the layers are."""
    model, reading = report.study.model, _reading_note(report)
    if model.uniform:
        return [reading, _grouping_note(model)]
    from calc.commands.layered_notes import layered_notes

    return [reading, *layered_notes(report)]


def _reading_note(report: MemoryReport) -> str:
    return f"Device memory: {report.study.device.reading}."


def as_sentence(note: str) -> str:
    """A model's own note among sentences. A field's name, which a word with a line in it is, stays as it is.

    >>> as_sentence("the head shares the embedding"), as_sentence("num_nextn_predict_layers 1: not counted")
    ('The head shares the embedding.', 'num_nextn_predict_layers 1: not counted.')
    """
    first = note.partition(" ")[0].rstrip(":")
    begun = note[:1].upper() + note[1:] if first.isalpha() else note
    return begun if begun.endswith((".", "!", "?")) else f"{begun}."


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def other_memory(report: MemoryReport) -> MemoryReport | None:
    """The study with the other reading of a typed-in memory ("80 GB": 10^9 or 2^30); None if there is only one."""
    from calc.sources.catalog import manual_device, other_reading

    device = report.study.device
    other = other_reading(device.memory_bytes) if device.source == "typed in" else None
    return None if other is None else memory_report(replace(report.study, device=manual_device(other)))


def reading_notes(report: MemoryReport) -> list[str]:
    """How many requests fit under the other reading of the device's memory, in one sentence."""
    other = other_memory(report)
    if other is None:
        return []
    held = {0: "no request fits", 1: "1 request fits"}.get(other.max_batch, f"{other.max_batch:,} requests fit")
    return [f"With the other reading of the memory, {other.study.device.reading}, {held}."]


def context_notes(study: Study) -> list[str]:
    """The sentence that the context is longer than the model's limit, if it is."""
    most = study.model.max_context
    beyond = most is not None and study.context > most
    return [f"The context of {study.context:,} tokens is {BEYOND_LIMIT} of {most:,}."] if beyond else []


def _bytes_note(report: MemoryReport) -> str:
    """Bytes per parameter: equal for all, or an average if the checkpoint's own bytes are counted."""
    study = report.study
    value = study.weight_format.bytes_per_element
    each = f"{float(value):g} byte" + ("" if value == 1 else "s")
    if study.weight_format.stored is not None:
        return f"The stored weights take {each} per parameter on average"
    return f"Every parameter is counted at {each}"


def _grouping_note(model: ModelSpec) -> str:
    if model.group_size == 1:
        if model.n_heads == 1:
            return "Single-head attention: one query head with its own K and V."
        return f"Multi-head attention: each of the {model.n_heads} query heads has its own K and V."
    kind = "Multi-query" if model.n_kv_heads == 1 else "Grouped-query"
    heads = "the one KV head" if model.n_kv_heads == 1 else "each KV head"
    return (
        f"{kind} attention: {model.group_size} query heads share {heads}, so the cache is {model.group_size} times "
        f"smaller than with {model.n_heads} KV heads."
    )


def _fit_note(report: MemoryReport) -> str:
    if report.fits:
        left = report.free_bytes - report.max_batch * report.request_bytes
        requests = "request fits" if report.max_batch == 1 else "requests fit"
        return (
            f"{report.max_batch:,} {requests} in the memory that the weights leave; {format_decimal(left)} "
            "remains free."
        )
    missing = format_bytes(report.request_bytes - report.free_bytes)
    if report.free_bytes < 0:
        over = format_bytes(-report.free_bytes)
        what = f"Does not fit: the weights alone exceed the memory by {over}, and with one request by {missing}."
    else:
        what = f"Does not fit: the weights fit, but one request needs {missing} more."
    return f"{what} {_remedy(report)}"


def _remedy(report: MemoryReport) -> str:
    """Changes that would each make one request fit."""
    ways = []
    if (context := _fitting_context(report)) is not None:
        ways.append(f"a context of {context:,} tokens" if context > 1 else "a context of 1 token")
    if (tp := smallest_fitting_tp(report)) is not None:
        ways.append(f"tensor parallelism over {tp} such devices")
    allowed = Fraction(report.study.device.memory_bytes - report.request_bytes, report.parameters.total)
    if (hundredths := int(allowed * 100)) >= SMALLEST_WEIGHT:
        ways.append(f"weights of at most {hundredths / 100:.2f} bytes each")
    if not ways:
        return "No shorter context, smaller weight format or tensor parallelism over whole heads is enough on its own."
    return f"It would fit with {', or '.join(ways)}."


def _fitting_context(report: MemoryReport) -> int | None:
    """The longest request that fits beside the weights, in tokens; None if not even one token does.

    This also holds for windowed layers: if one request does not fit, its cache grows with its context up to that
    length.
    """
    study, low, high = report.study, 0, report.study.context
    while high - low > 1:
        middle = (low + high) // 2
        kept = request_term(study.model, study.kv_format, middle).value
        kept += report.state_bytes_per_sequence
        low, high = (middle, high) if kept <= report.free_bytes else (low, middle)
    return low or None


def smallest_fitting_tp(report: MemoryReport) -> int | None:
    """The fewest devices, with whole heads, on which one request fits beside the weights; None if no degree does."""
    study = report.study
    degrees = tuple(tp for tp in range(2, min(study.model.n_heads, 1024) + 1) if study.model.n_heads % tp == 0)
    if not degrees:
        return None
    rows = memory_report(replace(study, tps=degrees, policy=Policy.REPLICATED)).tp
    return next((row.tp for row in rows if row.fits), None)


def _window_note(report: MemoryReport) -> str:
    model, context = report.study.model, report.study.context
    window = model.window or 0
    capped = "less than" if window < context else "at least"
    return (
        f"{model.n_sliding_layers} of {model.n_layers} layers keep a window of {window:,} tokens, {capped} the "
        f"context; the cache is {format_decimal(report.kv_bytes_per_request)} instead of "
        f"{format_decimal(report.kv_bytes_per_token * context)}."
    )


def _replication_notes(report: MemoryReport) -> list[str]:
    n_kv_heads = report.study.model.n_kv_heads
    beyond = [row.tp for row in report.tp if row.tp > n_kv_heads and not row.problem]
    if not beyond:
        return []
    degrees, gpus = ", ".join(map(str, beyond)), "1 GPU" if n_kv_heads == 1 else f"{n_kv_heads} GPUs"
    return [
        f"Beyond {gpus} (TP {degrees}) whole KV heads are repeated: a server's cache per GPU stops shrinking, unlike "
        "in the equal split."
    ]
