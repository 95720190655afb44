"""``models`` and ``devices``: what the catalog holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from calc.commands.documents import Document
from calc.commands.options import Parser, add_output_options
from calc.commands.output import emit_json, emit_tables
from calc.commands.tables import Table, device_catalog_table, model_catalog_table
from calc.sources.catalog import (
    DeviceEntry,
    ModelEntry,
    devices,
    models,
    nothing_matches,
    search_devices,
    search_models,
)


def catalog_parser(prog: str, what: str) -> Parser:
    """Options of ``models`` and ``devices``."""
    parser = Parser(prog=prog, usage="%(prog)s [TEXT] [OPTIONS]", description=f"The catalog of {what}.")
    parser.add_argument("search", nargs="?", default="", metavar="TEXT", help="show only the entries that match")
    add_output_options(parser)
    return parser


def run_models(argv: Sequence[str], prog: str) -> int:
    """``models``."""
    args = catalog_parser(prog, "models").parse_args(argv)
    found = search_models(args.search)
    if args.format == "json":
        return emit_json(args, {"command": "models", "schema": 2, "rows": list(map(model_record, found))})
    return _emit_catalog(
        args, model_catalog_table(found), "" if found else nothing_matches(args.search, models(), what="model")
    )


def run_devices(argv: Sequence[str], prog: str) -> int:
    """``devices``."""
    args = catalog_parser(prog, "devices").parse_args(argv)
    found = search_devices(args.search)
    if args.format == "json":
        return emit_json(args, {"command": "devices", "schema": 2, "rows": list(map(device_record, found))})
    return _emit_catalog(
        args, device_catalog_table(found), "" if found else nothing_matches(args.search, devices(), what="device")
    )


def model_record(entry: ModelEntry) -> Document:
    """A catalog model as numbers."""
    sizes = entry.sizes
    named = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size")
    return {
        "name": entry.id,
        "hf_id": entry.hf_id,
        "parameters": entry.parameters,
        **{name: getattr(sizes, name) for name in named},
    }


def device_record(entry: DeviceEntry) -> Document:
    """A catalog device as numbers; unknown values are null, unknown peaks absent."""
    device = entry.spec
    return {
        "name": entry.id,
        "device": device.name,
        "memory_bytes": device.memory_bytes,
        "bandwidth_bytes_per_s": device.bandwidth_bytes_per_s,
        "peak_flops_per_s": dict(device.peak_flops_per_s),
        "ridge_flops_per_byte": device.ridge(),
        "source": device.source,
    }


def _emit_catalog(args: argparse.Namespace, table: Table, nothing: str) -> int:
    """The table; if it is empty, a text output says `nothing`."""
    text = args.format in ("text", "md")
    return emit_tables(args, nothing if text else "", [] if nothing and text else [table], ())
