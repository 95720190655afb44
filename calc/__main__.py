"""``python -m calc memory …``: the calculator on its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from calc.commands import COMMANDS, command_named, listed
from calc.commands.output import guarded, print_all_the_same
from calc.errors import CalcError

PROG = "python -m calc"
USAGE = f"""\
usage: {PROG} COMMAND [OPTIONS]

commands (each has --help):
{listed(COMMANDS)}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    print_all_the_same()
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(words), " ".join([PROG, *(word for word in words[:1] if word in COMMANDS)]))


def _run(words: Sequence[str]) -> int:
    if not words:
        raise CalcError(f"name a command: {', '.join(COMMANDS)}")
    name, *rest = words
    if name in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    return command_named(name, COMMANDS)(rest, f"{PROG} {name}")


if __name__ == "__main__":
    sys.exit(main())
