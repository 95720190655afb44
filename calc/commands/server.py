"""``memory --policy vllm|sglang|transformers|llamacpp``: from options to document, tables and sentences."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from calc.commands.documents import Document, term_document
from calc.commands.headline import batch_document, batch_sentence
from calc.commands.llamacpp import (
    best_split,
    device_words,
    placement_document,
    placement_notes,
    placement_options,
    placement_table,
)
from calc.commands.tables import Column, Table
from calc.errors import SpecError
from calc.fit.memory import memory_report
from calc.model.study import Study
from calc.servers.facts import facts_of
from calc.servers.launch import launch_command
from calc.servers.names import SERVER_NAMES
from calc.servers.records import ModelFacts, ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.servers.serving import as_served
from calc.units import Quantity, format_binary, format_bytes_exact, format_count, format_decimal

if TYPE_CHECKING:
    from calc.commands.output import Answer
    from calc.fit.memory import MemoryReport


def options_from(args: argparse.Namespace, study: Study | None = None) -> ServerOptions:
    """The server options of a command line, for the first TP and the model of `study`. Raises SpecError."""
    return ServerOptions(
        engine=args.policy,
        version=args.engine_version,
        gpu_memory_utilization=args.gpu_memory_utilization,
        max_num_batched_tokens=args.max_num_batched_tokens,
        block_size=args.block_size,
        kv_pool_bytes=args.kv_pool,
        enforce_eager=args.enforce_eager,
        speculative_layers=args.speculative_layers or 0,
        speculative_tokens=args.speculative_tokens,
        prefix_caching_of_states=args.prefix_caching,
        disable_hybrid=args.disable_hybrid,
        tp=1 if study is None else study.tps[0],
        pp=args.pp or len(args.pp_layers or (1,)),
        pp_layers=args.pp_layers,
        dcp=args.dcp or 1,
        dp_attention=args.dp_attention or 1,
        facts=ModelFacts() if study is None else facts_of(args.model, study.model.name),
        **placement_options(args),
    )


Tried = tuple[int, ServerReport | None, str | None]


def tried(study: Study, options: ServerOptions) -> tuple[Tried, ...]:
    """The report for every --tp of the study, or why there is none; --tensor-split gives the number of devices."""
    out: list[Tried] = []
    shares = len(options.tensor_split)
    degrees = [tp for tp in study.tps if not shares or tp == shares] or list(study.tps)
    for tp in degrees:
        try:
            one = replace(options, tp=tp) if len(study.tps) > 1 else options
            out.append((tp, server_report(study, one), None))
        except SpecError as error:
            if len(degrees) == 1:
                raise
            out.append((tp, None, str(error)))
    return tuple(out)


@dataclass(frozen=True, slots=True)
class Served:
    """The plain report of what the server runs, the server's own for every TP, and the one that is described."""

    base: MemoryReport
    reports: tuple[Tried, ...]
    report: ServerReport


def serve(args: argparse.Namespace, base: MemoryReport) -> Served:
    """What the server named by --policy makes of the study of `base`. Raises SpecError where it can serve no TP."""
    options = options_from(args, base.study)
    if options.engine == "llamacpp" and options.max_num_seqs is None and args.batch is not None:
        options = replace(options, max_num_seqs=args.batch)
    given = {"weights_given": args.weight_format is not None, "cache_given": args.kv_format is not None}
    study = as_served(base.study, options, **given)
    reports = tried(study, options)
    report = _chosen(reports)
    if base.study.weight_format.bytes_per_element > study.weight_format.bytes_per_element:
        said = "the checkpoint's float32 weights are loaded in 16 bits, as with --dtype auto"
        report = replace(report, assumptions=(*report.assumptions, said))
    return Served(base if study is base.study else memory_report(study), reports, report)


def _chosen(reports: tuple[Tried, ...]) -> ServerReport:
    """The report of the engine block: the first TP that can be served. Raises SpecError if none can."""
    report = next((report for _, report, _ in reports if report is not None), None)
    if report is None:
        raise SpecError("tp", str(reports[0][2]))
    return report


