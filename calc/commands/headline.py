"""What a ``memory`` command line asks for (how many devices, how many requests) and the answer to exactly that.

Without --tp, the answer is for one device. With --tp, it is for the first TP of the list; with other parallelism, for
its plan.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from calc.commands.documents import Document
from calc.commands.notes import memory_notes
from calc.commands.tables import Row, Table, answer_table
from calc.units import format_binary, format_count, format_decimal, requests, rounded_up

if TYPE_CHECKING:
    from calc.explain.terms import Term
    from calc.fit.memory import MemoryReport, TpRow
    from calc.fit.parallel import ParallelPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """The answer for `devices`, called `where`. `room_bytes`: what the fullest device has left; negative if no request
    fits.

    `each_bytes`: what a request takes there. `problem`: why no server can run it. `steps`: its calculation.
    """

    where: str
    devices: int
    max_batch: int
    fits: bool
    room_bytes: int
    each_bytes: Fraction
    groups: int = 1
    problem: str | None = None
    steps: tuple[Term, ...] = ()

    def free_bytes(self, batch: int) -> int:
        """Bytes left on the fullest device with `batch` requests; negative if they do not fit."""
        return self.room_bytes - rounded_up(-(-batch // self.groups) * self.each_bytes)


def one_device(report: MemoryReport) -> Headline:
    """The answer for a single device."""
    return Headline(
        where="one device",
        devices=1,
        max_batch=report.max_batch,
        fits=report.fits,
        room_bytes=report.free_bytes,
        each_bytes=Fraction(report.request_bytes),
    )


def of_row(report: MemoryReport, row: TpRow) -> Headline:
    """The answer for a row of the tensor-parallel table."""
    each = Fraction(row.kv_bytes_per_request_per_gpu) + row.state_bytes_per_sequence_per_gpu
    return Headline(
        where=f"TP {row.tp:,}",
        devices=row.tp,
        max_batch=row.max_batch,
        fits=row.fits,
        room_bytes=report.study.device.memory_bytes - row.weight_bytes_per_gpu,
        each_bytes=each,
        problem=row.problem,
        steps=row.steps,
    )


def of_plan(report: MemoryReport, plan: ParallelPlan) -> Headline:
    """The answer for a plan, from its limiting stage."""
    spec, memory = plan.spec, report.study.device.memory_bytes
    stage = plan.stages[plan.binding] if plan.stages else None
    return Headline(
        where=f"TP {spec.tp:,}, PP {spec.pp:,}" if spec.pp > 1 else f"TP {spec.tp:,}",
        devices=plan.devices,
        max_batch=plan.max_batch,
        fits=plan.fits,
        room_bytes=0 if stage is None else memory - stage.weight_bytes,
        each_bytes=Fraction(0) if stage is None else Fraction(stage.kv_bytes_per_request) + stage.state_bytes,
        groups=spec.dp_attention,
        problem=plan.problem,
        steps=() if stage is None else stage.steps,
    )


def of_study(report: MemoryReport) -> Headline:
    """The answer for the first requested TP, or for one device if no TP was requested."""
    return one_device(report) if report.tp[0].tp == 1 else of_row(report, report.tp[0])


def headline(report: MemoryReport, plans: Sequence[ParallelPlan] = ()) -> Headline:
    """The answer that the options ask for."""
    if plans:
        return of_plan(report, plans[0])
    return of_study(report)


def asked_document(args: argparse.Namespace, answer: Headline) -> Document:
    """With --tp, how many requests fit, if any; with --batch, whether those fit and what is left."""
    document: Document = {} if args.tp is None else {"fits": answer.fits, "max_batch": answer.max_batch}
    if args.batch is None:
        return document
    return document | batch_document(args.batch, answer.max_batch, answer.free_bytes(args.batch))


def batch_document(batch: int, most: int, free_bytes: int) -> Document:
    """The JSON keys of --batch."""
    return {"asked_batch": batch, "asked_fits": batch <= most, "free_bytes": free_bytes}


def batch_sentence(batch: int, most: int, free_bytes: int, where: str) -> str:
    """Whether `batch` requests fit, and how much is left or missing per device."""
    fit = "fits" if batch == 1 else "fit"
    if batch <= most:
        return f"{requests(batch).capitalize()} {fit} on {where}: {format_decimal(free_bytes)} are left per device."
    does = "does" if batch == 1 else "do"
    short = f": {format_decimal(-free_bytes)} are missing per device" if free_bytes < 0 else ""
    return f"{requests(batch).capitalize()} {does} not fit on {where}{short}."


def sentences(answer: Headline, batch: int | None) -> list[str]:
    """The first sentence if the answer is not for one device, or if --batch is given."""
    said = []
    if answer.problem is not None and not answer.fits:
        said.append(f"{answer.where} cannot be served: {answer.problem}.")
    elif answer.problem is not None:
        held = requests(answer.max_batch)
        said.append(f"{answer.where}: {held}, by arithmetic alone; no server divides the model this way.")
    elif answer.devices > 1:
        held = f"{requests(answer.max_batch)} at once" if answer.fits else "no request"
        said.append(f"{answer.where}: {answer.devices:,} devices hold {held}.")
    if batch is not None:
        said.append(batch_sentence(batch, answer.max_batch, answer.free_bytes(batch), answer.where))
    return said


def asked_steps(report: MemoryReport, answer: Headline | None = None) -> tuple[Term, ...]:
    """The calculation of `answer` (of what the study asks for by default), from the parameters to the batch."""
    steps = (of_study(report) if answer is None else answer).steps
    return (*report.steps[: -1 if steps else None], *steps)


def asked_table(report: MemoryReport) -> Table:
    """The answer table of the devices that the study asks for."""
    return with_headline(answer_table(report), of_study(report), None)


def asked_notes(report: MemoryReport) -> tuple[str, ...]:
    """What a reader of that table should know."""
    answer = of_study(report)
    return tuple(dict.fromkeys((*sentences(answer, None), *memory_notes(report, devices=answer.devices))))


def with_headline(table: Table, answer: Headline, batch: int | None) -> Table:
    """The answer table with the largest batch of `answer` as its last row, and a row for --batch below it."""
    rows = list(table.rows)
    if answer.devices > 1:
        name = f"Max batch size possible ({answer.where})"
        note = "cannot be served" if answer.problem else "" if answer.fits else "does not fit"
        rows[-1] = Row((name, format_count(answer.max_batch), "", note), terms=answer.steps[::-1], strong=True)
    if batch is not None:
        free = answer.free_bytes(batch)
        name = f"Free with {requests(batch)} ({answer.where})"
        note = "fits" if batch <= answer.max_batch else "does not fit"
        rows.append(Row((name, format_decimal(free), format_binary(free), note)))
    return Table(title=table.title, columns=table.columns, rows=rows)
