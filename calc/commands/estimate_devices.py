"""``estimate --devices A,B|all``: the same load on several devices side by side, one row per device and batch."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calc.commands.documents import Document
from calc.commands.estimate_document import band_document, estimate_document, time_document
from calc.commands.estimate_options import served
from calc.commands.estimate_tables import COLUMNS, LIMITS, cells
from calc.commands.frontier import Row, judged
from calc.commands.output import emit_json, emit_tables
from calc.commands.tables import Column, Table
from calc.errors import SpecError
from calc.sources.catalog import devices, find_device
from calc.speed.asked import Asked, Load
from calc.speed.estimate import Estimate, estimate
from calc.speed.room import room_of

if TYPE_CHECKING:
    from calc.commands.output import Answer
    from calc.model.study import DeviceSpec, Study

EVERY = "all"


@dataclass(frozen=True, slots=True)
class Beside:
    """A row: a device and its estimate for a batch."""

    device: str
    row: Row

    @property
    def tokens_per_s(self) -> float:
        """Expected total tokens per second; negative if the batch does not fit."""
        rate = self.row.answer.output_rate
        return -1.0 if rate is None else float(rate.mid)


def run_devices(args: argparse.Namespace, asked: Asked) -> int:
    """The exit code is 0 even if the model fits on none of them (that is an answer)."""
    if args.device is not None or args.gpu_memory is not None:
        raise SpecError("devices", "--devices replaces --device and --gpu-memory: leave them out")
    chosen, unknown = _devices(args.devices)
    prices = _prices(args, chosen)
    study, asked = served(args, asked, device=chosen[0])
    rows = list(_rows(study, asked, args, chosen, prices))
    if EVERY in args.devices:
        rows.sort(key=lambda one: -one.tokens_per_s)
    notes = _notes(rows, unknown, every=EVERY in args.devices)
    if args.format == "json":
        first = next(device for device in chosen if device.name == rows[0].device)
        return emit_json(args, {**_first(replace(study, device=first), asked, args), "by_device": [*map(_row, rows)]})
    shown = [one for one in rows if one.row.answer.fits or EVERY not in args.devices]
    return emit_tables(args, *_text(study, asked, shown, notes))


def _first(study: Study, asked: Asked, args: argparse.Namespace) -> Document:
    """The complete answer for the first device."""
    return estimate_document(study, estimate(study, asked, room_of(study, asked)), (), args)


def _devices(names: Sequence[str]) -> tuple[list[DeviceSpec], int]:
    """The named devices, or all catalog devices with known bandwidth and peak; and how many were left out.

    Raises CalcError for an unknown name.
    """
    if EVERY not in names:
        return [find_device(name) for name in names], 0
    every = [entry.spec for entry in devices().values()]
    known = [one for one in every if one.bandwidth_bytes_per_s and one.peak_flops_per_s.get("bf16")]
    return known, len(every) - len(known)


def _prices(args: argparse.Namespace, chosen: Sequence[DeviceSpec]) -> list[float | None]:
    """One price for all devices, or one for each. Raises SpecError."""
    given = args.price or [None]
    if len(given) not in (1, len(chosen)):
        raise SpecError("price", f"{len(given)} prices for {len(chosen)} devices: give one, or one for each")
    return list(given) * (len(chosen) if len(given) == 1 else 1)


def _rows(
    study: Study, asked: Asked, args: argparse.Namespace, chosen: Sequence[DeviceSpec], prices: Sequence[float | None]
) -> Iterator[Beside]:
    for device, price, answers in zip(chosen, prices, _answers(study, asked, args.batches, chosen), strict=True):
        for answer in answers:
            yield Beside(device.name, judged(answer, args.limit, price))


def _answers(
    study: Study, asked: Asked, batches: Sequence[int] | None, chosen: Sequence[DeviceSpec]
) -> Iterator[Iterator[Estimate]]:
    """The estimates for each device. At maximum load, each device has its own batch size."""
    if asked.load is Load.MAX and not batches:
        for device in chosen:
            one = replace(study, device=device)
            yield iter([_or_problem(one, asked)])
        return
    from calc.speed.sweep import sweep

    load = Load.STATIC if asked.load is Load.MAX else asked.load
    for block in sweep([study], chosen, replace(asked, load=load), batches or [asked.count or 1]):
        yield block.points()


def _or_problem(study: Study, asked: Asked) -> Estimate:
    try:
        return estimate(study, asked, room_of(study, asked))
    except SpecError as error:
        return Estimate(asked=asked, batch=0, fits=False, problem=str(error))


def _notes(rows: Sequence[Beside], unknown: int, *, every: bool) -> list[str]:
    """Why rows have no times (for --devices all, only their number), and notes on the others."""
    problems = list(dict.fromkeys(f"{one.device}: {one.row.answer.problem}." for one in rows if one.row.answer.problem))
    if every and problems:
        problems = [f"{len(problems):,} rows without times are not shown; --json gives the reason for each."]
    if unknown:
        problems.append(f"{unknown:,} catalog devices are left out because their bandwidth or peak is unknown.")
    return [*problems, "Each device has its own constants and band: kvscope estimate --device NAME shows them."]


# --- JSON and text ------------------------------------------------------------------------------------------


def _row(one: Beside) -> Document:
    answer = one.row.answer
    return {
        "device": one.device,
        "batch": one.row.batch,
        "ttft_s": time_document(answer.ttft),
        "tpot_s": time_document(answer.tpot),
        "e2e_s": time_document(answer.e2e),
        "output_tokens_per_s": time_document(answer.output_rate),
        "tokens_per_s_per_user": band_document(answer.user_rate),
        "limited_by": answer.limited_by,
        "fits": answer.fits,
        "problem": answer.problem,
        "meets_limits": one.row.meets_limits,
        "cost_per_million_output_tokens": one.row.cost,
    }


def _text(study: Study, asked: Asked, rows: Sequence[Beside], notes: list[str]) -> Answer:
    each = "one device each" if asked.devices == 1 else f"{asked.devices:,} devices each"
    lengths = f"{asked.prompt_tokens:,} prompt tokens, {asked.new_tokens:,} generated"
    heading = f"{study.model.title} on {each}, {lengths}, {asked.engine}"
    columns = (Column("Device"), *COLUMNS)
    drawn = [replace(line, cells=(one.device, *line.cells), remark="") for one in rows for line in [cells(one.row)]]
    table = Table(title="Devices side by side", columns=columns, rows=drawn)
    kept = [i for i in range(len(columns)) if i <= LIMITS or any(row[i] for row in table.rows)]
    return heading, [table.with_columns(kept)], notes
