"""``python -m calc memory …``: the calculator by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from calc.commands.cli import COMMANDS, guarded
from calc.errors import CalcError

USAGE = f"usage: python -m calc {{{'|'.join(COMMANDS)}}} [OPTIONS]   (each has --help)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _run(words), " ".join(["python -m calc", *words[:1]]))


def _run(words: Sequence[str]) -> int:
    if not words:
        raise CalcError(f"which command? {USAGE}")
    name, *rest = words
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in COMMANDS:
        raise CalcError(f"unknown command; {USAGE}")
    return COMMANDS[name](rest, f"python -m calc {name}")


if __name__ == "__main__":
    sys.exit(main())