def engine_document(report: ServerReport) -> Document:
    """The "engine" block of ``memory --json``."""
    return {
        "name": report.name,
        "version": report.version,
        "block_size": report.block_size,
        "weight_bytes_per_gpu": report.weight_bytes_per_gpu,
        "activation_bytes": report.activation_bytes,
        "non_torch_bytes": report.non_torch_bytes,
        "cuda_graph_bytes": report.cuda_graph_bytes,
        "kv_pool_bytes": report.kv_pool_bytes,
        "kv_blocks": report.kv_blocks,
        "kv_tokens": report.kv_tokens,
        "max_concurrency": 0.0 if report.refusal else report.max_concurrency,
        "groups": [
            {"kind": group.kind, "layers": group.layers, "blocks_per_request": group.blocks_per_request}
            for group in report.groups
        ],
        "assumptions": list(report.assumptions),
        "tp": report.options.tp,
        "pp": report.options.pp,
        "gpu_memory_utilization": None if report.utilization is None else float(report.utilization),
        "max_num_batched_tokens": report.max_num_batched_tokens,
        "max_num_seqs": report.max_num_seqs,
        "kv_bytes_per_request": report.kv_request_bytes,
        "starts": report.starts,
        "fits": report.fits,
        "bands": {name: list(band) for name, band in report.bands.items()},
        **placement_document(report),
    }


def server_document(served: Served, batch: int | None) -> Document:
    """What ``memory --json`` says as the server counts: its TP rows, its fit, its batch; and the engine block."""
    from calc.commands.notes import served_notes

    base, report = served.base, served.report
    document: Document = {
        "policy": report.options.engine,
        "fits": report.fits,
        "max_batch": report.requests,
        "tp": [_tp_document(*one) for one in served.reports],
        "steps": [term_document(term) for term in (*base.steps, *report.steps)],
        "notes": [*server_notes(served.reports, report, batch), *served_notes(base, report)],
        "engine": engine_document(report),
        "launch": launch_command(report),
    }
    return document if batch is None else document | batch_document(batch, report.requests, free_bytes(report, batch))


