"""The answer of ``memory`` for a file whose weights are known but whose cache is not: only the weights."""

from __future__ import annotations

import argparse

from calc.commands.documents import Document
from calc.commands.options import device_from
from calc.commands.output import emit_json, emit_tables
from calc.commands.tables import Column, Row, Table
from calc.errors import CacheUnknown
from calc.units import format_count, format_decimal


def emit_weights(args: argparse.Namespace, known: CacheUnknown) -> int:
    """Print the weights and the sentence that says why nothing else is known."""
    device = device_from(args)
    if args.format == "json":
        return emit_json(args, weights_document(known, device.name, device.memory_bytes))
    columns = (Column("Component"), Column("Bytes", numeric=True))
    rows = [Row((name, format_decimal(n))) for name, n in known.components.items() if n]
    rows.append(Row(("total", format_decimal(known.weight_bytes)), strong=True))
    free = device.memory_bytes - known.weight_bytes
    room = f"{device.name} has {format_decimal(abs(free))} " + ("more than the weights" if free >= 0 else "too little")
    counted = f"{format_count(known.parameters)} parameters"
    table = Table(title="Weights", columns=columns, rows=rows)
    return emit_tables(args, f"{known.name}: weights only", [table], [counted, room, str(known)])


def weights_document(known: CacheUnknown, device: str, memory_bytes: int) -> Document:
    """The document of ``memory``, with null for unknown values."""
    return {
        "command": "memory",
        "schema": 1,
        "model": {"name": known.name},
        "parameters": {"total": known.parameters},
        "weight_bytes": known.weight_bytes,
        "weight_bytes_by_component": known.components,
        "kv_bytes_per_token": None,
        "kv_bytes_per_request": None,
        "device": device,
        "device_memory_bytes": memory_bytes,
        "fits": None if known.weight_bytes <= memory_bytes else False,
        "max_batch": None,
        "notes": [str(known)],
    }
