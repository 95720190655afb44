"""``memory``, ``intensity``, ``models`` and ``devices`` on the command line: options in, reports out.

``kvscope`` and ``python -m calc`` both end here. Only what a command needs is imported: a cold
``memory --json`` is meant to cost little more than the interpreter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from calc.errors import CalcError, SpecError
from calc.model.spec import DIMENSIONS, DeviceSpec, Mlp, ModelSpec, Policy, Study
from calc.model.storage import StorageFormat, parse_format
from calc.plain import one_line, plain
from calc.units import parse_count, parse_counts, parse_size

if TYPE_CHECKING:
    from calc.commands.tables import Table
    from calc.fit.memory import MemoryReport
    from calc.intensity.study import IntensityReport

    Answer = tuple[str, list[Table], Sequence[str]]

T = TypeVar("T")
FORMATS = ("text", "json", "csv", "md")
SERVERS = ("vllm", "sglang", "transformers", "llamacpp")
"""Policies that count what a server reserves (calc.servers, imported only for them)."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose refusal is one sentence (exit code 2)."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, one_line(f"{self.prog}: {message} (see {self.prog} --help)") + "\n")


def _reader(read: Callable[[str], T]) -> Callable[[str], T]:
    """`read` for argparse: its refusal becomes the parser's sentence."""

    def convert(text: str) -> T:
        try:
            return read(text)
        except CalcError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


count = _reader(parse_count)
counts = _reader(parse_counts)
size = _reader(parse_size)
storage = _reader(parse_format)


def add_study_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model, which device and how things are stored."""
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="NAME|PATH", help="catalog name, config.json, folder or spec .toml")
    for name in DIMENSIONS:
        model.add_argument(f"--{name.replace('_', '-')}", type=count, metavar="N")
    model.add_argument("--mlp", choices=[str(m) for m in Mlp])
    tie = model.add_mutually_exclusive_group()
    tie.add_argument("--tied", action="store_true", default=None, help="the head shares the embedding's weights")
    tie.add_argument("--untied", action="store_false", dest="tied", default=None)
    device = parser.add_argument_group("device")
    device.add_argument("--device", metavar="NAME", help="catalog name (kvscope devices)")
    device.add_argument("--gpu-memory", type=size, metavar="SIZE", help="80GB or 80GiB (default 80GB or the device's)")
    stored = parser.add_argument_group("storage")
    weights = stored.add_mutually_exclusive_group()
    weights.add_argument("--weight-bytes", dest="weight_format", type=storage, metavar="X", help="default 2")
    weights.add_argument("--weight-format", type=storage, metavar="bf16|fp8|int8|q4_k|…")
    kv = stored.add_mutually_exclusive_group()
    kv.add_argument("--kv-bytes", dest="kv_format", type=storage, metavar="X", help="default 2")
    kv.add_argument("--kv-format", type=storage, metavar="bf16|fp8|int8|…")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """How and where the answer is printed."""
    out = parser.add_argument_group("output")
    form = out.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_const", const="json", dest="format", help="one JSON document")
    form.add_argument("--format", choices=FORMATS)
    out.add_argument("--output", type=Path, metavar="FILE", help="write there, whole or not at all")
    out.add_argument("--quiet", action="store_true", help="no progress, no remarks on stderr")
    parser.set_defaults(format="text")


def model_from(args: argparse.Namespace) -> ModelSpec:
    """The model of --model with the overrides put in. Raises CalcError."""
    from calc.sources import load_model

    base = load_model(args.model if args.model is not None else "llama-3-8b")
    given = {name: value for name in (*DIMENSIONS, "tied") if (value := getattr(args, name)) is not None}
    if args.mlp is not None:
        given["mlp"] = Mlp(args.mlp)
    if "head_dim" not in given and base.head_dim * base.n_heads == base.hidden_size:
        given["head_dim"] = derived_head_dim(
            given.get("hidden_size", base.hidden_size), given.get("n_heads", base.n_heads)
        )
    changes = {name: value for name, value in given.items() if value != getattr(base, name)}
    if not changes:
        return base
    if base.n_sliding_layers and "n_layers" in changes:
        changes["n_sliding_layers"] = -(-base.n_sliding_layers * changes["n_layers"] // base.n_layers)
    if base.stored is not None:
        from calc.model.stored import EDITED_NOTE, without_stored

        base = without_stored(base, EDITED_NOTE)
    return replace(base, name=f"{base.name} (edited)", source=f"{base.source}, edited", **changes)


def derived_head_dim(hidden_size: int, n_heads: int) -> int:
    """hidden_size / n_heads. Raises SpecError where that is no whole number."""
    if hidden_size % n_heads:
        raise SpecError(
            "head_dim",
            f"hidden_size {hidden_size:,} does not divide by n_heads {n_heads:,}: give the head dimension itself",
        )
    return hidden_size // n_heads


def device_from(args: argparse.Namespace) -> DeviceSpec:
    """The device of --device or --gpu-memory, or the first with the memory of the second. Raises CalcError."""
    from calc.sources.catalog import find_device, manual_device, memory_reading

    memory = args.gpu_memory
    if args.device is None:
        return manual_device(memory if memory is not None else 80 * 10**9)
    device = find_device(args.device)
    if memory is None or memory == device.memory_bytes:
        return device
    return replace(device, name=f"{device.name} (edited)", memory_bytes=memory, reading=memory_reading(memory))


def formats_from(args: argparse.Namespace, model: ModelSpec) -> dict[str, StorageFormat]:
    """Storage formats that were given; weights as the model's checkpoint stores them where none was."""
    given = {"weight_format": args.weight_format or _as_stored(model), "kv_format": args.kv_format}
    return {name: value for name, value in given.items() if value is not None}


