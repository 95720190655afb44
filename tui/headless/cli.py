"""From the words of the command line to the app or to one headless command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from calc import commands as calc_commands
from calc.commands import command_named, listed
from calc.commands.output import guarded, say
from tui import __version__

PROG = "kvscope"

ENGINE_COMMANDS = {
    "generate": ("tui.headless.engine:generate", "run a real transformer with its KV cache, token by token"),
    "evaluate": ("tui.headless.engine:evaluate", "compare its logits with the expected ones"),
    "kv-evaluate": ("tui.headless.engine:kv_evaluate", "the same with the KV cache, and cached against uncached"),
    "benchmark": ("tui.headless.engine:benchmark", "latency with and without the cache, by prompt length"),
    "batch": ("tui.headless.engine:batch", "tokens per second of 1 to 32 prompts at once, measured and predicted"),
    "formats": ("tui.headless.engine:formats", "memory, speed and logit error of each weight and cache format"),
}
COMMANDS = {
    **{name: found for name, found in calc_commands.COMMANDS.items() if name not in ("models", "devices")},
    **ENGINE_COMMANDS,
    "report": ("tui.report.command:run_report", "the complete write-up, as LaTeX or Markdown"),
    **{name: calc_commands.COMMANDS[name] for name in ("models", "devices")},
}

USAGE = f"""\
usage: {PROG} [OPTIONS]                 the full-screen app, opened on a model and device of your choice
       {PROG} [--no-tui] COMMAND [...]  one answer, printed
       {PROG} --no-tui                  the whole study, printed

commands (each has --help):
{listed(COMMANDS)}

Every command takes --json, --format text|json|csv|md, --output FILE and --quiet.
Sizes need a unit: 80GB is 80 x 10^9 bytes, 80GiB is 80 x 2^30. Counts: 8192, 8k (8000) or 8Ki (8192).
Lists of counts: 1,2,8 or 64..16k (doubling) or 1k..8k:1k (with a step).
Exit codes: 0 done, 1 a check failed, 2 bad input, 3 the engine failed, 130 interrupted.
"""


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

        return guarded(lambda: run_study(words, PROG), PROG)
    return guarded(lambda: _run_app(words), PROG)


def _run_command(words: Sequence[str]) -> int:
    name, *rest = words
    prog = f"{PROG} {name}" if name in COMMANDS else PROG
    return guarded(lambda: command_named(name, COMMANDS)(rest, prog), prog)


def _run_app(words: Sequence[str]) -> int:
    """The full screen, with the study that the options describe (none: as it was left)."""
    from calc.commands.options import study_from, study_parser

    args = study_parser(PROG).parse_args(words)
    if reason := _no_screen():
        say(f"{PROG}: {reason}, so the app cannot start; without it: {PROG} --no-tui, or {PROG} memory (see --help)")
        return 2
    from tui.app.app import run_app

    return run_app(study_from(args) if words else None)


def _no_screen() -> str | None:
    """Why a full-screen program cannot run here, or None."""
    if not sys.stdin.isatty():
        return "standard input is not a terminal"
    if not sys.stdout.isatty():
        return "standard output is not a terminal"
    if not sys.stderr.isatty():  # Textual draws there
        return "standard error, where the screen is drawn, is not a terminal"
    if os.environ.get("TERM", "") in ("", "dumb"):
        return "the terminal cannot move its cursor (TERM is dumb or unset)"
    return None
