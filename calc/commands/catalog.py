"""``models`` and ``devices``: what the catalog holds."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from calc.commands.options import Parser, add_output_options
from calc.commands.output import emit_json, emit_tables
from calc.commands.tables import Table, device_catalog_table, model_catalog_table
from calc.sources.catalog import devices, models, nothing_matches, search_devices, search_models


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
    return _emit_catalog(
        args, model_catalog_table(found), "" if found else nothing_matches(args.search, models(), what="model")
    )


def run_devices(argv: Sequence[str], prog: str) -> int:
    """``devices``."""
    args = catalog_parser(prog, "devices").parse_args(argv)
    found = search_devices(args.search)
    return _emit_catalog(
        args, device_catalog_table(found), "" if found else nothing_matches(args.search, devices(), what="device")
    )


def _emit_catalog(args: argparse.Namespace, table: Table, nothing: str) -> int:
    """The table; if it is empty, a text output says `nothing`."""
    if args.format == "json":
        records = [dict(zip(table.headings, row, strict=True)) for row in table.rows]
        return emit_json(args, {"command": table.title.lower(), "schema": 1, "rows": records})
    text = args.format in ("text", "md")
    return emit_tables(args, nothing if text else "", [] if nothing and text else [table], ())
