"""``sweep`` on the command line: the memory of many studies, streamed as CSV or JSON."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

from calc.commands.cli import Parser, add_output_options, emit_tables, size
from calc.commands.tables import Table
from calc.errors import CalcError, QuantityError, SourceError
from calc.model.spec import DeviceSpec, Policy
from calc.model.storage import StorageFormat, parse_format
from calc.plain import one_line
from calc.units import format_count, parse_count, parse_size

if TYPE_CHECKING:
    from calc.fit.sweep import Axes, Block

T = TypeVar("T")

MAX_AXIS = 1_000_000
MAX_POINTS = 10**10
MAX_SHOWN = 10_000
"""Rows of a table that a person might read; more go to CSV or JSON."""


def parse_axis(text: str, *, what: str = "count") -> tuple[int, ...]:
    """Counts in a list, in ranges ``1..256`` that double, in ranges ``1k..8k:1k`` with a step, or all mixed.

    A range holds both its ends; repeats are dropped. Raises QuantityError.

    >>> parse_axis("1,2,1..8"), parse_axis("100..1000:300")
    ((1, 2, 4, 8), (100, 400, 700, 1000))
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        span, colon, step = part.partition(":")
        low, dots, high = span.partition("..")
        if colon and not dots:
            raise QuantityError(f"{what} {part.strip()} has a step but no range: write 1..256:16")
        first = parse_count(low, what=what)
        last = parse_count(high, what=what) if dots else first
        if first > last:
            raise QuantityError(f"{what} range {first}..{last} goes down: write {last}..{first}")
        every = parse_count(step, what=f"step of {what}") if colon else None
        if every and (last - first) // every >= MAX_AXIS:
            raise QuantityError(f"{what} lists more than {MAX_AXIS:,} numbers")
        found.update(dict.fromkeys(_span(first, last, every)))
        if len(found) > MAX_AXIS:
            raise QuantityError(f"{what} lists more than {MAX_AXIS:,} numbers")
    return tuple(found)


def _span(first: int, last: int, step: int | None) -> list[int]:
    if step is not None:
        values = list(range(first, last + 1, step))
        return values if values[-1] == last else [*values, last]
    values = [first]
    while values[-1] < last:
        values.append(min(2 * values[-1], last))
    return values


def _axis(what: str) -> Callable[[str], tuple[int, ...]]:
    return _reader(lambda text: parse_axis(text, what=what))


