"""From the command line to the app or to one headless command."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from calc import commands as calc_commands
from calc.commands import command_named, listed
from calc.commands.output import guarded, print_all_the_same, say
from tui import __version__

if TYPE_CHECKING:
    from tui.form.state import AppState

PROG = "kvscope"
ENGINE_COMMAND = "tui.headless.engine:run_engine_command"

COMMANDS = {
    **calc_commands.COMMANDS,
    "simulate": ("tui.headless.simulate:run_simulate", calc_commands.COMMANDS["simulate"][1]),
    "report": ("tui.report.command:run_report", "the complete report, as LaTeX or Markdown"),
}
"""Commands known without looking at the engine: a cold ``memory`` imports nothing of it."""

GLYPHS = "╭─█▏◆●⣿…"
"""Some of the characters used on the screen."""

USAGE = """\
usage: {prog} [OPTIONS]                 the full-screen app, on this model
       {prog} [--no-tui] COMMAND [...]  one answer, printed
       {prog} --no-tui                  the whole study, printed

commands (each has --help):
{commands}

Every command takes --json, --format text|json|csv|md, --output FILE, --quiet.
Sizes need a unit: 80GB is 80 x 10^9 bytes, 80GiB is 80 x 2^30.
Counts: 8192, 8k (8000) or 8Ki (8192).
Lists of counts: 1,2,8 or 64..16k (doubling) or 1k..8k:1k (with a step).
Exit codes: 0 done, 1 a check failed, 2 bad input, 3 the engine failed,
130 interrupted.
"""


def all_commands() -> dict[str, tuple[str, str]]:
    """COMMANDS and those that run the engine, in the order of the help: where each is, and what it does."""
    from engine.measure.registry import MEASUREMENTS

    measuring = {name: (ENGINE_COMMAND, measurement.summary) for name, measurement in MEASUREMENTS.items()}
    generate = {"generate": (ENGINE_COMMAND, "run a real transformer with its KV cache, token by token")}
    last = {name: COMMANDS[name] for name in ("report", "models", "devices")}
    return {**{name: each for name, each in COMMANDS.items() if name not in last}, **generate, **measuring, **last}


def main(argv: Sequence[str]) -> int:
    """Run what `argv` asks for and return its exit code."""
    print_all_the_same()
    words = [word for word in argv if word != "--no-tui"]
    headless = len(words) < len(argv)
    if words and words[0] in ("-h", "--help"):
        print(USAGE.format(prog=PROG, commands=listed(all_commands())), end="")
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
    name = name.replace("_", "-")  # kv_evaluate, the assignment's spelling
    known = COMMANDS if name in COMMANDS else all_commands()
    prog = f"{PROG} {name}" if name in known else PROG
    return guarded(lambda: _run_named(name, known, rest, prog), prog)


def _run_named(name: str, known: Mapping[str, tuple[str, str]], words: Sequence[str], prog: str) -> int:
    run = command_named(name, known)
    if name not in COMMANDS:
        run = partial(run, name)  # one function for all commands that run the engine
    return run(words, prog)


def _run_app(words: Sequence[str]) -> int:
    """The full-screen app with the study that the options describe (without options: as it was last closed)."""
    state = _state(words) if words else None
    if reason := _no_screen():
        say(f"{PROG}: {reason}, so the app cannot start; without it: {PROG} --no-tui, or {PROG} memory (see --help)")
        return 2
    gc.disable()  # nothing made for the first screen is garbage; `EngineLink.attach` turns collection on again
    from tui.app.app import run_app

    return run_app(state)


def _state(words: Sequence[str]) -> AppState:
    from calc.commands.options import study_from, study_parser
    from tui.form.state import initial_state

    args = study_parser(PROG).parse_args(words)
    return initial_state(study_from(args, servers=True), args.policy)


def _no_screen() -> str | None:
    """Why a full-screen program cannot run here, or None."""
    if not sys.stdin.isatty():
        return "standard input is not a terminal"
    if not sys.stdout.isatty():
        return "standard output is not a terminal"
    if not sys.stderr.isatty():  # Textual draws on stderr
        return "standard error, where the screen is drawn, is not a terminal"
    if os.name == "posix" and os.environ.get("TERM", "") in ("", "dumb"):
        return "the terminal cannot move its cursor (TERM is dumb or unset)"
    return _unshown()


def _unshown() -> str | None:
    """Why the locale cannot show the screen, or None. If none is set, terminals still read UTF-8."""
    named = os.environ.get("LC_ALL", "")
    encoding = "ASCII" if named in ("C", "POSIX") else sys.stderr.encoding or "ASCII"
    try:
        GLYPHS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return f"the locale's characters ({encoding}) cannot draw it; set LC_ALL=C.UTF-8"
    return None
