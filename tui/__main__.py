"""The ``kvscope`` command: full screen, or headless for scripts.

The choice is made before anything heavy is imported: a headless ``memory`` never imports Textual, and nothing here ever
imports torch (the engine is a separate process).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tui.headless.cli import main as run


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    return run(list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