def _reader(read: Callable[[str], T]) -> Callable[[str], T]:
    def convert(text: str) -> T:
        try:
            return read(text)
        except CalcError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _names(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("names nothing")
    return names


def _formats(text: str) -> tuple[StorageFormat, ...]:
    return tuple(dict.fromkeys(_reader(parse_format)(name) for name in _names(text)))


def sweep_parser(prog: str) -> Parser:
    """Options of ``sweep``."""
    parser = Parser(
        prog=prog,
        description="Weights, cache, free memory and largest batch over any lists or ranges: a,b,c, doubling a..b, "
        "or a..b:step. One row a point, as CSV (default) or JSON.",
    )
    what = parser.add_argument_group("what is varied")
    what.add_argument(
        "--models", type=_names, default=("llama-3-8b",), metavar="NAME|PATH,…", help="default llama-3-8b"
    )
    what.add_argument("--devices", type=_names, metavar="NAME|SIZE,…", help="catalog names or sizes (default 80GB)")
    what.add_argument("--gpu-memory", type=size, metavar="SIZE", help="one device of that memory")
    what.add_argument("--tp", type=_axis("tp"), default=(1,), metavar="1..8", help="default 1")
    what.add_argument("--contexts", type=_axis("contexts"), default=(8192,), metavar="1k..128k", help="default 8192")
    what.add_argument("--batches", type=_axis("batches"), default=(1,), metavar="1..256", help="default 1")
    what.add_argument("--weight-formats", type=_formats, metavar="bf16,fp8,…", help="default: the model's")
    what.add_argument("--kv-formats", type=_formats, metavar="bf16,fp8,…", help="default bf16")
    what.add_argument("--policy", choices=[str(p) for p in Policy], default=str(Policy.EQUAL_SPLIT))
    add_output_options(parser)
    parser.set_defaults(format="csv")
    return parser


def axes_from(args: argparse.Namespace) -> Axes:
    """The axes that the options describe. Raises CalcError."""
    from calc.fit.sweep import Axes
    from calc.sources import load_model
    from calc.sources.catalog import manual_device

    if args.devices and args.gpu_memory is not None:
        raise CalcError("--devices and --gpu-memory say the same twice: sizes go among the devices (--devices 80GB)")
    devices = [_device(name) for name in args.devices or ()] or [manual_device(args.gpu_memory or 80 * 10**9)]
    kv_formats = args.kv_formats or (parse_format("bf16"),)
    axes = Axes(
        models=tuple(load_model(name) for name in args.models),
        devices=tuple(devices),
        tps=args.tp,
        contexts=args.contexts,
        batches=args.batches,
        weight_formats=args.weight_formats or (None,),
        kv_formats=kv_formats,
        policy=Policy(args.policy),
    )
    if axes.points > MAX_POINTS:
        raise CalcError(f"{axes.points:,} points are more than {MAX_POINTS:,}: shorten a list, or widen a step")
    return axes


def _device(text: str) -> DeviceSpec:
    """A size such as 80GB, or a name of the catalog."""
    from calc.sources.catalog import find_device, manual_device

    if text[:1].isdigit() and text[-1:].lower() == "b":
        try:
            return manual_device(parse_size(text, what="device"))
        except QuantityError:
            pass  # a name that starts with a digit
    return find_device(text)


def run_sweep(argv: Sequence[str], prog: str) -> int:
    """``sweep``: rows are written as they are worked out; a file appears whole or not at all."""
    args = sweep_parser(prog).parse_args(argv)
    axes = axes_from(args)
    if args.format in ("text", "md"):
        return _print_tables(args, axes)
    with _destination(args.output) as out:
        _write(args, axes, out)
    if args.output is not None and not args.quiet:
        print(one_line(f"wrote {args.output}: {axes.points:,} rows"), file=sys.stderr)
    return 0


def _print_tables(args: argparse.Namespace, axes: Axes) -> int:
    from calc.fit.sweep import COLUMNS, sweep, table_rows

    if axes.points > MAX_SHOWN:
        raise CalcError(f"{axes.points:,} rows are too many for a table: write them with --format csv or --json")
    rows = tuple(row for block in sweep(axes) for row in table_rows(block))
    columns = tuple(name.replace("_", " ") for name in COLUMNS)
    table = Table(title="Sweep", columns=columns, rows=rows, numeric=frozenset({2, 3, 4, 7, 8, 9, 11}))
    return emit_tables(args, "", [table], ())


def _write(args: argparse.Namespace, axes: Axes, out: TextIO) -> None:
    from calc.fit.sweep import COLUMNS, csv_rows, json_rows, sweep

    progress = Progress(axes.points, _progress_stream(args))
    blocks = progress.follow(sweep(axes))
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


@contextmanager
def _destination(path: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that takes the place of `path` when all is written. Raises SourceError."""
    if path is None:
        if sys.stdout is None:
            raise SourceError("standard output is closed: there is nowhere to print to")
        yield sys.stdout
        return
    try:
        with _beside(path) as out:
            yield out
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, CalcError):
            raise
        raise SourceError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def _beside(path: Path) -> Iterator[TextIO]:
    """A temporary file beside `path` that is moved there at the end; a pipe or device is written into."""
    import tempfile

    if path.exists() and not path.is_file():
        with path.open("w", encoding="utf-8") as out:
            yield out
        return
    target = path.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".kvscope-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            yield out
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _progress_stream(args: argparse.Namespace) -> TextIO | None:
    """Where progress is shown: a terminal on stderr, unless rows go to the same screen."""
    if args.quiet or sys.stderr is None or not sys.stderr.isatty():
        return None
    on_screen = args.output is None and sys.stdout is not None and sys.stdout.isatty()
    return None if on_screen else sys.stderr


class Progress:
    """A bar on a terminal, from the first second on, ten times a second; it is wiped at the end."""

    WIDTH = 30

    def __init__(self, points: int, stream: TextIO | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.points = points
        self.stream = stream
        self.clock = clock
        self.started = clock()
        self.shown_at: float | None = None

    def follow(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """`blocks`, counted as they pass."""
        done = 0
        try:
            for block in blocks:
                yield block
                done += block.points
                self.show(done)
        finally:
            self.wipe()

    def show(self, done: int) -> None:
        """Draw the bar if it is due."""
        now = self.clock()
        due = self.started + 1.0 if self.shown_at is None else self.shown_at + 0.1
        if self.stream is None or now < due:
            return
        self.shown_at = now
        filled = self.WIDTH * done // max(1, self.points)
        rate = done / max(now - self.started, 1e-9)
        left = (self.points - done) / rate if rate else 0.0
        bar = "█" * filled + "░" * (self.WIDTH - filled)
        self.stream.write(f"\r{bar} {done / max(1, self.points):4.0%}  {_millions(done)} rows, {left:.0f} s left\x1b[K")
        self.stream.flush()

    def wipe(self) -> None:
        """Leave the line empty."""
        if self.stream is not None and self.shown_at is not None:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def _millions(n: int) -> str:
    return f"{n / 1e6:.1f} million" if n >= 10**6 else format_count(n)
