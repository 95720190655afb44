"""The modes of `python -m engine`: requests answered in this process and printed as text or JSON."""

import argparse
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from engine.commands.cli import RUN_MODES
from engine.commands.documents import generation_document, to_json
from engine.commands.summary import generation_text
from engine.errors import EngineError, EngineFailure, InputError, OutOfMemory
from engine.files import write_whole
from engine.generation_events import GenerationFinished, TokenGenerated
from engine.measure.measurement import Document, Measurement
from engine.measure.registry import measurement_of
from engine.plain import one_line, plain
from engine.process.events import EngineExited, Failed, Generate, Loaded
from engine.records import NS_PER_S, Event, MeasurementFinished, ModelInfo, Progress, Request
from engine.text import duration, plural, size

DONE, CHECK_FAILED = 0, 1
BUNDLED_NAME = "bundled"
Result = MeasurementFinished | GenerationFinished
Answer = Callable[[Request], Iterator[Event]]
"""Whatever answers a request: a service in this process, or the client of another process."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request with its result. `measurement` is None for a generation."""

    request: Request
    result: Result
    measurement: Measurement | None
    model: ModelInfo | None
    """The model that produced the result, if it was described."""

    @property
    def passed(self) -> bool:
        """False if a check failed."""
        return self.measurement is None or self.measurement.passed(self._measured)

    def document(self) -> Document:
        """The JSON document."""
        if isinstance(self.result, GenerationFinished):
            return generation_document(self.result, model=self.model.name if self.model else BUNDLED_NAME)
        assert self.measurement is not None
        return self.measurement.document(self._measured)

    def text(self, *, ids: bool = False, width: int | None = None) -> str:
        """For people: a table within `width`, or a generation as text (as ids if requested, or if there is no text)."""
        if isinstance(self.result, GenerationFinished):
            text = self.result.text
            return ",".join(map(str, self.result.ids)) if ids or text is None else text
        assert self.measurement is not None
        return self.measurement.table(self._measured).text(width)

    @property
    def _measured(self) -> Any:
        assert isinstance(self.result, MeasurementFinished)
        return self.result.result


_REDRAW_S = 0.1
LONG_S = 5.0
"""Work that takes at least this long says in advance how long it will take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answers of a command, one per request."""

    answers: list[Answered]

    @property
    def exit_code(self) -> int:
        """1 if a check failed, else 0."""
        return DONE if all(answered.passed for answered in self.answers) else CHECK_FAILED


def run(args: argparse.Namespace, todo: list[Request], answer: Answer) -> int:
    """Answer `todo`, print the results according to the options, and return the exit code. Raises EngineError."""
    outcome = follow(args, todo, answer)
    if args.json:
        emit(args, to_json(_documents(args, outcome)))
    else:
        print_text(args, outcome)
    return outcome.exit_code


def follow(args: argparse.Namespace, todo: list[Request], answer: Answer) -> Outcome:
    """Answer `todo` one after another, showing tokens and progress as they come. Raises EngineError."""
    answers: list[Answered] = []
    model = None
    for request in todo:
        printer = _Printer(args, request)
        result = printer.follow(_known(request) or answer(request))
        model = printer.model or model
        answers.append(Answered(request, result, measurement_of(request), model))
    return Outcome(answers)


def _known(request: Request) -> Iterator[Event] | None:
    """The answer to a request that needs no run."""
    measurement = measurement_of(request)
    answer = None if measurement is None else measurement.known(request)
    return None if answer is None else iter([answer])


def print_text(args: argparse.Namespace, outcome: Outcome) -> None:
    """Write the results as text to --output or stdout. A streamed generation has been written already."""
    if not _streams(args):
        width = shutil.get_terminal_size().columns if args.output is None and sys.stdout.isatty() else None
        emit(args, "\n\n".join(answered.text(ids=args.ids, width=width) for answered in outcome.answers))


def emit(args: argparse.Namespace, text: str) -> None:
    """Print `text`, or write all of it to --output. Raises OptionError if that file cannot be written."""
    if args.output is None:
        print(plain(text))
        return
    write_whole(args.output, f"{plain(text)}\n".encode())
    if not args.quiet:
        print(one_line(f"wrote {args.output}"), file=sys.stderr)


def _documents(args: argparse.Namespace, outcome: Outcome) -> Document:
    documents = [answered.document() for answered in outcome.answers]
    if args.mode == "run":
        return {"command": "run", **dict(zip(RUN_MODES, documents, strict=True))}
    return documents[0]


