"""What a real server makes of the study: which policy, its options as text, the parts of a device. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any

from calc.commands.llamacpp import ALL, layer_count
from calc.commands.tables import Column, Row, Table, share
from calc.errors import CalcError, QuantityError
from calc.explain.terms import Term
from calc.model.study import Study
from calc.servers.names import ENGINES, SERVER_NAMES
from calc.servers.records import ModelFacts, ServerOptions, ServerReport
from calc.units import Quantity, format_bytes_exact, format_count, format_decimal, format_gib, parse_count
from tui.views.placement import SOURCES, notes, slot_rows

NAMES = SERVER_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAnswer:
    """What a server says; `problem` is why there is no report, as a sentence."""

    report: ServerReport | None = None
    problem: str = ""


def server_answer(study: Study, options: ServerOptions) -> ServerAnswer:
    """The report of the server that `options` names, on `study`."""
    from calc.servers.report import server_report
    from calc.servers.serving import as_served

    try:
        known = known_options(study, options)
        given = study.kv_format.name != "bf16"  # the default: the checkpoint's own format takes its place
        return ServerAnswer(report=server_report(as_served(study, known, weights_given=True, cache_given=given), known))
    except CalcError as error:
        return ServerAnswer(problem=str(error))


def known_options(study: Study, options: ServerOptions) -> ServerOptions:
    """`options` with what is known of the model that the server would load."""
    return replace(options, facts=model_facts(study.model.source, study.model.name))


@lru_cache(maxsize=8)
def model_facts(source: str, name: str) -> ModelFacts:
    """What a server loads beside the text model, of the config that the model was read from; read once."""
    from calc.servers.facts import facts_of

    return facts_of(source if source.endswith(".json") else None, name)


# Options from text: blank is the server's own default


def _count(name: str) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        return parse_count(text, what=name) if text.strip() else None

    return read


def read_version(text: str) -> str | None:
    """An engine's version; blank is the one that was measured."""
    return text.strip() or None


