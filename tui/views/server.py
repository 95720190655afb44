"""How a real server divides a device's memory: parts, blocks, groups of layers, notes. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from calc.commands.tables import Column, Row, Table, share
from calc.explain.terms import Term
from calc.servers.names import SERVER_NAMES
from calc.servers.records import ServerReport
from calc.units import Quantity, format_bytes_exact, format_count, format_decimal, format_gib
from tui.views.placement import SOURCES, notes, slot_rows

NAMES = SERVER_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A share of the device's memory. `field` is that of the report; `mark` and `style` are for the bar."""

    name: str
    field: str = ""
    size: int = 0
    mark: str
    style: str
    source: str


def device_bytes(report: ServerReport) -> int:
    """Memory as the server sees it, of the device that limits it."""
    from calc.servers.budget import visible_bytes

    if report.fullest is not None:
        return report.fullest.room_bytes + report.non_torch_bytes

    return visible_bytes(report.study.device)[0]


PARTS = (
    Part(
        name="Weights",
        field="weight_bytes_per_gpu",
        mark="█",
        style="weights",
        source="The tensors of one rank as the server stores them: repeated KV heads, padded vocabulary, tables.",
    ),
    Part(
        name="Activations",
        field="activation_bytes",
        mark="▓",
        style="activations",
        source="The largest step that the server profiles; fitted to measured runs of this engine.",
    ),
    Part(
        name="Runtime (non-torch)",
        field="non_torch_bytes",
        mark="▚",
        style="runtime",
        source="CUDA context, libraries and communication buffers, outside the framework's allocator.",
    ),
    Part(
        name="CUDA graphs",
        field="cuda_graph_bytes",
        mark="▞",
        style="graphs",
        source="Captured decode steps, one graph per captured batch size.",
    ),
    Part(
        name="KV cache",
        field="kv_pool_bytes",
        mark="▒",
        style="cache",
        source="The pool: what remains of the device's share after the other parts.",
    ),
)
"""Memory that a server uses on a device."""
FREE = Part(
    name="Free", mark="·", style="free", source="Left to other processes: the server uses only its share of the device."
)
MISSING = replace(FREE, name="Missing", source="The parts add up to more than the device has.")


def parts(report: ServerReport) -> tuple[Part, ...]:
    """Weights, activations, runtime, graphs, cache and free memory: together, the whole device."""
    held = [replace(part, size=_size(report, part.field)) for part in PARTS]
    free = device_bytes(report) - sum(part.size for part in held)
    held.append(replace(FREE if free >= 0 else MISSING, size=free))
    return tuple(_as_placed(report, part) for part in held if part.size)


def _size(report: ServerReport, field: str) -> int:
    if field != "kv_pool_bytes":
        return int(getattr(report, field))
    return max(0, report.kv_pool_bytes) if report.fullest is None else report.fullest.kv_bytes


def _as_placed(report: ServerReport, part: Part) -> Part:
    return replace(part, source=SOURCES.get(part.field, part.source)) if report.devices else part


def band_text(report: ServerReport, field: str) -> str:
    """``± 4.0%`` for the wider side; empty if the value is exact."""
    band, value = report.bands.get(field), getattr(report, field, 0)
    if band is None or value <= 0:
        return ""
    wider = max(band[1] - value, value - band[0])
    return f"± {wider / value:.1%}" if wider < 10 * value else f"± {format_decimal(wider)}"


def parts_table(report: ServerReport) -> Table:
    """The parts of a device with their bands and shares, then the pool in blocks, tokens and requests."""
    return Table(
        title=f"{NAMES[report.options.engine]} {report.version} on a device",
        columns=(
            Column("Part"),
            Column("Bytes", numeric=True),
            Column("Binary units", numeric=True, priority=1, repeats=True),
            Column("Band", numeric=True, priority=2),
            Column("Share", numeric=True, priority=3),
        ),
        rows=(*(_part_row(report, part) for part in parts(report)), *_pool_rows(report)),
    )


def _part_row(report: ServerReport, part: Part) -> Row:
    band = report.bands.get(part.field)
    known = (
        f" Between {format_decimal(band[0])} and {format_decimal(band[1])}." if band else " Exact." * bool(part.field)
    )
    size = abs(part.size)  # what is missing is shown as a positive amount
    return Row(
        (
            f"{part.mark} {part.name}",
            format_decimal(size),
            format_gib(size),
            band_text(report, part.field),
            share(size, device_bytes(report)),
        ),
        title=f"{part.name}: {format_bytes_exact(size)}",
        terms=tuple(term for term in report.steps if part.field and term.gives == part.field),
        note=part.source + known,
    )


def _pool_rows(report: ServerReport) -> Iterator[Row]:
    def row(name: str, value: str, note: str, terms: tuple[Term, ...]) -> Row:
        return Row((f"  {name}", value, "", "", ""), title=name, note=note, terms=terms)

    if report.refusal is not None:
        yield Row(("  Does not start", "", "", "", ""), title="Does not start", note=f"{report.refusal}.", struck=True)
        return
    if report.devices:
        yield from slot_rows(report)
        return
    if report.kv_pool_bytes <= 0:
        short, name = -report.kv_pool_bytes, "Does not start: no room for the cache"
        cells = (f"  {name}", format_decimal(short), format_gib(short), "", "missing")
        yield Row(cells, title=name, terms=report.steps)
        return
    pool = report.steps[:2]
    block = Quantity(f"{report.block_size:,} tokens", report.block_size, "tokens")
    yield row("Block", block, "Tokens allocated together.", pool)
    yield row("Blocks", format_count(report.kv_blocks), "Whole blocks in the pool.", pool)
    tokens = "The size of the KV cache in the start-up log."
    yield row("Tokens", format_count(report.kv_tokens), tokens, pool)
    requests = Quantity(f"{report.max_concurrency:,.2f}", report.max_concurrency)
    what = "The log's maximum concurrency: blocks in the pool over blocks per request."
    yield row("Full-length requests", requests, what, report.steps[::-1])


def groups_sentence(report: ServerReport) -> str:
    """The block tables that layers share: ``10 × full: 512 blocks per request of 16 tokens``."""
    return "; ".join(
        f"{group.layers} layers ({group.kind}) take {group.blocks_per_request:,} blocks "
        f"of {group.block_tokens:,} tokens"
        for group in report.groups
    )


def server_notes(report: ServerReport) -> tuple[str, ...]:
    """The assumptions, and how layers share blocks; for llama.cpp, whether it starts, or the split that does."""
    if report.devices:
        return (*notes(report), *report.assumptions)
    shared = groups_sentence(report)
    return (*report.assumptions, *([f"Per full-length request: {shared}."] if shared else []))


def defaults(report: ServerReport) -> Mapping[str, str]:
    """The server's defaults for blank options, by field name."""
    known = {
        "version": report.version,
        "gpu_memory_utilization": None if report.utilization is None else f"{float(report.utilization):g}",
        "max_num_batched_tokens": report.max_num_batched_tokens,
        "max_num_seqs": report.max_num_seqs,
        "block_size": report.block_size,
        "tp": 1,
        "n_gpu_layers": "all",
        "n_cpu_moe": 0,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


MARKS = {
    "█": "primary", "▓": "success", "▚": "secondary", "▞": "warning", "▒": "accent",
}  # fmt: skip
"""Theme colours of the marks of the bar."""