def _streams(args: argparse.Namespace) -> bool:
    return args.mode == "generate" and args.stream and not args.json and args.output is None


class _Printer:
    """Shows the events of one request as they come, and keeps the last event."""

    def __init__(self, args: argparse.Namespace, request: Request) -> None:
        self._streams = _streams(args) and isinstance(request, Generate)
        self._generate = request if isinstance(request, Generate) else None
        self._ids = bool(args.ids)
        self._quiet = bool(args.quiet)
        self._progress = ProgressLine(sys.stderr, enabled=not args.quiet)
        self.model: ModelInfo | None = None

    def follow(self, events: Iterator[Event]) -> Result:
        """Show all events and return the result. Raises the error that a `Failed` describes."""
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
            print(_fitted(one_line(text), sys.stderr), file=sys.stderr)

    def _show(self, event: Event) -> None:
        match event:
            case Failed():
                raise error_of(event)
            case Loaded():
                self.model = event.model
                self._progress.clear()  # tokens come next
                if self._generate and event.model.sampling:
                    used = "" if self._generate.model_sampling else "; --model-sampling uses them"
                    self.remark(f"the model's own sampling settings are {event.model.sampling}{used}")
                for note in event.model.notes:
                    self.remark(note)
                if event.model.step_note:
                    self.remark(event.model.step_note)
            case EngineExited():
                raise EngineFailure(event.message)
            case Progress():
                self._progress.show(event)
            case TokenGenerated() if self._streams:
                self._print_token(event)
            case _:
                pass

    def _print_token(self, event: TokenGenerated) -> None:
        if self._ids or self.model is None or not self.model.has_tokenizer:
            sys.stdout.write(f"{',' if event.index else ''}{event.token_id}")
        else:
            sys.stdout.write(plain(event.text))
        sys.stdout.flush()

    def _end(self, event: Result) -> None:
        if isinstance(event, GenerationFinished):
            if self._streams:
                print(flush=True)
            self.remark(generation_text(event))


def _fitted(text: str, stream: TextIO) -> str:
    """A sentence, wrapped if it goes to a narrower terminal."""
    return textwrap.fill(text, shutil.get_terminal_size().columns) if stream.isatty() else text


class ProgressLine:
    """One line on a terminal that is rewritten a few times per second; nothing elsewhere.

    Long work prints its expected duration once, on a line that stays, as soon as the first runs allow an estimate.
    """

    def __init__(self, stream: TextIO, *, enabled: bool) -> None:
        self._stream = stream
        self._enabled = enabled and stream.isatty()
        self._width = 0
        self._last_s = 0.0
        self._announced: set[str] = set()

    def show(self, event: Progress) -> None:
        """Replace the line."""
        if not self._enabled:
            return
        self._announce(event)
        now_s = time.monotonic()
        if now_s - self._last_s < _REDRAW_S:
            return
        self._last_s = now_s
        self._write(one_line(progress_text(event))[: shutil.get_terminal_size().columns - 1])

    def clear(self) -> None:
        """Erase the line."""
        if self._width:
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    def _announce(self, event: Progress) -> None:
        if event.stage in self._announced or event.stage == "load" or event.remaining_s is None:
            return
        self._announced.add(event.stage)
        whole_s = event.elapsed_ns / NS_PER_S + event.remaining_s
        if whole_s >= LONG_S:
            self.clear()
            self._width = 0
            self._stream.write(f"{event.stage} takes about {duration(whole_s)} ({plural(event.total, 'run')})\n")

    def _write(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


def progress_text(event: Progress) -> str:
    """Progress in one line: "benchmark 3 of 60, about 12.0 s left: 50 prompt tokens with the cache, 1 of 5".

    A load in bytes: "load 120 MB of 270 MB, about 1.2 s left: downloading SmolLM2-135M".
    """
    left = "" if event.remaining_s is None else f", about {duration(event.remaining_s)} left"
    detail = f": {event.detail}" if event.detail else ""
    if event.stage == "load":
        far = f" {size(event.done)} of {size(event.total)}" if event.total else ""
    else:
        far = f" {event.done} of {event.total}"
    return f"{event.stage}{far}{left}{detail}"


def error_of(event: Failed) -> EngineError:
    """A `Failed` event as the exception with its exit code."""
    kinds: dict[str, type[EngineError]] = {"input": InputError, "memory": OutOfMemory}
    return kinds.get(event.kind, EngineFailure)(event.message)
