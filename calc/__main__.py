"""``python -m calc memory …``: the calculator by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from calc.cli import COMMANDS, guarded

USAGE = f"usage: python -m calc {{{'|'.join(COMMANDS)}}} [OPTIONS]   (each has --help)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        print(f"python -m calc: unknown command {name!r}; {USAGE}", file=sys.stderr)
        return 2
    prog = f"python -m calc {name}"
    return guarded(lambda: COMMANDS[name](rest, prog), prog)


if __name__ == "__main__":
    sys.exit(main())
