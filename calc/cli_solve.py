"""``solve`` on the command line: questions turned round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

from calc.cli import Parser, add_output_options, add_study_options, count, emit_json, emit_tables, study_from
from calc.specs import Policy, Study
from calc.tables import Table
from calc.units import format_binary, format_bytes, format_decimal

Document = dict[str, Any]

FINDS = ("context", "batch", "devices", "device", "format")


def solve_parser(prog: str) -> Parser:
    """Options of ``solve``."""
    parser = Parser(
        prog=prog,
        description="Questions turned round: the largest context or batch, the fewest devices, which device of the "
        "catalog, which formats. That nothing fits is an answer, with what is missing and what to change.",
    )
    add_study_options(parser)
    parser.add_argument("--find", choices=(*FINDS, "all"), default="all", help="what is asked for (default all)")
    parser.add_argument("--context", type=count, default=8192, metavar="N", help="tokens (default 8192)")
    parser.add_argument("--batch", type=count, default=1, metavar="N", help="requests that are to fit (default 1)")
    parser.add_argument("--tp", type=count, default=1, metavar="N", help="devices that share the model (default 1)")
    parser.add_argument("--most", type=count, default=1024, metavar="N", help="devices at most (default 1024)")
    parser.add_argument("--policy", choices=[str(p) for p in Policy], default=str(Policy.EQUAL_SPLIT))
    add_output_options(parser)
    return parser


def run_solve(argv: Sequence[str], prog: str) -> int:
    """``solve``: exit code 0, also where nothing fits (that is an answer)."""
    args = solve_parser(prog).parse_args(argv)
    tp, args.tp = args.tp, (args.tp,)
    study = study_from(args)
    finds = FINDS if args.find == "all" else (args.find,)
    document = solve_document(study, finds, batch=args.batch, tp=tp, most=args.most)
    if args.format == "json":
        return emit_json(args, document)
    heading = f"{study.model.name} on {study.device.name}, {_requests(args.batch)}, {study.context:,} tokens, TP {tp}"
    tables = [TABLES[find](document["answers"][find], document) for find in finds]
    return emit_tables(args, heading, [t for t in tables if t.rows], [*_advice_sentences(document), *document["notes"]])


def _requests(n: int) -> str:
    return "one request" if n == 1 else f"{n:,} requests"


def _advice_sentences(document: Document) -> list[str]:
    head = [document["shortage"]] if document["shortage"] else []
    return [*head, *(f"{step['text']} ({' '.join(step['options'])})" for step in document["advice"])]


def solve_document(study: Study, finds: Sequence[str], *, batch: int, tp: int, most: int) -> Document:
    """What ``solve --json`` prints: the question, an answer to each of `finds`, what is missing, what to change."""
    from calc.memory import memory_report
    from calc.solve import advice, missing_bytes, shortage

    report = memory_report(replace(study, tps=(tp,)))
    missing = missing_bytes(report, batch=batch, tp=tp)
    (row,) = report.tp
    return {
        "command": "solve",
        "schema": 1,
        "model": study.model.name,
        "device": study.device.name,
        "device_memory_bytes": study.device.memory_bytes,
        "context": study.context,
        "batch": batch,
        "tp": tp,
        "policy": str(study.policy),
        "weight_format": study.weight_format.name,
        "kv_format": study.kv_format.name,
        "fits": row.max_batch >= batch,
        "missing_bytes": missing,
        "shortage": shortage(report, batch=batch, tp=tp),
        "answers": {find: ANSWERS[find](study, batch, tp, most) for find in finds},
        "advice": [_record(step) for step in advice(report, batch=batch, tp=tp)],
        "notes": _solve_notes(study, tp, row.problem),
    }


def _solve_notes(study: Study, tp: int, problem: str | None) -> list[str]:
    notes = [f"Device memory: {study.device.reading}."]
    if problem:
        notes.append(f"TP {tp} cannot be served: {problem}.")
    notes.append("Weights and cache are counted; activations, runtime and graphs are not.")
    return notes


def _record(answer: Any) -> Document:
    """A frozen record as a JSON object."""
    values = {f.name: getattr(answer, f.name) for f in fields(answer)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _find_context(study: Study, batch: int, tp: int, most: int) -> Document:
    from calc.solve import largest_context

    return _record(largest_context(study, batch=batch, tp=tp))


def _find_batch(study: Study, batch: int, tp: int, most: int) -> Document:
    from calc.solve import largest_batch

    return _record(largest_batch(study, tp=tp))


def _find_devices(study: Study, batch: int, tp: int, most: int) -> Document:
    from calc.solve import fewest_devices

    answer = fewest_devices(study, batch=batch, most=most)
    return {**_record(answer), "plans": [_record(plan) for plan in answer.plans]}


def _find_device(study: Study, batch: int, tp: int, most: int) -> list[Document]:
    from calc.solve import devices_that_fit

    return [_record(answer) for answer in devices_that_fit(study, batch=batch, tp=tp)]


def _find_format(study: Study, batch: int, tp: int, most: int) -> list[Document]:
    from calc.solve import formats_that_fit

    return [_record(answer) for answer in formats_that_fit(study, batch=batch, tp=tp)]


ANSWERS: dict[str, Callable[[Study, int, int, int], Any]] = {
    "context": _find_context,
    "batch": _find_batch,
    "devices": _find_devices,
    "device": _find_device,
    "format": _find_format,
}


def _quantities(title: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    return Table(title=title, columns=("Quantity", "Value", "Also"), rows=tuple(rows), numeric=frozenset({1, 2}))


def _sizes(answer: Document) -> list[tuple[str, str, str]]:
    """Weights and what stays free; or what is missing."""
    named = [("Weights per GPU", "weight_bytes"), ("Free per GPU", "free_bytes"), ("Missing", "missing_bytes")]
    kept = [(name, answer[key]) for name, key in named if answer[key] > 0]
    return [(name, format_decimal(value), format_binary(value)) for name, value in kept]


def _context_table(answer: Document, document: Document) -> Table:
    shown = "none" if answer["context"] is None else f"{answer['context']:,}"
    also = "every layer keeps a window or a state" if answer["unbounded"] else ""
    also = "longer than the model was made for" if answer["beyond_model"] else also
    rows = [(f"Tokens for {_requests(document['batch'])}", shown, also), *_sizes(answer)]
    return _quantities("Largest context", rows)


def _batch_table(answer: Document, document: Document) -> Table:
    first = (
        f"Requests of {document['context']:,} tokens",
        f"{answer['batch']:,}",
        "" if answer["fits"] else "none fits",
    )
    return _quantities("Largest batch", [first, *_sizes(answer)])


def _devices_table(answer: Document, document: Document) -> Table:
    rows = [
        (
            f"{plan['devices']:,}",
            f"{plan['tp']:,}",
            f"{plan['pp']:,}",
            f"{plan['max_batch']:,}",
            format_decimal(plan["weight_bytes"]),
            f"stage {plan['binding_stage']} decides" if plan["pp"] > 1 else "",
        )
        for plan in answer["plans"]
    ]
    if not rows:
        rows = [("none", "–", "–", "–", "–", f"{format_bytes(answer['missing_bytes'])} are missing")]
    columns = ("Devices", "TP", "PP", "Batch", "Weights per GPU", "Remark")
    return Table(title="Fewest devices", columns=columns, rows=tuple(rows), numeric=frozenset(range(5)))


def _device_table(answers: list[Document], document: Document) -> Table:
    rows = tuple(
        (a["id"], format_binary(a["memory_bytes"]), f"{a['max_batch']:,}" if a["fits"] else "–", a["reason"])
        for a in answers
    )
    struck = frozenset(i for i, answer in enumerate(answers) if not answer["fits"])
    columns = ("Device", "Memory", "Batch", "Remark")
    return Table(title="Devices of the catalog", columns=columns, rows=rows, numeric=frozenset({1, 2}), struck=struck)


def _format_table(answers: list[Document], document: Document) -> Table:
    rows = tuple(
        (
            a["weight_format"],
            a["kv_format"],
            f"{a['max_batch']:,}" if a["fits"] else "–",
            "none" if a["largest_context"] is None else f"{a['largest_context']:,}",
            "" if a["fits"] else f"{format_decimal(a['missing_bytes'])} are missing",
        )
        for a in answers
    )
    struck = frozenset(i for i, answer in enumerate(answers) if not answer["fits"])
    columns = ("Weights", "Cache", "Batch", "Largest context", "Remark")
    return Table(title="Storage formats", columns=columns, rows=rows, numeric=frozenset({2, 3}), struck=struck)


TABLES: dict[str, Callable[[Any, Document], Table]] = {
    "context": _context_table,
    "batch": _batch_table,
    "devices": _devices_table,
    "device": _device_table,
    "format": _format_table,
}
