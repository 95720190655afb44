"""``sweep``: the memory of many studies, streamed as CSV or JSON."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TextIO

from calc.commands.llamacpp import add_llamacpp_options
from calc.commands.options import (
    SERVERS,
    Parser,
    add_output_options,
    add_policy_option,
    add_server_options,
    cache_storage,
    check_server_options,
    reader,
    size,
    weight_storage,
)
from calc.commands.output import check_stdout, emit_tables, say
from calc.commands.tables import Table
from calc.errors import CalcError, QuantityError
from calc.files import replacing
from calc.model.storage import StorageFormat
from calc.model.study import DeviceSpec, Policy
from calc.units import format_count, parse_counts, parse_size

if TYPE_CHECKING:
    from calc.fit.axes import Axes
    from calc.fit.sweep import Block
    from calc.model.named import NamedFormat
    from calc.servers.records import ServerOptions

MAX_AXIS = 1_000_000
MAX_POINTS = 10**10
MAX_SHOWN = 10_000
"""Maximum rows of a table; more must go to CSV or JSON."""


def _axis(what: str) -> Callable[[str], tuple[int, ...]]:
    return reader(lambda text: parse_counts(text, what=what, most=MAX_AXIS))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("expected one or more names, separated by commas")
    return names


def _weights(text: str) -> tuple[StorageFormat | NamedFormat | None, ...]:
    return tuple(dict.fromkeys(weight_storage(name) for name in _names(text)))


def _caches(text: str) -> tuple[StorageFormat | None, ...]:
    return tuple(dict.fromkeys(cache_storage(name) for name in _names(text)))


def sweep_parser(prog: str) -> Parser:
    """Options of ``sweep``."""
    parser = Parser(
        prog=prog,
        description="Weights, cache, free memory and largest batch over any lists or ranges: a,b,c, doubling a..b, "
        "or a..b:step. One row per point, as CSV (default) or JSON.",
    )
    what = parser.add_argument_group("lists to vary")
    what.add_argument(
        "--models", type=_names, default=("llama-3-8b",), metavar="NAME|PATH,…", help="default llama-3-8b"
    )
    what.add_argument(
        "--devices", type=_names, metavar="NAME|SIZE,…", help="catalog names or memory sizes (default 80GB)"
    )
    what.add_argument("--gpu-memory", type=size, metavar="SIZE", help="one device with this much memory")
    what.add_argument("--tp", type=_axis("tp"), default=(1,), metavar="1..8", help="default 1")
    what.add_argument("--contexts", type=_axis("contexts"), default=(8192,), metavar="1k..128k", help="default 8192")
    what.add_argument("--batches", type=_axis("batches"), default=(1,), metavar="1..256", help="default 1")
    what.add_argument("--weight-formats", type=_weights, metavar="bf16,Q4_K_M,…", help="default: the model's")
    what.add_argument("--kv-formats", type=_caches, metavar="bf16,q8_0/q4_0,…", help="default bf16")
    add_policy_option(parser, servers=True)
    add_server_options(parser)
    add_llamacpp_options(parser)
    parser.set_defaults(device=None, pp=None, pp_layers=None, ep=None, dcp=None, dp_attention=None)
    add_output_options(parser, form="csv")
    return parser


def axes_from(args: argparse.Namespace) -> Axes:
    """The axes that the options describe. Raises CalcError."""
    from calc.fit.axes import Axes
    from calc.sources import load_model
    from calc.sources.catalog import manual_device

    if args.devices and args.gpu_memory is not None:
        raise CalcError("--devices and --gpu-memory cannot be combined: write sizes in --devices (--devices 80GB)")
    devices = [_device(name) for name in args.devices or ()] or [manual_device(args.gpu_memory or 80 * 10**9)]
    given = None not in (args.weight_formats or (None,))
    axes = Axes(
        models=tuple(load_model(name, any_storage=given) for name in args.models),
        devices=tuple(devices),
        tps=args.tp,
        contexts=args.contexts,
        batches=args.batches,
        weight_formats=args.weight_formats or (None,),
        kv_formats=args.kv_formats or (None,),
        policy=Policy.REPLICATED if args.policy in SERVERS else Policy(args.policy),
        server=_server(args),
    )
    if axes.points > MAX_POINTS:
        raise CalcError(
            f"{axes.points:,} points are more than the maximum of {MAX_POINTS:,}: shorten a list or widen a step"
        )
    return axes


def _server(args: argparse.Namespace) -> ServerOptions | None:
    check_server_options(args)
    if args.policy not in SERVERS:
        return None
    from calc.commands.server import options_from

    return options_from(args)


def _device(text: str) -> DeviceSpec:
    """A size such as 80GB, or a catalog name."""
    from calc.sources.catalog import find_device, manual_device

    if text[:1].isdigit() and text[-1:].lower() == "b":
        try:
            return manual_device(parse_size(text, what="device"))
        except QuantityError:
            pass  # a name that starts with a digit
    return find_device(text)


def run_sweep(argv: Sequence[str], prog: str) -> int:
    """``sweep``: rows are written as they are computed; a file appears completely or not at all."""
    args = sweep_parser(prog).parse_args(argv)
    axes = axes_from(args)
    if args.format in ("text", "md"):
        return _print_tables(args, axes)
    if args.output is None:
        check_stdout()
        _write(args, axes, sys.stdout)
        return 0
    with replacing(args.output) as out:
        _write(args, axes, out)
    if not args.quiet:
        say(f"wrote {args.output}: {axes.points:,} rows")
    return 0


def _print_tables(args: argparse.Namespace, axes: Axes) -> int:
    from calc.fit.sweep import COLUMNS, sweep, table_rows

    if axes.points > MAX_SHOWN:
        raise CalcError(f"{axes.points:,} rows are too many for a table: use --format csv or --json")
    rows = tuple(row for block in sweep(axes) for row in table_rows(block))
    columns = tuple(name.replace("_", " ") for name in COLUMNS)
    table = Table(title="Sweep", columns=columns, rows=rows, numeric=frozenset({2, 3, 4, 7, 8, 9, 11}))
    return emit_tables(args, "", [table], ())


def _write(args: argparse.Namespace, axes: Axes, out: TextIO) -> None:
    from calc.fit.sweep import COLUMNS, csv_rows, json_rows, sweep

    progress = Progress(axes.points, _progress_stream(args))
    blocks = begun(progress.follow(sweep(axes)))
    if args.format == "csv":
        out.write(",".join(COLUMNS) + "\n")
        for block in blocks:
            out.writelines(csv_rows(block))
        return
    import json

    out.write(f'{{"command": "sweep", "schema": 1, "policy": {json.dumps(args.policy)}, "rows": [\n')
    before = ""
    for block in blocks:
        for rows in json_rows(block):
            out.write(before + rows)
            before = ",\n"
    out.write("\n]}\n")


def begun(blocks: Iterator[Block]) -> Iterator[Block]:
    """`blocks` with the first one computed, so that errors occur before anything is written."""
    from itertools import chain

    return chain([next(blocks)], blocks)


def _progress_stream(args: argparse.Namespace) -> TextIO | None:
    """Where progress is shown: stderr if it is a terminal, unless rows go to the same screen."""
    if args.quiet or sys.stderr is None or not sys.stderr.isatty():
        return None
    on_screen = args.output is None and sys.stdout is not None and sys.stdout.isatty()
    return None if on_screen else sys.stderr


class Progress:
    """Progress of the sweep on a terminal: shown after a second, drawn ten times per second, erased at the end."""

    def __init__(self, points: int, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.points = points
        self.stream = stream
        self.clock = clock
        self.started = clock()
        self.shown_at: float | None = None

    def follow(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """`blocks`, counted as they pass through."""
        done = 0
        try:
            for block in blocks:
                yield block
                done += block.points
                self.show(done)
        finally:
            self.wipe()

    def show(self, done: int) -> None:
        """Draw the progress line if it is due."""
        now = self.clock()
        due = self.started + 1.0 if self.shown_at is None else self.shown_at + 0.1
        if self.stream is None or now < due:
            return
        self.shown_at = now
        rate = done / max(now - self.started, 1e-9)
        left = f", about {(self.points - done) / rate:.0f} s left" if rate else ""
        self.stream.write(f"\rsweep {_millions(done)} of {_millions(self.points)} rows{left}\x1b[K")
        self.stream.flush()

    def wipe(self) -> None:
        """Erase the progress line."""
        if self.stream is not None and self.shown_at is not None:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _millions(n: int) -> str:
    return f"{n / 1e6:.1f} million" if n >= 10**6 else format_count(n)
