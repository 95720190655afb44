"""The protocol between the app and the engine process: one typed JSON object per line, without torch.

Requests go to the engine's stdin, events come from its stdout. Each line is one record of this module
with a ``"type"`` field that names its class. Timestamps are raw ``time.perf_counter_ns`` values of the
engine process: only differences are meaningful, and rates are computed from them in `engine.measure.timing` alone.

The records are ``msgspec.Struct``: frozen, checked when a line is decoded, encoded without any code here.
`engine.measure.kinds` declares the records of measurements, `engine.generation_events` those of a run, and
`engine.records` what all have in common.
Every request ends in exactly one terminal event: a `LastEvent`, or `Loaded` for a `Load`.
"""

from functools import reduce
from operator import or_
from typing import Literal, TypeVar

import msgspec

from engine.errors import EngineFailure, ErrorKind
from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.measure.own import MeasureOwnTimes, OwnTimesMeasured
from engine.measure.registry import MEASUREMENTS
from engine.records import CacheKind, Cancelled, Event, LastEvent, Load, ModelInfo, OnModel, Progress, Record, Request
from engine.speculation import Speculate

_T = TypeVar("_T")


class ProtocolError(EngineFailure):
    """A line that is not a record of this protocol. `message` says what is wrong with it."""


Role = Literal["system", "user", "assistant"]


class Turn(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One turn of a chat."""

    role: Role
    content: str


# --- requests: app -> engine ------------------------------------------------------------------------------


class Generate(OnModel, frozen=True, kw_only=True):
    """Continue a prompt: text, ids, or the turns of a chat (exactly one of the three).

    Turns are formatted with the model's own template. `reuse`: the prefix that the prompt shares with the last run,
    such as the earlier turns of a chat, is taken from the cache.

    A request is complete by itself, so a `model` of None is the bundled model even after another one was loaded. The
    model is loaded (and `Loaded` sent) only if it is not the one in memory. Temperature 0 is greedy.
    """

    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    turns: tuple[Turn, ...] | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    model_sampling: bool = False
    """A temperature of 0 and options of None are replaced by the model's generation_config.json."""
    stop: tuple[str, ...] = ()
    """Texts that end the run; neither they nor what follows is part of the text."""
    thinking: bool | None = None
    """The template variable enable_thinking; None leaves it to the template."""
    seed: int | None = None
    use_cache: bool = True
    cache: CacheKind = "full"
    reuse: bool = False
    speculate: Speculate | None = None
    """Speculative decoding: one pass verifies several drafted tokens. It never changes the tokens, only the speed."""


class Cancel(Request, frozen=True, kw_only=True):
    """Stop the request `target_id`, running or queued; it then ends early. There is no separate answer."""

    target_id: int


class Shutdown(Request, frozen=True, kw_only=True):
    """Stop the running request and exit with code 0. There is no answer."""


# --- events: engine -> app --------------------------------------------------------------------------------


class Ready(Event, frozen=True, kw_only=True):
    """First line of the process, sent when torch is imported. `request_id` is 0."""

    pid: int
    torch_version: str
    device: str
    threads: int


class Loaded(Event, frozen=True, kw_only=True):
    """A model is in memory. Ends a `Load`; precedes the first event of a `Generate` that had to load."""

    model: ModelInfo


class Failed(LastEvent, frozen=True, kw_only=True):
    """The request ended in an error, described in one sentence. The engine keeps running.

    `kind`: "input" = the request or a file it names is wrong; "memory" = it did not fit; "engine" = a defect.
    """

    kind: ErrorKind
    message: str


class EngineExited(LastEvent, frozen=True, kw_only=True):
    """The process is gone; made by the client, one for each unanswered request (id 0 if there was none).

    `returncode` is negative for a signal and None if the process could not be started. `message` is a
    sentence; `stderr_tail` holds the last lines the process wrote, for a log or a details view.
    """

    returncode: int | None
    message: str
    stderr_tail: str = ""


REQUESTS = (Load, Generate, MeasureOwnTimes, *dict.fromkeys(m.request for m in MEASUREMENTS.values()), Cancel, Shutdown)
"""All types of requests."""
EVENTS = (
    Ready,
    Progress,
    Loaded,
    GenerationStarted,
    TokenGenerated,
    GenerationFinished,
    OwnTimesMeasured,
    *dict.fromkeys(event for m in MEASUREMENTS.values() for event in (m.row, m.finished)),
    Failed,
    Cancelled,
    EngineExited,
)
"""All types of events."""

_ENCODER = msgspec.json.Encoder()
_EVENT_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(reduce(or_, EVENTS))
_REQUEST_DECODER: msgspec.json.Decoder[Request] = msgspec.json.Decoder(reduce(or_, REQUESTS))
_QUOTED_CHARACTERS = 80


def ends(request: Request, event: Event) -> bool:
    """Whether `event` is the last one of `request` (their ids are not compared)."""
    return isinstance(event, LastEvent) or (isinstance(request, Load) and isinstance(event, Loaded))


def encode(record: Record) -> bytes:
    """One line of the protocol, newline included; `ProtocolError` for text that is not valid Unicode."""
    try:
        return _ENCODER.encode(record) + b"\n"
    except UnicodeEncodeError as error:
        raise ProtocolError(f"{type(record).__name__} holds text that cannot be sent: {error}") from None


def decode_event(line: bytes | str) -> Event:
    """The event in a line of the engine's stdout; raises `ProtocolError` if there is none."""
    return _decode(_EVENT_DECODER, line, "an engine event")


def decode_request(line: bytes | str) -> Request:
    """The request in a line of the engine's stdin; raises `ProtocolError` if there is none."""
    return _decode(_REQUEST_DECODER, line, "an engine request")


def _decode(decoder: "msgspec.json.Decoder[_T]", line: bytes | str, wanted: str) -> _T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not {wanted}: {error}; the line is {_quoted(line)}") from None
    except RecursionError:
        raise ProtocolError(f"not {wanted}: it is nested too deeply; the line is {_quoted(line)}") from None


def _quoted(line: bytes | str) -> str:
    text = line.decode("utf-8", "backslashreplace") if isinstance(line, bytes) else line
    text = text.rstrip("\n")
    return repr(text if len(text) <= _QUOTED_CHARACTERS else text[:_QUOTED_CHARACTERS] + "...")