def _as_stored(model: ModelSpec) -> StorageFormat | None:
    if model.stored is None:
        return None
    from calc.model.stored import stored_format

    return stored_format(model)


def memory_parser(prog: str) -> Parser:
    """Options of ``memory``."""
    parser = Parser(prog=prog, description="Parameters, weights, KV cache, largest batch, tensor parallelism.")
    add_study_options(parser)
    parser.add_argument("--context", type=count, default=8192, metavar="N", help="tokens (default 8192)")
    parser.add_argument("--tp", type=counts, default=(1, 2, 4, 8), metavar="1,2,4,8")
    parser.add_argument("--policy", choices=[*(str(p) for p in Policy), *SERVERS], default=str(Policy.EQUAL_SPLIT))
    add_output_options(parser)
    return parser


def study_from(args: argparse.Namespace) -> Study:
    """The study that the options describe. Raises CalcError."""
    if args.policy in SERVERS and not hasattr(args, "engine_version"):
        raise SpecError("policy", f"--policy {args.policy} goes with the commands memory and solve alone")
    model = model_from(args)
    return Study(
        model=model,
        device=device_from(args),
        context=args.context,
        tps=args.tp,
        policy=Policy.REPLICATED if args.policy in SERVERS else Policy(args.policy),
        **formats_from(args, model),
    )


def run_memory(argv: Sequence[str], prog: str) -> int:
    """``memory``: exit code 0, also where nothing fits (that is an answer)."""
    from calc.fit.memory import memory_report

    parser = memory_parser(prog)
    add_parallel_options(parser)
    add_server_options(parser)
    args = parser.parse_args(argv)
    check_server_options(args)
    report = memory_report(study_from(args))
    if args.policy in SERVERS:
        return _emit_server(args, report)
    if any((args.pp, args.ep, args.dp_attention, args.dcp)):
        return _emit_with_plans(args, report)
    if args.format == "json":
        from calc.commands.documents import memory_document

        return emit_json(args, memory_document(report))
    return emit_tables(args, *memory_answer(report))


