"""What each layer caches: the kinds of a model's layers, their order, and the bytes of each kind. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from calc.commands.tables import Column, Row, Table
from calc.explain.terms import Term, derive
from calc.model.cache import ONE_ROW, kept_formula
from calc.model.spec import ModelSpec
from calc.model.study import Study
from calc.units import Quantity, format_bytes_exact, format_count, format_decimal

if TYPE_CHECKING:
    from calc.model.layers import FeedForward, LayerSpec, Mixer

FULL, WINDOW, LATENT, STATE, BOTH, SHARED, NONE = "█", "▄", "◆", "~", "≈", "↑", "·"
EXPERTS, DENSE = "E", "d"
STYLES = {
    FULL: "full",
    WINDOW: "window",
    LATENT: "latent",
    STATE: "state",
    BOTH: "both",
    EXPERTS: "experts",
}
"""Marks of the map with the names of their colours; other marks are plain."""
MARKS = {FULL: "primary", WINDOW: "accent", LATENT: "success", STATE: "warning", BOTH: "secondary"}
"""The same as colours of the theme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of layer part: `steps` give its bytes; `held` says per what ("/req"; empty: weights)."""

    mark: str
    label: str
    layers: int
    bytes_held: int
    held: str
    per_token: int
    steps: tuple[Term, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMap:
    """Cells of all layers in order: what they cache, and their feed-forwards (empty if all are alike)."""

    keeps: str
    feeds: str
    kinds: tuple[Kind, ...]
    ordered: bool = True


def layer_map(study: Study) -> LayerMap | None:
    """The map of `study`'s model; None if all layers are the same."""
    model = study.model
    if model.uniform and not model.n_sliding_layers:
        return None
    return _windowed_map(study) if model.spread else _layered_map(study)


# Cells


def _keeps_mark(layer: LayerSpec) -> str:
    marks = {_mixer_mark(mixer) for mixer in layer.mixers}
    if len(marks - {SHARED}) > 1:
        return BOTH
    return next(iter(marks - {SHARED} or marks), NONE)


def _mixer_mark(mixer: Mixer) -> str:
    if mixer.kind in ONE_ROW:
        return LATENT
    if mixer.state_elements:
        return STATE
    if not mixer.cache_elements:
        return SHARED
    return FULL if mixer.window is None else WINDOW


def _feeds_mark(layer: LayerSpec) -> str:
    kinds = {part.kind for part in layer.feed_forwards}
    return EXPERTS if "experts" in kinds else DENSE if kinds else NONE


def _layered_map(study: Study) -> LayerMap:
    layers = study.model.layers
    feeds = "".join(map(_feeds_mark, layers))
    return LayerMap(
        keeps="".join(map(_keeps_mark, layers)),
        feeds="" if set(feeds) == {DENSE} else feeds,
        kinds=tuple(_kinds(study)),
    )


def _windowed_map(study: Study) -> LayerMap:
    """For a typed-in model, it is known how many layers have a window, but not which."""
    model, each = study.model, study.kv_format.bytes_per_element
    per_layer = 2 * model.n_kv_heads * model.head_dim
    counts: list[tuple[str, str, int, int | None]] = [(FULL, "full attention", model.n_full_layers, None)]
    counts.append((WINDOW, f"sliding attention, window {model.window:,}", model.n_sliding_layers, model.window))
    kinds = [
        _cache_kind(study, mark, label, layers=n, elements=n * per_layer, window=window, each=each)
        for mark, label, n, window in counts
        if n
    ]
    keeps = FULL * model.n_full_layers + WINDOW * model.n_sliding_layers
    return LayerMap(keeps=keeps, feeds="", kinds=tuple(kinds), ordered=False)


# Kinds


def _kinds(study: Study) -> Iterator[Kind]:
    from calc.model.layers import grouped, mixers_of

    hidden = study.model.hidden_size
    mixers: dict[tuple[str, str], list[Kind]] = {}
    for mixer, n in mixers_of(study.model.layers).items():
        kind = _mixer_kind(study, mixer, n, hidden)
        mixers.setdefault((kind.mark, kind.label), []).append(kind)
    yield from map(_joined, mixers.values())
    parts: dict[FeedForward, int] = {}
    for layer, n in grouped(study.model.layers).items():
        for part in layer.feed_forwards:
            parts[part] = parts.get(part, 0) + n
    if len(parts) > 1 or any(part.kind == "experts" for part in parts):
        yield from (_feed_kind(study, part, n, hidden) for part, n in parts.items())


def _joined(same: list[Kind]) -> Kind:
    """Merges kinds with the same name (for example with other head sizes)."""
    first = same[0]
    return replace(
        first,
        layers=sum(kind.layers for kind in same),
        bytes_held=sum(kind.bytes_held for kind in same),
        per_token=sum(kind.per_token for kind in same),
        steps=tuple(term for kind in same for term in kind.steps),
    )