def free_bytes(report: ServerReport, batch: int) -> int:
    """Bytes left in the pool of the limiting GPU with `batch` requests; negative if they do not fit."""
    per_group = -(-batch // report.options.dp_attention)
    return report.cache_room_bytes - per_group * report.kv_request_bytes


def _tp_document(tp: int, report: ServerReport | None, problem: str | None) -> Document:
    if report is None:
        values: Document = dict.fromkeys(("weight_bytes_per_gpu", "kv_bytes_per_request_per_gpu"))
        return {"tp": tp, **values, "max_batch": 0, "fits": False, "problem": problem}
    return {
        "tp": tp,
        "weight_bytes_per_gpu": report.weight_bytes_per_gpu,
        "kv_bytes_per_request_per_gpu": report.kv_request_bytes,
        "max_batch": report.requests,
        "fits": report.fits,
        "problem": None,
    }


def server_notes(reports: tuple[Tried, ...], report: ServerReport, batch: int | None) -> list[str]:
    """Whether it starts and fits, whether the requested batch fits, what other TPs would hold, and what was assumed."""
    name = SERVER_NAMES[report.options.engine]
    assumed = [f"Assumed: {'; '.join(report.assumptions)}."] if report.assumptions else []
    if report.devices and report.refusal is None:
        split = None if report.fits else best_split(report.study, report.options)
        asked = [] if batch is None else [_batch_note(report, batch)]
        return [*placement_notes(report, split), *asked, *_other_tps(reports, report), *assumed]
    if report.refusal is not None:
        said = f"{name} does not start: {report.refusal}."
    elif report.kv_pool_bytes <= 0:
        said = f"{name} does not start: each GPU is short by {format_decimal(-report.kv_pool_bytes)} before any cache."
    elif not report.fits:
        does = "starts, but" if report.starts else "does not start:"
        said = f"{name} {does} its pool holds {report.max_concurrency:.2f} of one full-length request."
    else:
        said = f"{name} holds {report.max_concurrency:,.2f} full-length requests at once{_where(report)}."
    asked = [] if batch is None else [_batch_note(report, batch)]
    return [said, *asked, *_other_tps(reports, report), *assumed]


def _where(report: ServerReport) -> str:
    options = report.options
    shared = [f"{name} {n:,}" for name, n in (("TP", options.tp), ("PP", options.pp)) if n > 1]
    return f" at {', '.join(shared)}" if shared else " on one device"


def _batch_note(report: ServerReport, batch: int) -> str:
    where = _where(report).removeprefix(" at ").removeprefix(" on ")
    said = batch_sentence(batch, report.requests, free_bytes(report, batch), where)
    most = report.max_num_seqs
    waiting = most is not None and most < batch <= report.requests
    return f"{said} At most {most:,} of them run at once (--max-num-seqs)." if waiting else said


def _other_tps(reports: tuple[Tried, ...], report: ServerReport) -> list[str]:
    """Why TPs of the list cannot be served; the smallest that fits if the chosen one does not."""
    notes = [f"TP {tp:,} cannot be served: {problem}." for tp, _, problem in reports if problem is not None]
    larger = next((other for _, other, _ in reports if other is not None and other.fits), None)
    if larger is not None and not report.fits:
        notes.append(f"With --tp {larger.options.tp} it holds {larger.max_concurrency:,.2f} full-length requests.")
    return notes


def server_tables(reports: tuple[Tried, ...], report: ServerReport) -> list[Table]:
    """The parts of one GPU's memory, the groups of layers, every TP."""
    parts = placement_table(report) if report.devices else _parts_table(report)
    return [parts, _groups_table(report), *([_tp_table(reports)] if len(reports) > 1 else [])]


def _parts_table(report: ServerReport) -> Table:
    fields = {
        "Weights": "weight_bytes_per_gpu",
        "Activations": "activation_bytes",
        "Outside the framework": "non_torch_bytes",
        "CUDA graphs": "cuda_graph_bytes",
        "KV pool": "kv_pool_bytes",
    }
    rows = [_part_row(title, getattr(report, field), report.bands.get(field)) for title, field in fields.items()]
    rows += [
        ("Block", Quantity(f"{report.block_size:,} tokens", report.block_size, "tokens"), *EMPTY),
        ("KV blocks", format_count(report.kv_blocks), *EMPTY),
        ("KV tokens", format_count(report.kv_tokens), *EMPTY),
        _requests_row(report),
    ]
    options = report.options
    shared = f", PP {options.pp}" if options.pp > 1 else ""
    title = f"{SERVER_NAMES[options.engine]} {report.version}, per GPU at TP {options.tp}{shared}"
    return Table(title=title, columns=PART_COLUMNS, rows=tuple(rows))


PART_COLUMNS = (
    Column("Part"),
    Column("Size", numeric=True),
    Column("Binary units", numeric=True, priority=2, repeats=True),
    Column("from", numeric=True, priority=1, group="Band"),
    Column("to", numeric=True, priority=1, group="Band"),
    Column("Remark"),
)
EMPTY = ("", "", "", "")


def _requests_row(report: ServerReport) -> tuple[str, ...]:
    name = "Full-length requests"
    if report.refusal is not None:
        return name, "–", "", "", "", "does not start"
    held = Quantity(f"{report.max_concurrency:,.2f}", report.max_concurrency)
    return name, held, "", "", "", "" if report.fits else "does not fit"


def _part_row(title: str, size: int, band: tuple[int, int] | None) -> tuple[str, ...]:
    known = band if band is not None and size else None
    low, high = ("", "") if known is None else map(format_binary, known)
    return title, format_decimal(size), format_binary(size), low, high, ""


def _groups_table(report: ServerReport) -> Table:
    rows = tuple(
        (group.kind, format_count(group.layers), format_count(group.block_tokens),
         format_count(group.blocks_per_request))
        for group in report.groups
    )  # fmt: skip
    columns = ("Kind of layer", "Layers", "Tokens per block", "Blocks per request")
    return Table(title="Cache groups", columns=columns, rows=rows, numeric=frozenset({1, 2, 3}))


def _tp_table(reports: tuple[Tried, ...]) -> Table:
    rows = []
    for tp, report, problem in reports:
        if report is None:
            rows.append((str(tp), "–", "–", "–", problem or ""))
            continue
        held = format_bytes_exact(report.kv_request_bytes)
        remark = "" if report.fits else "does not fit" if report.starts else "does not start"
        rows.append((str(tp), format_decimal(report.weight_bytes_per_gpu), held, format_count(report.requests), remark))
    if any(report is not None and report.devices for _, report, _ in reports):
        columns = ("Devices", "Weights, fullest GPU", "KV/request there", "Slots", "Remark")
        return Table(title="Devices sharing the layers", columns=columns, rows=tuple(rows), numeric=frozenset(range(4)))
    columns = ("TP", "Weights per GPU", "KV/request per GPU", "Batch", "Remark")
    return Table(title="Tensor parallelism", columns=columns, rows=tuple(rows), numeric=frozenset({0, 1, 2, 3}))


def server_answer(served: Served, batch: int | None) -> Answer:
    """Heading, tables and sentences as the server counts."""
    from calc.commands import tables
    from calc.commands.notes import served_notes

    base, report = served.base, served.report
    study, options = base.study, report.options
    parts = [
        *server_tables(served.reports, report),
        tables.component_table(base),
        tables.derivation_table((*base.steps[:-1], *report.steps)),
    ]
    what = f"{study.model.title} on {device_words(study, options)}, {study.context:,} tokens"
    notes = [*server_notes(served.reports, report, batch), *served_notes(base, report)]
    if (command := launch_command(report)) is not None:
        notes.append(f"Start it with: {command}")
    return f"{what}, as {SERVER_NAMES[options.engine]} counts", parts, notes