def add_parallel_options(parser: argparse.ArgumentParser) -> None:
    """Ways to share a model beside tensor parallelism; any of them adds a table of stages."""
    shared = parser.add_argument_group("parallelism, beside --tp")
    shared.add_argument("--pp", type=count, metavar="N", help="pipeline stages")
    shared.add_argument("--ep", type=count, metavar="N", help="of the TP devices, those that share whole experts")
    shared.add_argument("--dp-attention", type=count, metavar="N", help="attention groups with requests of their own")
    shared.add_argument("--dcp", type=count, metavar="N", help="devices that share the tokens of repeated KV heads")


SERVER_OPTIONS = (
    "engine_version", "gpu_memory_utilization", "max_num_batched_tokens", "max_num_seqs", "block_size", "kv_pool",
    "enforce_eager", "speculative_layers", "speculative_tokens", "prefix_caching", "disable_hybrid",
)  # fmt: skip


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """How the server of --policy is started."""

    def utilization(text: str) -> object:
        from calc.commands.server import read_utilization

        return read_utilization(text)

    server = parser.add_argument_group("server, with --policy vllm, sglang, transformers or llamacpp")
    server.add_argument("--engine-version", metavar="V", help="such as 0.19.0: accounting and defaults change")
    server.add_argument("--gpu-memory-utilization", type=_reader(utilization), metavar="0.9")
    server.add_argument("--max-num-batched-tokens", type=count, metavar="N", help="most tokens of a step")
    server.add_argument("--max-num-seqs", type=count, metavar="N", help="most sequences of a step; llama.cpp's slots")
    server.add_argument("--block-size", type=count, metavar="N", help="tokens of a cache block")
    server.add_argument("--kv-pool", type=size, metavar="SIZE", help="the pool a GPU, instead of the derived one")
    server.add_argument("--enforce-eager", action="store_true", help="no CUDA graphs")
    server.add_argument("--speculative-layers", type=count, metavar="N", help="layers of the guessing model (MTP)")
    server.add_argument("--speculative-tokens", type=count, metavar="N", help="tokens guessed a step")
    server.add_argument("--prefix-caching", action="store_true", help="recurrent states are cached too")
    server.add_argument("--disable-hybrid", action="store_true", help="window layers keep the whole context")


def check_server_options(args: argparse.Namespace) -> None:
    """Raise SpecError for options of a server without its policy, and for what no server counts."""
    given = [name for name in SERVER_OPTIONS if getattr(args, name)]
    if given and args.policy not in SERVERS:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SpecError(given[0], f"{words} is a server's: add --policy {', '.join(SERVERS[:-1])} or {SERVERS[-1]}")
    if args.policy in SERVERS and args.ep:
        raise SpecError("ep", "--ep is not counted with a server's policy: leave one of them out")


def _emit_server(args: argparse.Namespace, report: MemoryReport) -> int:
    from calc.commands.server import run

    document, answer = run(args, report)
    return emit_tables(args, *answer) if document is None else emit_json(args, document)


def _emit_with_plans(args: argparse.Namespace, report: MemoryReport) -> int:
    from calc.commands import parallel as cli_parallel

    plans = cli_parallel.plans_from(args, report.study)
    if args.format == "json":
        from calc.commands.documents import memory_document

        return emit_json(args, {**memory_document(report), "parallel": cli_parallel.parallel_document(plans)})
    heading, tables, notes = memory_answer(report)
    tables = [*tables[:-1], *cli_parallel.parallel_tables(plans), tables[-1]]
    return emit_tables(args, heading, tables, [*notes, *cli_parallel.parallel_notes(plans)])


def memory_answer(report: MemoryReport) -> Answer:
    """Heading, tables and sentences of ``memory``."""
    from calc.commands import tables
    from calc.commands.notes import memory_notes

    parts = [
        tables.answer_table(report),
        tables.component_table(report),
        tables.tp_table(report),
        tables.derivation_table(report.steps),
    ]
    heading = f"{report.study.model.name} on {report.study.device.name}, {report.study.context:,} tokens"
    return heading, parts, memory_notes(report)


