"""``kvscope report``: writes the report to a .tex or .md file, completely or not at all."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from calc.commands.intensity import add_attention_options
from calc.commands.options import Parser, add_output_options, add_study_options, add_workload_options, count, study_from
from calc.commands.output import emit, emit_json, emit_tables, say
from calc.commands.tables import Table
from calc.errors import SourceError
from calc.files import check_writable, write_whole
from calc.plain import one_line

if TYPE_CHECKING:
    from tui.form.state import AppState
    from tui.report.measured_part import Measurements
    from tui.report.model import Report

DONE, CHECK_FAILED = 0, 1


def report_parser(prog: str) -> Parser:
    """Options of ``report``: the study as for ``memory`` and ``intensity``, and where to write."""
    parser = Parser(
        prog=prog,
        description="The complete report: tables, calculation, plots and measurements, as LaTeX or Markdown.",
    )
    add_study_options(parser)
    add_workload_options(parser)
    intensity = parser.add_argument_group("intensity, (c) and (d)")
    intensity.add_argument(
        "--attention-context", type=count, default=1024, metavar="N", help="context in tokens (default 1024)"
    )
    add_attention_options(intensity)
    measured = parser.add_argument_group("problem 2, measured")
    measured.add_argument(
        "--weights", metavar="FILE", help=".pt, .safetensors, .gguf or a model folder (default: the bundled model)"
    )
    measured.add_argument("--cases", metavar="FILE", help="JSON of expected logits (default: the bundled cases)")
    measured.add_argument("--no-measure", action="store_true", help="do not run the engine: calculated numbers only")
    add_output_options(
        parser,
        answer="the path of the report and its verdict",
        output="the report: a .tex (LaTeX) or .md (Markdown) file",
        required=True,
    )
    return parser


def run_report(argv: Sequence[str], prog: str) -> int:
    """``report``. Exit code 0: written; 1: written, but an evaluation failed; 2: bad input; 3: the engine failed,
    nothing written."""
    from engine.errors import EngineError

    args = report_parser(prog).parse_args(argv)
    render = renderer_for(args.output)
    check_writable(args.output)
    if args.no_measure and (args.weights or args.cases):
        raise SourceError("--no-measure cannot be combined with --weights or --cases: give only one of them")
    state = state_from(args)
    try:
        measured = None if args.no_measure else _measured(args)
    except EngineError as error:
        remedy = "" if args.no_measure else " (--no-measure does not need the engine)"
        say(f"{prog}: {error.message}{remedy}")
        return error.exit_code
    return _written(args, state, measured, render)


def _written(
    args: argparse.Namespace,
    state: AppState,
    measured: Measurements | None,
    render: Callable[[Report], str],
) -> int:
    from tui.report.content import build_report

    report = build_report(state, measured)
    write_whole(args.output, render(report))
    _say_where(args, report)
    return CHECK_FAILED if report.passed is False else DONE


def _say_where(args: argparse.Namespace, report: Report) -> None:
    """Print the path and, if the format allows it, the verdict of its evaluations."""
    path = str(args.output)
    to_stdout = argparse.Namespace(format=args.format, output=None)
    if args.format == "json":
        emit_json(to_stdout, {"command": "report", "schema": 1, "output": path, "passed": report.passed})
    elif args.format == "text":
        emit(to_stdout, one_line(path))
    else:
        verdict = "" if report.passed is None else "passed" if report.passed else "failed"
        emit_tables(to_stdout, "", [Table(title="Report", columns=("Output", "Checks"), rows=((path, verdict),))], ())


def renderer_for(path: Path) -> Callable[[Report], str]:
    """LaTeX for .tex, Markdown for .md. Raises SourceError for anything else."""
    extension = path.suffix.lower()
    if extension == ".tex":
        from tui.report.latex import to_latex

        return to_latex
    if extension == ".md":
        from tui.report.markdown import to_markdown

        return to_markdown
    raise SourceError(f"--output must end in .tex (LaTeX) or .md (Markdown), not {path.name!r}")


def state_from(args: argparse.Namespace) -> AppState:
    """The state that the options describe. Raises CalcError."""
    from calc.intensity.attention import Attention
    from tui.form.state import AppState

    study = study_from(args)
    return AppState(
        study=study,
        attention=Attention(args.attention) if args.attention else None,
        attention_context=args.attention_context,
        attention_head_dim=study.model.head_dim,
        softmax_flops=args.softmax_flops,
        causal=args.causal,
    )


def _measured(args: argparse.Namespace) -> Measurements:
    from engine.commands.run import ProgressLine
    from engine.process.client import EngineClient
    from engine.records import Event, Progress
    from tui.report.measure import measure

    line = ProgressLine(sys.stderr, enabled=not args.quiet)

    def watch(event: Event) -> None:
        if isinstance(event, Progress):
            line.show(event)

    try:
        with EngineClient() as client:
            return measure(client, weights=args.weights, cases=args.cases, watch=watch)
    finally:
        line.clear()
