"""How a command ends: it prints or writes its answer, or refuses with one sentence; and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from io import TextIOWrapper
from typing import TYPE_CHECKING

from calc.errors import CalcError, SourceError
from calc.plain import one_line, plain

if TYPE_CHECKING:
    import argparse

    from calc.commands.tables import Table

    Answer = tuple[str, list[Table], Sequence[str]]
    """Heading, tables and sentences."""


def guarded(run: Callable[[], int], prog: str) -> int:
    """Run a command; turn errors that users cause, including those from argparse, into one sentence and an exit
    code."""
    try:
        code = _exit_code(run)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except CalcError as error:
        message = str(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader closed the pipe: this is not an error
        _leave_stdout()
        return 0
    except OSError as error:
        message = f"cannot write the answer: {error.strerror or error}"
        _leave_stdout()
    say(f"{prog}: {message}")
    return 2


def _exit_code(run: Callable[[], int]) -> int:
    try:
        return run()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0


def _leave_stdout() -> None:
    """Python flushes stdout again on exit and would report the error again."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(sentence: str) -> None:
    """A line on stderr."""
    print(one_line(sentence), file=sys.stderr)


def emit_json(args: argparse.Namespace, document: Mapping[str, object]) -> int:
    """Print or write one JSON document, in ASCII if the output encoding requires it."""
    import json

    ascii_only = args.output is None and not _encoding().startswith("utf")
    return emit(args, plain(json.dumps(document, indent=1, ensure_ascii=ascii_only)))


def emit_tables(args: argparse.Namespace, heading: str, parts: list[Table], sentences: Sequence[str]) -> int:
    """Print or write tables, then sentences, in --format; text that goes to a terminal is fitted to its width."""
    return emit(args, rendered(args.format, heading, parts, sentences, on_screen=on_screen(args)))


def on_screen(args: argparse.Namespace) -> bool:
    """Whether the answer goes to a terminal."""
    return args.output is None and sys.stdout is not None and sys.stdout.isatty()


def rendered(form: str, heading: str, parts: list[Table], sentences: Sequence[str], *, on_screen: bool = False) -> str:
    """The answer as text, Markdown or CSV (tables separated by an empty line)."""
    from calc.commands.render import as_csv, as_heading, as_markdown, as_sentences, as_text

    if form == "csv":
        return "\n\n".join(as_csv(table) for table in parts)
    if form == "md":
        blocks = [f"## {one_line(heading)}", *map(as_markdown, parts)]
        blocks.append("\n".join(f"- {one_line(sentence)}" for sentence in sentences))
    else:
        width, styled = screen() if on_screen else (None, False)
        texts = (as_text(table, width=width, styled=styled) for table in parts)
        blocks = [as_heading(heading, width=width), *texts, as_sentences(sentences, width=width)]
    return "\n\n".join(blocks[not heading : None if sentences else -1])


def screen() -> tuple[int, bool]:
    """The terminal's columns, and whether to use bold and dim (https://no-color.org)."""
    import os
    import shutil

    bare = os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return shutil.get_terminal_size().columns, not bare


def print_all_the_same() -> None:
    """Replace characters that standard output cannot encode instead of failing (help on a code page)."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _encoding() -> str:
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower()


def emit(args: argparse.Namespace, text: str) -> int:
    """Print `text`, or write all of it to --output. Raises SourceError if it cannot be written."""
    if args.output is None:
        check_stdout()
        if not _encoding().startswith("utf"):
            from calc.commands.render import in_encoding

            text = in_encoding(text, _encoding())
        print(text)
        return 0
    from calc.files import write_whole

    write_whole(args.output, text + "\n")
    if not args.quiet:
        say(f"wrote {args.output}")
    return 0


def check_stdout() -> None:
    """Raise SourceError if there is no standard output."""
    if sys.stdout is None:
        raise SourceError("standard output is closed: there is nowhere to print")
