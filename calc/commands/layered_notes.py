"""Sentences about a model with different kinds of layers: the kinds, what they cache, what is active."""

from __future__ import annotations

from calc.fit.memory import MemoryReport
from calc.model.cache import cache_elements, fp32_elements, index_elements, state_elements, state_format
from calc.model.parts import mixers_of
from calc.units import format_bytes_exact, format_count, format_decimal

MOST_KINDS = 6


def layered_notes(report: MemoryReport) -> list[str]:
    """Notes that replace those about grouping, windows and repeated heads of a plain model."""
    return [*kind_notes(report), *_cache_notes(report), *repeated_heads(report), *_state_notes(report)]


def kind_notes(report: MemoryReport) -> list[str]:
    """What the layers are, and which parameters each token uses. True no matter how the cache is counted."""
    return [_kinds_note(report), *([_active_note(report)] if report.parameters.idle else [])]


def _kinds_note(report: MemoryReport) -> str:
    kinds = [f"{n:,} with {layer.label}" for layer, n in report.study.model.groups.items()]
    shown = [*kinds[:MOST_KINDS], *([f"{len(kinds) - MOST_KINDS} more kinds"] if len(kinds) > MOST_KINDS else [])]
    return f"Layers: {'; '.join(shown)}."


def _active_note(report: MemoryReport) -> str:
    counts = report.parameters
    return (
        f"Each token uses {format_count(counts.active)} of the {format_count(counts.total)} parameters (its own "
        "experts and everything that is not an expert); all of them must be in memory."
    )


def _cache_notes(report: MemoryReport) -> list[str]:
    study, elements = report.study, cache_elements(report.study.model)
    notes = []
    if elements.windowed:
        windows = ", ".join(f"{window:,}" for window in elements.windowed)
        notes.append(
            f"Windows of {windows} tokens: the cache of one request is {format_decimal(report.kv_bytes_per_request)} "
            f"instead of {format_decimal(report.kv_bytes_per_token * study.context)}."
        )
    if elements.latent:
        notes.append(
            "The latent cache serves all heads: with whole heads, every GPU holds a full copy, whatever the TP degree."
        )
    if index := index_elements(study.model):
        notes.append(
            f"Not counted in the cache: indexer keys, {index:,} elements per token, which servers keep in fp8 "
            f"({format_bytes_exact(index)} per token, plus their scales)."
        )
    return notes


def repeated_heads(report: MemoryReport) -> list[str]:
    """The TP degrees beyond which whole KV heads are repeated."""
    layers = report.study.model.layers
    heads = {m.n_kv_heads for m in mixers_of(layers) if hasattr(m, "n_kv_heads") and m.cache_elements}
    beyond = [row.tp for row in report.tp if heads and row.tp > min(heads) and not row.problem]
    if not beyond:
        return []
    return [
        f"Beyond {min(heads)} GPUs (TP {', '.join(map(str, beyond))}) whole KV heads are repeated: a server's cache "
        "per GPU stops shrinking, unlike in the equal split."
    ]


def _state_notes(report: MemoryReport) -> list[str]:
    elements, waiting = state_elements(report.study.model), fp32_elements(report.study.model)
    if waiting:
        return [
            f"Tokens that are not yet in a row of the compressed cache take {waiting:,} elements per sequence, which "
            f"servers keep in fp32 ({format_bytes_exact(4 * waiting)}), whatever the context."
        ]
    if not elements:
        return []
    stored = state_format(report.study.kv_format)
    return [
        f"Recurrent layers keep {elements:,} elements per sequence, whatever its length. Counted at {stored.name} like "
        f"the cache, they take {format_decimal(report.state_bytes_per_sequence)}; in fp32 they take "
        f"{format_decimal(4 * elements)}."
    ]
