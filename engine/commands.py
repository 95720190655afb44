"""The modes of `python -m engine`: requests answered in this very process, printed as text or JSON."""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TextIO

from engine.cli import RUN_MODES, requests
from engine.documents import (
    Document,
    benchmark_document,
    evaluation_document,
    generation_document,
    to_json,
)
from engine.errors import EngineError, EngineFailure, InputError, OutOfMemory
from engine.events import (
    BenchmarkFinished,
    EvaluationFinished,
    Event,
    Failed,
    Generate,
    GenerationFinished,
    Loaded,
    Progress,
    Request,
    TokenGenerated,
)
from engine.files import write_whole
from engine.latency_plot import render
from engine.summary import benchmark_text, duration, evaluation_text, generation_text

DONE, CHECK_FAILED = 0, 1
Result = EvaluationFinished | BenchmarkFinished | GenerationFinished

_REDRAW_S = 0.1


def run(args: argparse.Namespace) -> int:
    """Answer the requests of the options one after the other; the exit code. Raises EngineError."""
    todo = requests(args)
    try:
        from engine.service import Service  # torch
    except ImportError as error:
        raise EngineFailure(f"the engine needs PyTorch: {error}") from None
    service = Service()
    results = []
    for request in todo:
        printer = _Printer(args, request)
        results.append(printer.follow(service.answer(request)))
        if isinstance(results[-1], BenchmarkFinished) and args.plot is not None:
            write_whole(args.plot, render(args.plot, results[-1].result))
            printer.remark(f"wrote {args.plot}")
    _write(args, results, model=printer.model)
    failed = [r for r in results if isinstance(r, EvaluationFinished) and not r.result.passed]
    return CHECK_FAILED if failed else DONE


def _write(args: argparse.Namespace, results: list[Result], *, model: str) -> None:
    """The answer, to --output or stdout. A generation that was streamed is there already."""
    if args.json:
        documents = [document(result, model=model) for result in results]
        if args.mode == "run":
            text = to_json({"command": "run", **dict(zip(RUN_MODES, documents, strict=True))})
        else:
            text = to_json(documents[0])
    elif _streams(args):
        return
    else:
        text = "\n\n".join(_text(args, result) for result in results)
    if args.output is None:
        print(text)
    else:
        write_whole(args.output, f"{text}\n".encode())
        if not args.quiet:
            print(f"wrote {args.output}", file=sys.stderr)


def document(result: Result, *, model: str) -> Document:
    """The JSON document of a result."""
    match result:
        case EvaluationFinished():
            return evaluation_document(result.result)
        case BenchmarkFinished():
            return benchmark_document(result.result)
        case GenerationFinished():
            return generation_document(result, model=model)


def _text(args: argparse.Namespace, result: Result) -> str:
    match result:
        case EvaluationFinished():
            return evaluation_text(result.result)
        case BenchmarkFinished():
            return benchmark_text(result.result)
        case GenerationFinished():
            as_ids = args.ids or result.text is None
            return ",".join(map(str, result.ids)) if as_ids else str(result.text)


def _streams(args: argparse.Namespace) -> bool:
    return args.mode == "generate" and args.stream and not args.json and args.output is None


class _Printer:
    """Shows the events of one request as they come, and keeps the last one."""

    def __init__(self, args: argparse.Namespace, request: Request) -> None:
        self._streams = _streams(args) and isinstance(request, Generate)
        self._ids = bool(args.ids)
        self._quiet = bool(args.quiet)
        self._progress = ProgressLine(sys.stderr, enabled=not args.quiet)
        self.model = "bundled"
        self._has_tokenizer = False

    def follow(self, events: Iterator[Event]) -> Result:
        """Show everything; the result. Raises what a `Failed` says."""
        try:
            for event in events:
                if isinstance(event, Result):
                    self._end(event)
                    return event
                self._show(event)
        finally:
            self._progress.clear()
        raise EngineFailure("the engine stopped without an answer")

    def remark(self, text: str) -> None:
        """A line on stderr, unless --quiet."""
        if not self._quiet:
            print(text, file=sys.stderr)

    def _show(self, event: Event) -> None:
        match event:
            case Failed():
                raise error_of(event)
            case Loaded():
                self.model = event.model.name
                self._has_tokenizer = event.model.has_tokenizer
            case Progress():
                self._progress.show(event)
            case TokenGenerated() if self._streams:
                self._print_token(event)
            case _:
                pass

    def _print_token(self, event: TokenGenerated) -> None:
        if self._ids or not self._has_tokenizer:
            sys.stdout.write(f"{',' if event.index else ''}{event.token_id}")
        else:
            sys.stdout.write(event.text)
        sys.stdout.flush()

    def _end(self, event: Result) -> None:
        if isinstance(event, GenerationFinished):
            if self._streams:
                print(flush=True)
            self.remark(generation_text(event))


class ProgressLine:
    """One line on a terminal that is written over and over, a few times a second; nothing elsewhere."""

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self._stream = stream
        self._enabled = enabled and stream.isatty()
        self._width = 0
        self._last_s = 0.0

    def show(self, event: Progress) -> None:
        """Replace the line."""
        now_s = time.monotonic()
        if not self._enabled or now_s - self._last_s < _REDRAW_S:
            return
        self._last_s = now_s
        self._write(progress_text(event))

    def clear(self) -> None:
        """Take the line away."""
        if self._width:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


def progress_text(event: Progress) -> str:
    """Progress in one line: "benchmark 3 of 60, about 12.0 s left: 50 prompt tokens with the cache, 1 of 5"."""
    left = "" if event.remaining_s is None else f", about {duration(event.remaining_s)} left"
    detail = f": {event.detail}" if event.detail else ""
    return f"{event.stage} {event.done} of {event.total}{left}{detail}"


def error_of(event: Failed) -> EngineError:
    """A `Failed` as the exception that has its exit code."""
    kinds: dict[str, type[EngineError]] = {"input": InputError, "memory": OutOfMemory}
    return kinds.get(event.kind, EngineFailure)(event.message)