def intensity_parser(prog: str) -> Parser:
    """Options of ``intensity``."""
    from calc.intensity.attention import Attention
    from calc.intensity.study import DEFAULT_BATCHES, DEFAULT_CONTEXTS

    parser = Parser(prog=prog, description="FLOPs, bytes and arithmetic intensity of attention and of a decode step.")
    add_study_options(parser)
    parser.add_argument("--context", type=count, default=1024, metavar="N", help="tokens (default 1024)")
    parser.add_argument("--element-bytes", type=storage, metavar="X", help="activations and cache (default 2)")
    parser.add_argument("--attention", choices=[str(a) for a in Attention], default="standard")
    parser.add_argument("--softmax-flops", type=int, choices=(5, 0), default=5)
    parser.add_argument("--group-size", type=count, default=1, metavar="G", help="query heads a KV head (default 1)")
    parser.add_argument("--contexts", type=counts, default=DEFAULT_CONTEXTS, metavar="64..16384")
    parser.add_argument("--batches", type=counts, default=DEFAULT_BATCHES, metavar="1..256")
    add_output_options(parser)
    return parser


def run_intensity(argv: Sequence[str], prog: str) -> int:
    """``intensity``."""
    from calc.intensity.attention import Attention
    from calc.intensity.study import IntensityQuery, intensity_report

    args = intensity_parser(prog).parse_args(argv)
    model = model_from(args)
    formats = formats_from(args, model)
    element = args.element_bytes or formats.get("kv_format")
    weight = formats.get("weight_format")
    report = intensity_report(
        IntensityQuery(
            model=model,
            device=device_from(args),
            attention=Attention(args.attention),
            context=args.context,
            head_dim=model.head_dim,
            group_size=args.group_size,
            element_bytes=element.bytes_per_element if element else 2,
            weight_element_bytes=weight.bytes_per_element if weight else 2,
            softmax_flops=args.softmax_flops,
            contexts=args.contexts,
            batches=args.batches,
        )
    )
    if args.format == "json":
        from calc.commands.documents import intensity_document

        return emit_json(args, intensity_document(report))
    return emit_tables(args, *intensity_answer(report))


def intensity_answer(report: IntensityReport) -> Answer:
    """Heading, tables and sentences of ``intensity``."""
    from calc.commands import tables
    from calc.intensity.observations import intensity_observations

    query = report.query
    shown = f"{query.attention} attention, one KV head, N = {query.context:,}, d = {query.head_dim}"
    parts = [
        tables.step_table(report.prefill, f"Prefill, {shown}"),
        tables.step_table(report.decode, f"Decode, {shown}"),
        tables.formula_table(report),
        tables.context_table(report),
        tables.batch_table(report),
    ]
    return "Arithmetic intensity", parts, intensity_observations(report)


def _catalog_parser(prog: str, what: str) -> Parser:
    parser = Parser(prog=prog, description=f"The catalog of {what}.")
    parser.add_argument("search", nargs="?", default="", metavar="TEXT", help="only those that match")
    add_output_options(parser)
    return parser


def run_models(argv: Sequence[str], prog: str) -> int:
    """``models``: the catalog."""
    from calc.commands.tables import model_catalog_table
    from calc.sources.catalog import search_models

    args = _catalog_parser(prog, "models").parse_args(argv)
    return _emit_catalog(args, model_catalog_table(search_models(args.search)))


def run_devices(argv: Sequence[str], prog: str) -> int:
    """``devices``: the catalog."""
    from calc.commands.tables import device_catalog_table
    from calc.sources.catalog import search_devices

    args = _catalog_parser(prog, "devices").parse_args(argv)
    return _emit_catalog(args, device_catalog_table(search_devices(args.search)))


