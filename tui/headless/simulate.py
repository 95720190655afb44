"""``kvscope simulate``: calc's command, with its plot on a terminal or in a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from calc.commands.output import emit, on_screen, rendered, say, screen
from calc.commands.simulate import Simulated, printed, simulate_parser, simulated
from calc.errors import SpecError

if TYPE_CHECKING:
    from tui.charts.chart import Chart

PLOT_WIDTH, PLOT_HEIGHT = 100, 20


def run_simulate(argv: Sequence[str], prog: str) -> int:
    """``simulate`` with ``--plot``. The exit code is 0 even if the server does not start."""
    parser = simulate_parser(prog)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot the load over time to a .svg, .png or .txt file"
    )
    args = parser.parse_args(argv)
    if args.plot is not None:
        _check_plot(args.plot)
    answer = simulated(args)
    if args.plot is not None:
        _write(args, answer)
    if args.format != "text" or not on_screen(args) or not answer.points:
        return printed(answer, args)
    from calc.commands.simulate_tables import answer_of

    text = rendered("text", *answer_of(answer), on_screen=True)
    return emit(args, "\n\n".join([text, _drawn(chart_of(answer))]))


@contextmanager
def _refused() -> Iterator[None]:
    """Turns errors of the engine's writer into calc's errors."""
    from engine.errors import OptionError

    try:
        yield
    except OptionError as error:
        raise SpecError("plot", error.message) from None


def _check_plot(path: Path) -> None:
    """Check before the work that its result can be written. Raises SpecError."""
    from engine.files import check_writable
    from tui.charts.chart_file import check_plot_path

    with _refused():
        check_plot_path(path)
        check_writable(path, "plot")


def _write(args: argparse.Namespace, answer: Simulated) -> None:
    from engine.files import write_whole
    from tui.charts.chart_file import render

    if not answer.points:
        raise SpecError("plot", f"there is nothing to plot: {answer.problem}")
    with _refused():
        write_whole(args.plot, render(args.plot, chart_of(answer)))
    if not args.quiet:
        say(f"wrote {args.plot}")


def chart_of(answer: Simulated) -> Chart:
    """One load over time, or times by load if there are several."""
    from calc.commands.simulate_document import run_document
    from calc.commands.simulate_tables import load_said, where
    from tui.views.load import course_chart, rate_chart

    runs = [run_document(answer, point) for point in answer.points]
    if len(runs) == 1:
        return course_chart(runs[0], title=f"{where(answer)} · {load_said(answer.points[0])}")
    by = "users" if answer.points[0].users is not None else "rate"
    title = f"{where(answer)} · times by {by}"
    return rate_chart(runs, limits=answer.args.limit, percent=answer.percentile, title=title)


def _drawn(chart: Chart) -> str:
    from tui.charts.chart_text import draw

    utf8 = (sys.stdout.encoding or "").lower().startswith("utf")
    return draw(chart, width=min(screen()[0], PLOT_WIDTH), height=PLOT_HEIGHT, marker="braille" if utf8 else "dot")
