"""Requests in, events out: the logic of the engine process, without the process.

`Service.answer` serves both the worker (`python -m engine serve`) and the command line, so both give the same
events. It keeps the last loaded model, so that the next request for it starts at once.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace

import msgspec
import torch

from engine.errors import EngineError, OptionError, Stopped, TokenizerError
from engine.generation_events import GenerationStarted
from engine.measure.own import MeasureOwnTimes, OwnTimesMeasured
from engine.measure.registry import measurement_of
from engine.model.devices import pick_device
from engine.model.drafts import ShouldStop
from engine.model.generate import GenerationOptions, generate
from engine.process.events import Failed, Generate, Ready
from engine.process.held import HeldModel
from engine.records import Cancelled, Event, Load, Request
from engine.weights.checkpoint import LoadedModel, return_freed_memory


def never() -> bool:
    """The `should_stop` of a request that nobody can cancel."""
    return False


def ready() -> Ready:
    """The event that says the engine can work."""
    return Ready(
        pid=os.getpid(),
        torch_version=str(torch.__version__),
        device=pick_device("auto").type,
        threads=torch.get_num_threads(),
    )


class Service:
    """Answers requests, one at a time."""

    def __init__(self) -> None:
        self.held = HeldModel()

    def answer(self, request: Request, should_stop: ShouldStop = never) -> Iterator[Event]:
        """The events of one request, the terminal one last; raises only KeyboardInterrupt and SystemExit.

        Errors end in `Failed`; a request for which `should_stop` becomes true ends in `Cancelled` (or, in a generation
        whose model is loaded, in `GenerationFinished`). Models are loaded in a thread; no other request runs meanwhile.
        """
        try:
            for event in self._answer(request, should_stop):
                if event.request_id == request.request_id:
                    yield event
                else:
                    yield msgspec.structs.replace(event, request_id=request.request_id)
        except Stopped:
            return_freed_memory()
            yield Cancelled(request_id=request.request_id)
        except Exception as error:
            self.held.release_if_lost()
            yield failure(error, request.request_id)

    def close(self) -> None:
        """End the other ranks of the model, if there are any."""
        self.held.release()

    def _answer(self, request: Request, should_stop: ShouldStop) -> Iterator[Event]:
        if isinstance(request, Load):
            yield from self.held.hold(request, should_stop)
        elif isinstance(request, Generate):
            yield from self._generate(request, should_stop)
        elif isinstance(request, MeasureOwnTimes):
            yield from self._measure_own_times(request, should_stop)
        elif (measurement := measurement_of(request)) is not None:
            measurement.check(request)
            yield from measurement.run(request, self.held, should_stop)
        else:
            raise OptionError("type", f"{type(request).__name__} is not a request for an answer")

    def _measure_own_times(self, request: MeasureOwnTimes, should_stop: ShouldStop) -> Iterator[Event]:
        yield from self.held.hold(request, should_stop)
        times, note = self.held.own_times(request.needs, should_stop, budget_s=request.budget_s)
        yield OwnTimesMeasured(times=times, note=note)

    def _generate(self, request: Generate, should_stop: ShouldStop) -> Iterator[Event]:
        options = generation_options(request)
        model = yield from self.held.hold(request, should_stop)
        speculation = None
        if request.speculate is not None:
            speculation = yield from self.held.speculation(request, request.speculate, should_stop)
        if request.model_sampling:
            options = model.sampling.fill(options)
        events = generate(
            model.decoder,
            _prompt_ids(request, model),
            replace(options, prefill_chunk=self.held.prefill_chunk),
            tokenizer=model.tokenizer,
            should_stop=should_stop,
            request_id=request.request_id,
            reused=self.held.reusable if request.reuse else None,
            speculation=speculation,
        )
        for event in events:
            if isinstance(event, GenerationStarted):
                yield msgspec.structs.replace(event, prompt_text=_prompt_text(request, model))
            else:
                yield event


def generation_options(request: Generate) -> GenerationOptions:
    """The checked options of a request. Raises `OptionError`."""
    if sum(given is not None for given in (request.prompt, request.prompt_ids, request.turns)) != 1:
        raise OptionError("prompt", "give the prompt in exactly one form: text, token ids or chat turns")
    return GenerationOptions(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        stop=request.stop,
        seed=request.seed,
        use_cache=request.use_cache,
        cache=request.cache,
    )


def _prompt_ids(request: Generate, model: LoadedModel) -> tuple[int, ...]:
    if request.prompt_ids is not None:
        return request.prompt_ids
    if model.tokenizer is None:
        raise TokenizerError(f"the model {model.name} has no tokenizer; give the prompt as token ids")
    if request.turns is not None:
        return tuple(model.tokenizer.encode(_chat_text(request, model), add_special=False))
    assert request.prompt is not None
    return tuple(model.tokenizer.encode(request.prompt))


def _chat_text(request: Generate, model: LoadedModel) -> str:
    """The turns in the model's template, up to the start of its answer. Raises TokenizerError, PromptError."""
    if model.chat is None:
        raise TokenizerError(f"the model {model.name} has no chat template; give a plain prompt")
    turns = [{"role": turn.role, "content": turn.content} for turn in request.turns or ()]
    return model.chat.render(turns, thinking=request.thinking)


def _prompt_text(request: Generate, model: LoadedModel) -> str | None:
    if request.prompt_ids is None or model.tokenizer is None:
        return request.prompt
    return model.tokenizer.decode(request.prompt_ids)


def failure(error: Exception, request_id: int = 0) -> Failed:
    """The event that reports an exception. Unexpected exceptions also go to stderr with a traceback."""
    if isinstance(error, EngineError):
        return Failed(request_id=request_id, kind=error.kind, message=error.message)
    if is_out_of_memory(error):
        message = "the engine ran out of memory; use a smaller model, dtype, prompt or number of new tokens"
        return Failed(request_id=request_id, kind="memory", message=message)
    traceback.print_exception(error, file=sys.stderr)
    first = (str(error).strip().splitlines() or ["no message"])[0]
    message = f"the engine failed unexpectedly ({type(error).__name__}: {first})"
    return Failed(request_id=request_id, kind="engine", message=message)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception is a failed allocation; torch's CPU allocator raises a bare RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
