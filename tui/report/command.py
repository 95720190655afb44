"""``kvscope report``: the written answer into a .tex or .md file, whole or not at all."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from calc.commands.cli import Parser, add_study_options, count, counts, device_from, formats_from, model_from
from calc.errors import SourceError
from calc.model.spec import Policy, Study
from calc.plain import one_line, plain

if TYPE_CHECKING:
    from engine.process.events import Event
    from tui.form.state import AppState
    from tui.report.measured_part import Measurements
    from tui.report.model import Report

DONE, CHECK_FAILED = 0, 1


def report_parser(prog: str) -> Parser:
    """Options of ``report``: the study as for ``memory`` and ``intensity``, and where to write."""
    parser = Parser(prog=prog, description="The complete written answer: tables, calculation, plots, measurements.")
    add_study_options(parser)
    parser.add_argument("--context", type=count, default=8192, metavar="N", help="tokens a request (default 8192)")
    parser.add_argument("--tp", type=counts, default=(1, 2, 4, 8), metavar="1,2,4,8")
    parser.add_argument("--policy", choices=[str(p) for p in Policy], default=str(Policy.EQUAL_SPLIT))
    intensity = parser.add_argument_group("intensity, (c) and (d)")
    intensity.add_argument("--attention-context", type=count, default=1024, metavar="N", help="default 1024")
    intensity.add_argument("--attention", choices=["standard", "flash"], default="standard")
    intensity.add_argument("--softmax-flops", type=int, choices=(5, 0), default=5)
    out = parser.add_argument_group("output")
    out.add_argument("--output", type=Path, required=True, metavar="FILE", help="report.tex or report.md")
    out.add_argument("--no-measure", action="store_true", help="leave the engine out: calculated numbers only")
    out.add_argument("--json", action="store_true", help="print the path and the verdict as JSON")
    out.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def run_report(argv: Sequence[str], prog: str) -> int:
    """``report``: 0 written; 1 written, an evaluation in it failed; 2 bad input; 3 the engine failed, none written."""
    from engine.errors import EngineError

    args = report_parser(prog).parse_args(argv)
    render = renderer_for(args.output)
    check_writable(args.output)
    state = state_from(args)
    try:
        measured = None if args.no_measure else _measured(quiet=args.quiet)
    except EngineError as error:
        remedy = "" if args.no_measure else " (--no-measure leaves the engine out)"
        print(f"{prog}: {error.message}{remedy}", file=sys.stderr)
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
    save(args.output, render(report))
    if args.json:
        document = {"command": "report", "schema": 1, "output": str(args.output), "passed": report.passed}
        print(plain(json.dumps(document, ensure_ascii=False)))
    else:
        print(one_line(str(args.output)))
    return CHECK_FAILED if report.passed is False else DONE


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


def check_writable(path: Path) -> None:
    """Refuse early what could not be written after the measurements. Raises SourceError."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise SourceError(f"cannot write {path}: there is no folder {folder}")
    if path.is_dir():
        raise SourceError(f"cannot write {path}: it is a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise SourceError(f"cannot write {path}: no permission in {folder}")


def save(path: Path, text: str) -> None:
    """Write `text` whole. Raises SourceError where the file cannot be written."""
    from calc.commands.render import write_whole

    try:
        write_whole(path, text)
    except OSError as error:
        raise SourceError(f"cannot write {path}: {error.strerror or error}") from None


def state_from(args: argparse.Namespace) -> AppState:
    """The state that the options describe. Raises CalcError."""
    from calc.intensity.attention import Attention
    from tui.form.state import AppState

    model = model_from(args)
    study = Study(
        model=model,
        device=device_from(args),
        context=args.context,
        tps=args.tp,
        policy=Policy(args.policy),
        **formats_from(args, model),
    )
    return AppState(
        study=study,
        attention=Attention(args.attention),
        attention_context=args.attention_context,
        attention_head_dim=model.head_dim,
        softmax_flops=args.softmax_flops,
    )


def _measured(*, quiet: bool) -> Measurements:
    from engine.process.client import EngineClient
    from tui.report.measure import measure

    line = ProgressLine(None if quiet or not sys.stderr.isatty() else sys.stderr)
    try:
        with EngineClient() as client:
            return measure(client, watch=line.show)
    finally:
        line.clear()


class ProgressLine:
    """One line on a terminal that is written over: what is measured, how far it is, how long it will take."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._width = 0

    def show(self, stage: str, event: Event) -> None:
        """Show an event that says how far a stage is."""
        from engine.process.events import Progress

        if not isinstance(event, Progress):
            return
        left = "" if event.remaining_s is None else f", about {event.remaining_s:.0f} s left"
        self._write(f"{stage}: {event.done} of {event.total}{left} {event.detail}".rstrip())

    def clear(self) -> None:
        """Leave the terminal as it was."""
        if self._width:
            self._write("")

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        shown = one_line(text)[:78]
        self._stream.write("\r" + shown.ljust(self._width) + ("\r" if not shown else ""))
        self._stream.flush()
        self._width = len(shown)
