"""The answers of ``solve`` as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from calc.commands.documents import Document
from calc.commands.llamacpp import SPLIT, split_table
from calc.commands.tables import Column, Table
from calc.servers.names import SERVER_NAMES
from calc.units import Quantity, format_binary, format_bytes, format_count, format_decimal, requests

SIZE_COLUMNS = (
    Column("Quantity"),
    Column("Value", numeric=True),
    Column("Binary units", numeric=True, repeats=True),
    Column("Remark"),
)


def _repeated(also: str) -> tuple[str, str]:
    """A size in other units, or a remark, each in its own column."""
    return (also, "") if isinstance(also, Quantity) else ("", also)


def _quantities(title: str, rows: Iterable[tuple[str, str, str]]) -> Table:
    return Table(
        title=title, columns=SIZE_COLUMNS, rows=tuple((name, value, *_repeated(also)) for name, value, also in rows)
    )


def _sizes(answer: Document, missing: str) -> list[tuple[str, str, str]]:
    """Weights and free memory, or what is missing."""
    named = [("Weights per GPU", "weight_bytes"), ("Free per GPU", "free_bytes"), (missing, "missing_bytes")]
    kept = [(name, answer[key]) for name, key in named if answer[key] > 0]
    return [(name, format_decimal(value), format_binary(value)) for name, value in kept]


def _context_table(answer: Document, document: Document) -> Table:
    shown = "none" if answer["context"] is None else Quantity(f"{answer['context']:,}", answer["context"], "tokens")
    also = "every layer keeps a window or a state" if answer["unbounded"] else ""
    also = "longer than the model's context limit" if answer["beyond_model"] else also
    rows = [
        (f"Tokens for {requests(document['batch'])}", shown, also),
        *_sizes(answer, "Short by, for one token each"),
    ]
    return _quantities("Largest context", rows)


def _batch_table(answer: Document, document: Document) -> Table:
    first = (
        f"Requests of {document['context']:,} tokens",
        Quantity(f"{answer['batch']:,}", answer["batch"], "requests"),
        "" if answer["fits"] else "none fits",
    )
    return _quantities("Largest batch", [first, *_sizes(answer, "Short by, for one request")])


def _devices_table(answer: Document, document: Document) -> Table:
    rows: list[tuple[str, ...]] = [
        (
            *(format_count(plan[name]) for name in ("devices", "tp", "pp", "max_batch")),
            format_decimal(plan["weight_bytes"]),
            _plan_remark(plan),
        )
        for plan in answer["plans"]
    ]
    if not rows:
        missing = answer["missing_bytes"]
        rows = [
            (
                "none",
                "–",
                "–",
                "–",
                "–",
                f"short by {format_bytes(missing)}" if missing else "cannot be shared this way",
            )
        ]
    columns = ("Devices", "TP", "PP", "Batch", "Weights per GPU", "Remark")
    return Table(
        title=f"Fewest devices, {_rule(document)}", columns=columns, rows=tuple(rows), numeric=frozenset(range(5))
    )


def _rule(document: Document) -> str:
    """What was counted, as part of a title."""
    policy = document["policy"]
    return f"as {SERVER_NAMES[policy]} counts" if policy in SERVER_NAMES else f"{policy}: weights and cache alone"


def _plan_remark(plan: Document) -> str:
    limits = f"limited by stage {plan['binding_stage']}" if plan["pp"] > 1 and plan["binding_stage"] else ""
    return ", ".join(filter(None, (limits, "" if plan["usual"] else "rarely run")))


def _device_table(answers: list[Document], document: Document) -> Table:
    rows = tuple(
        (a["id"], format_binary(a["memory_bytes"]), format_count(a["max_batch"]) if a["fits"] else "–", a["reason"])
        for a in answers
    )
    struck = frozenset(i for i, answer in enumerate(answers) if not answer["fits"])
    columns = ("Device", "Memory", "Batch", "Remark")
    title = f"Catalog devices, {_rule(document)}"
    return Table(title=title, columns=columns, rows=rows, numeric=frozenset({1, 2}), struck=struck)


def _format_table(answers: list[Document], document: Document) -> Table:
    rows = tuple(
        (
            a["weight_format"],
            a["kv_format"],
            format_count(a["max_batch"]) if a["fits"] else "–",
            "none" if a["largest_context"] is None else format_count(a["largest_context"]),
            "" if a["fits"] else f"short by {format_decimal(a['missing_bytes'])}",
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
    SPLIT: split_table,
}
