"""The report's measurements: both evaluations, a sample and the latency sweep, through the engine's process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from calc.plain import plain
from engine.errors import EngineError, EngineFailure, InputError
from engine.generation_events import GenerationFinished, GenerationStarted
from engine.measure.kinds.benchmark import Benchmark, BenchmarkFinished
from engine.measure.kinds.evaluate import Evaluate, EvaluationFinished
from engine.process.client import EngineClient
from engine.process.events import EngineExited, Failed, Generate, Loaded
from engine.records import Cancelled, Event, ModelInfo, Request
from tui.live.predict import predicted_cache_bytes
from tui.report.measured_part import Measurements, Sample

Watcher = Callable[[Event], None]
"""Called with every event as it comes."""

Found = TypeVar("Found")

PROMPT, NEW_TOKENS = "The king", 48
SWEEP = Benchmark(new_tokens=20, repeats=3)
"""Fewer tokens and repeats than the benchmark command, because the user waits for the report."""


def _ignore(event: Event) -> None:
    """Ignore the event."""


def measure(
    client: EngineClient,
    *,
    weights: str | None = None,
    cases: str | None = None,
    watch: Watcher = _ignore,
    sweep: Benchmark = SWEEP,
) -> Measurements:
    """Run everything that the report shows for problem 2, with the given or the bundled weights and cases.

    Raises InputError, or EngineFailure if the engine failed, was stopped or died.
    """
    evaluate, kv_evaluate = (
        _last(client, Evaluate(weights=weights, cases=cases, cached=cached), EvaluationFinished, watch=watch).result
        for cached in (False, True)
    )
    events = _events(client, msgspec.structs.replace(sweep, model=weights), watch=watch)
    model = _only(events, Loaded).model
    return Measurements(
        evaluate=evaluate,
        kv_evaluate=kv_evaluate,
        benchmark=_only(events, BenchmarkFinished).result,
        sample=_run_sample(client, sample_request(model, weights), model, watch=watch),
        model=model,
    )


def sample_request(model: ModelInfo, weights: str | None) -> Generate:
    """A short continuation: of text if the model has a tokenizer, else of its first token ids."""
    room = min(NEW_TOKENS, model.max_positions // 2)
    if model.has_tokenizer:
        return Generate(model=weights, prompt=PROMPT, max_new_tokens=room)
    return Generate(model=weights, prompt_ids=tuple(range(1, min(4, model.vocab_size))), max_new_tokens=room)


def _events(client: EngineClient, request: Request, *, watch: Watcher) -> list[Event]:
    """All events of a request. Raises EngineError if it ends with an unexpected event."""
    events = []
    for event in client.stream(request):
        watch(event)
        if (error := _error_of(event)) is not None:
            raise error
        events.append(event)
    return events


def _error_of(event: Event) -> EngineError | None:
    if isinstance(event, Failed):
        return InputError(event.message) if event.kind == "input" else EngineFailure(event.message)
    if isinstance(event, EngineExited):
        return EngineFailure(event.message)
    if isinstance(event, Cancelled):
        return EngineFailure("The measurement was stopped before its end.")
    return None


def _last(client: EngineClient, request: Request, kind: type[Found], *, watch: Watcher) -> Found:
    return _only(_events(client, request, watch=watch), kind)


def _only(events: list[Event], kind: type[Found]) -> Found:
    found = [event for event in events if isinstance(event, kind)]
    if not found:
        raise EngineFailure(f"The engine ended a request without {kind.__name__}.")
    return found[-1]


def _run_sample(client: EngineClient, request: Generate, model: ModelInfo, *, watch: Watcher) -> Sample:
    events = _events(client, request, watch=watch)
    started, finished = _only(events, GenerationStarted), _only(events, GenerationFinished)
    capacity = finished.kv_capacity or len(finished.prompt_ids) + request.max_new_tokens
    return Sample(
        model=model.name,
        prompt=started.prompt_text or request.prompt or f"token ids {_ids(finished.prompt_ids)}",
        text=plain(finished.text) if finished.text is not None else f"token ids {_ids(finished.ids)}",
        n_prompt_tokens=len(finished.prompt_ids),
        start_ns=finished.start_ns,
        token_times_ns=finished.token_times_ns,
        kv_cache_bytes=finished.kv_cache_bytes,
        predicted_kv_cache_bytes=int(predicted_cache_bytes(model, capacity, finished.cache)),
    )


def _ids(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, ids))