def read_utilization(text: str) -> Fraction | None:
    """A share of the device, ``0.9`` or ``90%``."""
    stripped = text.strip()
    if not stripped:
        return None
    if not re.fullmatch(r"\d{0,3}\.?\d{0,9}%?", stripped) or not re.search(r"\d", stripped):
        raise QuantityError(f"utilization must be a share such as 0.9, not {stripped[:20]!r}")
    value = Fraction(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    if not 0 < value <= 1:
        raise QuantityError(f"utilization must be above 0 and at most 1, not {stripped[:20]}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionField:
    """One of the server's options in the form: label, cells, reader, what it means, and its command line word."""

    name: str
    label: str
    width: int
    read: Callable[[str], Any]
    meaning: str
    word: str
    engines: tuple[str, ...] = ENGINES
    blank: Any = None


WITH_POOL = ("vllm", "sglang")
EAGER_ENGINES = WITH_POOL
"""Servers with CUDA graphs."""


def _gpu_layers(text: str) -> int | None:
    n = layer_count(text) if text.strip() else ALL
    return None if n == ALL else n


OPTION_FIELDS: tuple[OptionField, ...] = (
    OptionField(
        name="version",
        label="version",
        width=8,
        read=read_version,
        meaning="Version of the server, such as 0.19.0: defaults and accounting change. Blank: the one measured.",
        word="--engine-version",
    ),
    OptionField(
        name="tp",
        label="TP",
        width=4,
        read=lambda text: parse_count(text or "1", what="TP"),
        meaning="Tensor-parallel GPUs of this server.",
        word="--tp",
    ),
    OptionField(
        name="gpu_memory_utilization",
        label="util",
        width=5,
        read=read_utilization,
        meaning="Share of the device that the server may use. Blank: the default of the version.",
        word="--gpu-memory-utilization",
        engines=WITH_POOL,
    ),
    OptionField(
        name="max_num_batched_tokens",
        label="tokens/step",
        width=7,
        read=_count("tokens/step"),
        meaning="Maximum tokens per step; activations are reserved for them. Blank: by version and device.",
        word="--max-num-batched-tokens",
    ),
    OptionField(
        name="max_num_seqs",
        label="seqs",
        width=6,
        read=_count("seqs"),
        meaning="Maximum sequences per step; for llama.cpp its slots. Blank: by version and device, one slot.",
        word="--max-num-seqs",
        engines=(*WITH_POOL, "llamacpp"),
    ),
    OptionField(
        name="block_size",
        label="block",
        width=4,
        read=_count("block"),
        meaning="Tokens per cache block. Blank: the server's own.",
        word="--block-size",
        engines=WITH_POOL,
    ),
    OptionField(
        name="n_gpu_layers",
        label="GPU layers",
        width=5,
        read=_gpu_layers,
        meaning="Upper layers on devices, the output among them. Blank: all; the others are in host memory.",
        word="--n-gpu-layers",
        engines=("llamacpp",),
    ),
    OptionField(
        name="n_cpu_moe",
        label="CPU experts",
        width=5,
        read=lambda text: layer_count(text) if text.strip() else 0,
        meaning="Lowest layers whose experts are in host memory. Blank: none.",
        word="--n-cpu-moe",
        engines=("llamacpp",),
        blank=0,
    ),
)


def option_text(options: ServerOptions, name: str) -> str:
    """What the field of `name` shows."""
    value, blank = getattr(options, name), next(field.blank for field in OPTION_FIELDS if field.name == name)
    if value == blank:
        return ""
    return f"{float(value):g}" if isinstance(value, Fraction) else str(value)


def option_words(options: ServerOptions) -> list[str]:
    """The command line's options that say `options`, those that are the default left out."""
    words: list[str] = ["--policy", options.engine]
    for field in OPTION_FIELDS:
        value = getattr(options, field.name)
        if value == field.blank or field.name == "tp":
            continue
        words += [field.word, option_text(options, field.name)]
    if options.kv_pool_bytes is not None:
        words += ["--kv-pool", f"{options.kv_pool_bytes}B"]
    if options.enforce_eager:
        words.append("--enforce-eager")
    if options.speculative_layers:
        words += ["--speculative-layers", str(options.speculative_layers)]
    return words


def with_engine(options: ServerOptions | None, engine: str) -> ServerOptions:
    """`options` of another engine: what only the one before understands goes back to the default."""
    if options is None:
        return ServerOptions(engine=engine)
    if options.engine == engine:
        return options
    return ServerOptions(engine=engine, tp=options.tp, pp=options.pp, facts=options.facts)


# The parts of a device


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A share of the device's memory. `field` is the report's; `mark` and `style` are of the bar."""

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
        source="The largest step that the server profiles; fitted on measured runs of this engine.",
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
        source="Captured decode steps, one graph for every batch size that is captured.",
    ),
    Part(
        name="KV cache",
        field="kv_pool_bytes",
        mark="▒",
        style="cache",
        source="The pool: what the share of the device leaves after the other parts.",
    ),
)
"""What a server takes of a device."""
FREE = Part(
    name="Free", mark="·", style="free", source="Left to other processes: the server keeps to its share of the device."
)
MISSING = replace(FREE, name="Missing", source="The parts add up to more than the device has.")


def parts(report: ServerReport) -> tuple[Part, ...]:
    """Weights, activations, runtime, graphs, cache and what stays free: they sum to the device."""
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
    """``± 4.0%``, of the wider side; empty where the value is exact."""
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
    size = abs(part.size)  # what is missing is said as an amount
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
    yield row("Block", block, "Tokens that are allocated together.", pool)
    yield row("Blocks", format_count(report.kv_blocks), "Whole blocks of the pool.", pool)
    tokens = "What the start-up log calls the size of the KV cache."
    yield row("Tokens", format_count(report.kv_tokens), tokens, pool)
    requests = Quantity(f"{report.max_concurrency:,.2f}", report.max_concurrency)
    what = "The log's maximum concurrency: blocks of the pool over those of a request."
    yield row("Requests of full length", requests, what, report.steps[::-1])


def groups_sentence(report: ServerReport) -> str:
    """The block tables that layers share: ``10 × full: 512 blocks per request of 16 tokens``."""
    return "; ".join(
        f"{group.layers} layers ({group.kind}) take {group.blocks_per_request:,} blocks "
        f"of {group.block_tokens:,} tokens"
        for group in report.groups
    )


def server_notes(report: ServerReport) -> tuple[str, ...]:
    """What was assumed, and how layers share blocks; of llama.cpp what starts, or the split that does."""
    if report.devices:
        return (*notes(report), *report.assumptions)
    shared = groups_sentence(report)
    return (*report.assumptions, *([f"A request of full length: {shared}."] if shared else []))


def defaults(report: ServerReport) -> Mapping[str, str]:
    """What the server takes where an option is blank, by field name."""
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
