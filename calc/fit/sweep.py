"""The memory of many studies at once: the formulas of `calc.fit.costs` over numpy arrays. The only numpy in calc.

A sweep is a product of axes. For each model, device, parallel degree and pair of formats, only context and batch vary;
they form a two-dimensional array, a `Block`. Values are 64-bit integers; if the largest might not fit, Python integers
are used, which are slower but just as exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calc.fit.axes import Axes, as_stored
from calc.fit.costs import RankCosts, rank_costs
from calc.model.cache_pair import cache_as
from calc.model.spec import ModelSpec
from calc.model.study import DeviceSpec, Study

if TYPE_CHECKING:
    from calc.servers.records import ServerReport

Array = npt.NDArray[Any]

BLOCK_POINTS = 2**18
"""Points per block: a few megabytes, so that a sweep of any length can stream."""
SAFE = 2**62
"""Below this value, a sum of two fits in 64 bits."""

COLUMNS = (
    "model",
    "device",
    "tp",
    "context",
    "batch",
    "weight_format",
    "kv_format",
    "weight_bytes",
    "kv_bytes",
    "free_bytes",
    "fits",
    "max_batch",
)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Points that differ only in context (rows) and batch (columns). Bytes are those of one device.

    `kv_bytes`: caches and recurrent states of the whole batch. `free_bytes` is negative where they do not fit.
    `max_batch` is by context.
    """

    model: str
    device: str
    tp: int
    weight_format: str
    kv_format: str
    weight_bytes: int
    contexts: Array
    batches: Array
    kv_bytes: Array
    free_bytes: Array
    fits: Array
    max_batch: Array

    @property
    def points(self) -> int:
        """The number of points."""
        return int(self.kv_bytes.size)


def sweep(axes: Axes) -> Iterator[Block]:
    """All points of `axes`, block by block: models, devices, degrees, formats, then contexts and batches."""
    if axes.server is not None:
        from calc.fit.server_sweep import server_reports

        yield from (_served(report, axes) for report in server_reports(axes))
        return
    for model in axes.models:
        table = _costs(model, axes)
        for device in axes.devices:
            for tp in axes.tps:
                for (weights, cache, degree), costs in table.items():
                    if degree == tp:
                        yield from _blocks(axes, device, costs, (model.name, weights, cache))


def _served(report: ServerReport, axes: Axes) -> Block:
    """A context as a server counts it: bytes of the limiting GPU; `free_bytes` is what is left in its pool."""
    study, each, pool = report.study, report.kv_request_bytes, report.cache_room_bytes
    batches: Array = np.array(axes.batches, dtype=object)
    taken = batches[np.newaxis, :] * each
    return Block(
        model=study.model.name,
        device=study.device.name,
        tp=report.options.tp,
        weight_format=study.weight_format.name,
        kv_format=study.kv_format.name,
        weight_bytes=report.weight_bytes_per_gpu,
        contexts=np.array([study.context], dtype=object),
        batches=batches,
        kv_bytes=taken,
        free_bytes=pool - taken,
        fits=batches[np.newaxis, :] <= report.requests,
        max_batch=np.array([report.requests], dtype=object),
    )


def _costs(model: ModelSpec, axes: Axes) -> dict[tuple[str, str, int], RankCosts]:
    """The bytes of a device by weight format, cache format and degree; one report per pair of formats."""
    study = Study(model=model, device=axes.devices[0], tps=axes.tps, policy=axes.policy)
    held = {fmt: rank_costs(as_stored(study, fmt)) for fmt in axes.weight_formats}
    kept = {
        fmt or study.kv_format: rank_costs(study if fmt is None else replace(study, kv_format=cache_as(fmt, model)))
        for fmt in axes.kv_formats
    }
    return {
        (as_stored(study, weight_format).weight_format.name, kv_format.name, cache.tp): replace(
            cache, weight_num=weights.weight_num, weight_den=weights.weight_den
        )
        for weight_format, all_weights in held.items()
        for kv_format, all_caches in kept.items()
        for weights, cache in zip(all_weights, all_caches, strict=True)
    }