def _mixer_kind(study: Study, mixer: Mixer, n: int, hidden: int) -> Kind:
    mark, label = _mixer_mark(mixer), mixer.label
    own = mixer.term(hidden)
    if mark == STATE:
        return _state_kind(study, label, n, n * mixer.state_elements, own)
    elements = n * mixer.cache_elements
    each = study.kv_format.bytes_per_element
    kind = _cache_kind(study, mark, label, layers=n, elements=elements, window=mixer.window, each=each)
    return replace(kind, steps=(*kind.steps, own))


def _cache_kind(
    study: Study, mark: str, label: str, *, layers: int, elements: int, window: int | None, each: Any
) -> Kind:
    numbers: dict[str, Any] = {"context": study.context, "kv_element_bytes": each}
    windowed = {window: elements} if window is not None and elements else {}
    if windowed:
        numbers |= {"window_elements": elements, "window": window}
    else:
        numbers["latent_elements" if mark == LATENT else "full_elements"] = elements
    term = derive(f"Cache per request, {label}", kept_formula(windowed), unit="B", **numbers)
    return Kind(
        mark=mark,
        label=label,
        layers=layers,
        bytes_held=ceil(term.value),
        held="/req" if elements else "",
        per_token=ceil(elements * each),
        steps=(term,) if elements else (),
    )


def _state_kind(study: Study, label: str, n: int, elements: int, own: Term) -> Kind:
    from calc.model.cache import state_bytes, state_format

    each: Any = state_format(study.kv_format).bytes_per_element
    name = f"State per sequence, {label}"
    term = derive(name, state_bytes, unit="B", state_elements=elements, state_element_bytes=each)
    return Kind(
        mark=STATE, label=label, layers=n, bytes_held=ceil(term.value), held="/seq", per_token=0,
        steps=(term, own),
    )  # fmt: skip


def _feed_kind(study: Study, part: FeedForward, n: int, hidden: int) -> Kind:
    from calc.model.layers import routed_params

    own = part.term(hidden)
    steps: tuple[Term, ...] = (own,)
    count = int(own.value)
    if part.kind == "experts":
        count *= part.n_experts  # type: ignore[union-attr]
        name = f"{part.n_experts:,} experts (per layer)"  # type: ignore[union-attr]
        numbers: dict[str, Any] = {"n_experts": part.n_experts, "expert": int(own.value)}  # type: ignore[union-attr]
        steps = (derive(name, routed_params, unit="parameters", **numbers), own)
    return Kind(
        mark=EXPERTS if part.kind == "experts" else DENSE,
        label=part.label,
        layers=n,
        bytes_held=ceil(n * count * study.weight_format.bytes_per_element),
        held="",
        per_token=0,
        steps=steps,
    )


# Shown


def kinds_table(found: LayerMap) -> Table:
    """The legend of the map: mark and kind, layers, cache per token, bytes and what they are."""
    return Table(
        title="Layers",
        columns=(
            Column("Kind"),
            Column("Layers", numeric=True),
            Column("Per token", numeric=True, priority=1),
            Column("Holds", numeric=True),
        ),
        rows=[_kind_row(kind) for kind in found.kinds],
    )


def _kind_row(kind: Kind) -> Row:
    layers = "1 layer" if kind.layers == 1 else f"{kind.layers:,} layers"
    held = Quantity(f"{format_decimal(kind.bytes_held)}{kind.held}", kind.bytes_held, "B")
    return Row(
        (
            f"{kind.mark} {kind.label}",
            format_count(kind.layers),
            format_bytes_exact(kind.per_token) if kind.per_token else "",
            held if kind.bytes_held else "nothing",
        ),
        title=f"{kind.label[0].upper()}{kind.label[1:]}: {layers}",
        terms=kind.steps,
    )


def kinds_sentence(model: ModelSpec) -> str:
    """Why a model's fields are read-only."""
    return (
        f"Read-only: the {model.n_layers:,} layers are not all alike, so no single number describes them. The fields "
        "show the most common kind. Edit the config.json, or start from a plain model."
    )


LABEL_CELLS = 5


def map_lines(found: LayerMap, width: int) -> list[tuple[str, str, str]]:
    """The map in lines of at most `width` cells: number of the first layer, cells, row (keeps or feeds).

    Lines have a multiple of ten layers if there is room for ten.
    """
    room = max(1, width - LABEL_CELLS)
    room = room // 10 * 10 if room >= 10 else room
    lines = []
    for start in range(0, len(found.keeps), room):
        lines.append((f"{start:>4} ", found.keeps[start : start + room], "keeps"))
        if found.feeds:
            lines.append((" " * LABEL_CELLS, found.feeds[start : start + room], "feeds"))
    return lines