def _emit_catalog(args: argparse.Namespace, table: Table) -> int:
    if args.format == "json":
        records = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        return emit_json(args, {"command": table.title.lower(), "schema": 1, "rows": records})
    return emit_tables(args, "", [table], ())


def emit_json(args: argparse.Namespace, document: Mapping[str, object]) -> int:
    """Print or write one JSON document, in ASCII where the terminal or pipe knows no more."""
    ascii_only = args.output is None and not _encoding().startswith("utf")
    return emit(args, plain(json.dumps(document, indent=1, ensure_ascii=ascii_only)))


def emit_tables(args: argparse.Namespace, heading: str, parts: list[Table], sentences: Sequence[str]) -> int:
    """Print or write tables, then sentences, in --format; text is fitted to the terminal if it goes to one."""
    on_screen = args.output is None and sys.stdout is not None and sys.stdout.isatty()
    return emit(args, rendered(args.format, heading, parts, sentences, on_screen=on_screen))


def rendered(form: str, heading: str, parts: list[Table], sentences: Sequence[str], *, on_screen: bool = False) -> str:
    """The answer as text, Markdown or CSV (tables one after another, an empty line between)."""
    from calc.commands.render import as_csv, as_markdown, as_sentences, as_text

    if form == "csv":
        return "\n\n".join(as_csv(table) for table in parts)
    if form == "md":
        blocks = [f"## {one_line(heading)}", *map(as_markdown, parts)]
        blocks.append("\n".join(f"- {one_line(sentence)}" for sentence in sentences))
    else:
        width, styled = _screen() if on_screen else (None, False)
        texts = (as_text(table, width=width, styled=styled) for table in parts)
        blocks = [one_line(heading), *texts, as_sentences(sentences, width=width)]
    return "\n\n".join(blocks[not heading : None if sentences else -1])


def _screen() -> tuple[int, bool]:
    """Columns of the terminal, and whether it wants bold and dim (https://no-color.org)."""
    import os
    import shutil

    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return shutil.get_terminal_size().columns, not plain


def _encoding() -> str:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower()


def emit(args: argparse.Namespace, text: str) -> int:
    """Print `text`, or write it to --output whole. Raises SourceError where the file cannot be written."""
    from calc.errors import SourceError

    if args.output is None:
        if sys.stdout is None:
            raise SourceError("standard output is closed: there is nowhere to print to")
        if not _encoding().startswith("utf"):
            from calc.commands.render import in_encoding

            text = in_encoding(text, _encoding())
        print(text)
        return 0
    from calc.commands.render import write_whole

    try:
        write_whole(args.output, text + "\n")
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"cannot write {args.output}: {getattr(error, 'strerror', None) or error}") from None
    if not args.quiet:
        print(one_line(f"wrote {args.output}"), file=sys.stderr)
    return 0


def _solve(argv: Sequence[str], prog: str) -> int:
    from calc.commands.solve import run_solve

    return run_solve(argv, prog)


def _sweep(argv: Sequence[str], prog: str) -> int:
    from calc.commands.sweep import run_sweep

    return run_sweep(argv, prog)


COMMANDS: dict[str, Callable[[Sequence[str], str], int]] = {
    "memory": run_memory,
    "intensity": run_intensity,
    "solve": _solve,
    "sweep": _sweep,
    "models": run_models,
    "devices": run_devices,
}


def guarded(run: Callable[[], int], prog: str) -> int:
    """Run a command; turn what users cause into one sentence and an exit code. Also where argparse stops."""
    try:
        code = _exit_code(run)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except CalcError as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has seen enough: nothing went wrong
        _leave_stdout()
        return 0
    except OSError as error:
        message = f"cannot write the answer: {error.strerror or error}"
        _leave_stdout()
    print(one_line(f"{prog}: {message}"), file=sys.stderr)
    return 2


def _exit_code(run: Callable[[], int]) -> int:
    try:
        return run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0


def _leave_stdout() -> None:
    """Python flushes stdout once more on exit, and would complain again."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