def _blocks(axes: Axes, device: DeviceSpec, costs: RankCosts, names: tuple[str, str, str]) -> Iterator[Block]:
    kind = exact_type(costs, device.memory_bytes, max(axes.contexts), max(axes.batches))
    contexts: Array = np.array(axes.contexts, dtype=kind)
    batches: Array = np.array(axes.batches, dtype=kind)
    rows = max(1, BLOCK_POINTS // len(batches))
    for first in range(0, len(contexts), rows):
        for start in range(0, len(batches), BLOCK_POINTS):
            part = batches[start : start + BLOCK_POINTS]
            yield _block(device, costs, names, contexts[first : first + rows], part)


def exact_type(costs: RankCosts, memory_bytes: int, context: int, batch: int) -> type:
    """int64 if no intermediate value can exceed 64 bits, else Python integers (``object``)."""
    stored = costs.elements(context) * costs.kv_num * costs.share_num
    room = abs(costs.room(memory_bytes))
    largest = max(stored, (batch + 1) * costs.request(context), room, context, batch)
    return np.int64 if largest < SAFE else object


def _block(device: DeviceSpec, costs: RankCosts, names: tuple[str, str, str], contexts: Array, batches: Array) -> Block:
    request, room, scale = costs.request(contexts), costs.room(device.memory_bytes), costs.kv_scale
    most = np.where((request > 0) & (request <= room), room // np.maximum(request, 1), 0)
    if not costs.runnable:
        most = most * 0
    taken = request[:, np.newaxis] * batches
    return Block(
        model=names[0],
        device=device.name,
        tp=costs.tp,
        weight_format=names[1],
        kv_format=names[2],
        weight_bytes=costs.weight_bytes,
        contexts=contexts,
        batches=batches,
        kv_bytes=-(-taken // scale) if scale > 1 else taken,
        free_bytes=(room - taken) // scale if scale > 1 else room - taken,
        fits=batches <= most[:, np.newaxis],
        max_batch=most,
    )


def csv_rows(block: Block) -> Iterator[str]:
    """The block's points as CSV lines, one string per context."""
    model, device, weights, cache = map(_csv_cell, (block.model, block.device, block.weight_format, block.kv_format))
    middle = f",{weights},{cache},{block.weight_bytes},"
    for context, most, batches, kv, free, fits in _lists(block):
        start, end = f"{model},{device},{block.tp},{context},", f",{most}\n"
        yield "".join(
            [
                f"{start}{b}{middle}{k},{f},{'true' if ok else 'false'}{end}"
                for b, k, f, ok in zip(batches, kv, free, fits, strict=True)
            ]
        )


def json_rows(block: Block) -> Iterator[str]:
    """The block's points as JSON objects, separated by commas and line ends, one string per context."""
    import json

    model, device, weights, cache = map(json.dumps, (block.model, block.device, block.weight_format, block.kv_format))
    middle = f', "weight_format": {weights}, "kv_format": {cache}, "weight_bytes": {block.weight_bytes}, "kv_bytes": '
    for context, most, batches, kv, free, fits in _lists(block):
        start = f'{{"model": {model}, "device": {device}, "tp": {block.tp}, "context": {context}, "batch": '
        end = f', "max_batch": {most}}}'
        yield ",\n".join(
            [
                f'{start}{b}{middle}{k}, "free_bytes": {f}, "fits": {"true" if ok else "false"}{end}'
                for b, k, f, ok in zip(batches, kv, free, fits, strict=True)
            ]
        )


def table_rows(block: Block) -> Iterator[tuple[str, ...]]:
    """The points of the block as cells in the order of COLUMNS, for a table on a screen."""
    for context, most, batches, kv, free, fits in _lists(block):
        for b, k, f, ok in zip(batches, kv, free, fits, strict=True):
            numbers = (f"{block.weight_bytes:,}", f"{k:,}", f"{f:,}", "yes" if ok else "no", f"{most:,}")
            named = (block.model, block.device, str(block.tp), f"{context:,}", f"{b:,}")
            yield (*named, block.weight_format, block.kv_format, *numbers)


def _lists(block: Block) -> Iterator[tuple[int, int, list[int], list[int], list[int], Sequence[bool]]]:
    batches = block.batches.tolist()
    rows = zip(
        block.contexts.tolist(),
        block.max_batch.tolist(),
        block.kv_bytes.tolist(),
        block.free_bytes.tolist(),
        block.fits.tolist(),
        strict=True,
    )
    for context, most, kv, free, fits in rows:
        yield context, most, batches, kv, free, fits


def _csv_cell(text: str) -> str:
    """`text` as an RFC 4180 cell."""
    return '"' + text.replace('"', '""') + '"' if any(sign in text for sign in ',"\r\n') else text
