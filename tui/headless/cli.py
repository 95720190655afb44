"""From the words of the command line to the app or to one headless command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from calc.commands import cli as calc_cli
from tui import __version__

PROG = "kvscope"

USAGE = """\
usage: kvscope [OPTIONS]                 the full-screen app, opened on a model and device of your choice
       kvscope [--no-tui] COMMAND [...]  one answer, printed
       kvscope --no-tui                  the whole study, printed

commands (each has --help):
  memory        parameters, weights, KV cache, largest batch, tensor parallelism
  intensity     FLOPs, bytes and arithmetic intensity of attention and of a decode step
  solve         turned round: largest context or batch, fewest devices, which device, which formats
  sweep         memory over lists of contexts, batches, TP, formats, devices and models, as CSV or JSON
  generate      run a real transformer with its KV cache, token by token
  evaluate      its logits against expected ones
  kv-evaluate   the same with the cache, and cached against uncached
  benchmark     latency with and without the cache, by prompt length
  batch         decode steps of 1 to 32 prompts at once: tokens a second, measured beside predicted
  formats       what each weight and cache format costs: memory, speed, error of the logits
  report        the complete write-up, as LaTeX or Markdown
  models        the catalog of models
  devices       the catalog of devices

Every command takes --json, --format text|json|csv|md, --output FILE and --quiet.
Sizes carry their unit: 80GB is 80 x 10^9 bytes, 80GiB is 80 x 2^30. Counts: 8192, 8k, 8Ki.
Exit codes: 0 done, 1 a check failed, 2 bad input, 3 the engine failed, 130 interrupted.
"""

Command = Callable[[Sequence[str], str], int]


def _engine_command(name: str) -> Command:
    def run(argv: Sequence[str], prog: str) -> int:
        from tui.headless.engine import ENGINE_COMMANDS

        return ENGINE_COMMANDS[name](argv, prog)

    return run


def _report(argv: Sequence[str], prog: str) -> int:
    from tui.report.command import run_report

    return run_report(argv, prog)


COMMANDS: dict[str, Command] = {
    **calc_cli.COMMANDS,
    **{
        name: _engine_command(name) for name in ("generate", "evaluate", "kv-evaluate", "benchmark", "batch", "formats")
    },
    "report": _report,
}


def main(argv: Sequence[str]) -> int:
    """Run what `argv` asks for and return its exit code."""
    words = [word for word in argv if word != "--no-tui"]
    headless = len(words) < len(argv)
    if words and words[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if words and words[0] in ("-V", "--version"):
        print(f"{PROG} {__version__}")
        return 0
    if words and not words[0].startswith("-"):
        return _run_command(words)
    if headless:
        from tui.headless.engine import run_study

        return calc_cli.guarded(lambda: run_study(words, PROG), PROG)
    return calc_cli.guarded(lambda: _run_app(words), PROG)


def _run_command(words: Sequence[str]) -> int:
    name, *rest = words
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}"
        print(f"{PROG}: unknown command {name!r}; {hint} (see {PROG} --help)", file=sys.stderr)
        return 2
    prog = f"{PROG} {name}"
    return calc_cli.guarded(lambda: COMMANDS[name](rest, prog), prog)


def _run_app(words: Sequence[str]) -> int:
    """The full screen, with the study that the options describe (none: as it was left)."""
    parser = calc_cli.memory_parser(PROG)
    args = parser.parse_args(words)
    if reason := _no_screen():
        print(
            f"{PROG}: {reason}, so there is no full screen; headless: {PROG} --no-tui, or {PROG} memory "
            f"(see {PROG} --help)",
            file=sys.stderr,
        )
        return 2
    from tui.app.app import run_app

    return run_app(calc_cli.study_from(args) if words else None)


def _no_screen() -> str | None:
    """Why a full-screen program cannot run here, or None."""
    if not sys.stdin.isatty():
        return "standard input is not a terminal"
    if not sys.stdout.isatty():
        return "standard output is not a terminal"
    if not sys.stderr.isatty():  # Textual draws there
        return "standard error, to which the screen is drawn, is not a terminal"
    if os.environ.get("TERM", "") in ("", "dumb"):
        return "the terminal cannot move its cursor (TERM is dumb or unset)"
    return None
