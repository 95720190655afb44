"""Requests in, events out: what the engine process does, without the process.

`Service.answer` serves the worker (`python -m engine serve`) and the command line alike, so both give the same
events. It keeps the model that was loaded last, so that the next request for it starts at once.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

import assets
from engine.errors import CasesError, EngineError, OptionError, Stopped, TokenizerError
from engine.measure.benchmark import run_benchmark
from engine.measure.evaluate import check_atol, default_atol, evaluate_cases, load_cases
from engine.measure.options import check_batch, check_benchmark, check_ranks, check_threads
from engine.measure.probe import Rates, prefill_chunk, probe
from engine.measure.timing import NS_PER_S
from engine.model.cache import cache_bytes
from engine.model.devices import check_devices, pick_device, synchronize
from engine.model.generate import GenerationOptions, Kept, generate
from engine.process.events import (
    Batch,
    Benchmark,
    Cancelled,
    CaseEvaluated,
    CaseResult,
    CompileMode,
    Device,
    DType,
    Evaluate,
    EvaluationFinished,
    EvaluationResult,
    Event,
    Failed,
    Formats,
    FormatsFinished,
    Generate,
    GenerationStarted,
    Load,
    Loaded,
    ModelInfo,
    Progress,
    Ready,
    Request,
    Turn,
)
from engine.weights.checkpoint import BUNDLED, SMALL_MODEL_PARAMETERS, LoadedModel, load_checkpoint, return_freed_memory
from engine.weights.loading import Watch, followed

if TYPE_CHECKING:
    from engine.compiled.step import Compilation

ShouldStop = Callable[[], bool]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The model in memory, what it was loaded from, and how long that took."""

    key: tuple[object, ...]
    model: LoadedModel
    load_ns: int
    kept: Kept
    """The cache of the last run that asked for it to be kept."""
    rates: Rates | None = None
    compilation: "Compilation | None" = None
    told: str | None = None
    """The note on the compiled step that was sent last."""


class Service:
    """Answers requests, one at a time."""

    def __init__(self) -> None:
        self._held: _Held | None = None
        self._default_threads = torch.get_num_threads()

    def answer(self, request: Request, should_stop: ShouldStop = never) -> Iterator[Event]:
        """The events of one request, the terminal one last; raises nothing but KeyboardInterrupt and exits.

        Refusals and failures end in `Failed`, a request for which `should_stop` turns true in `Cancelled`
        (a generation that has its model in `GenerationFinished`). Models are loaded in a thread, for which no other
        request is taken up.
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
            self._release_if_lost()
            yield failure(error, request.request_id)

    def _answer(self, request: Request, should_stop: ShouldStop) -> Iterator[Event]:
        match request:
            case Load():
                yield from self._hold(request, should_stop)
            case Generate():
                yield from self._generate(request, should_stop)
            case Evaluate():
                yield from self._evaluate(request, should_stop)
            case Benchmark():
                yield from self._benchmark(request, should_stop)
            case Batch():
                yield from self._batch(request, should_stop)
            case Formats():
                yield from self._formats(request, should_stop)
            case _:
                raise OptionError("type", f"{type(request).__name__} is not a request for an answer")

    # --- models -------------------------------------------------------------------------------------------

    def _hold(
        self, request: Load | Generate | Benchmark | Batch, should_stop: ShouldStop
    ) -> Generator[Event, None, LoadedModel]:
        """The model that a request names: the one held if it is the same file, dtype and device, else loaded.

        Raises Stopped: then no model is held.
        """
        check_threads(request.threads)
        check_ranks(request.tp)
        check_devices(pick_device(request.device), request.tp)
        key = _key(request.model, request.dtype, request.device, request.tp)
        fresh = self._held is None or self._held.key != key
        if fresh:
            self._release()  # frees its memory before the next one is loaded
            self._held = yield from self._loaded(key, request, should_stop)
        held = self._held
        assert held is not None
        self._use_threads(request.threads, held.model)
        held = self._held = self._compiled(held, request.compile, should_stop)
        note = held.compilation.note if held.compilation is not None else ""
        if note != held.told or isinstance(request, Load):
            self._held = replace(held, told=note)
            yield Loaded(model=model_info(held.model, load_ns=held.load_ns, step_note=note, rates=held.rates))
        return held.model

    def _loaded(
        self, key: tuple[object, ...], request: Load | Generate | Benchmark | Batch, should_stop: ShouldStop
    ) -> Generator[Progress, None, _Held]:
        """The model, and how fast this machine is with it."""
        held = yield from followed(lambda watch: _load(key, request, watch), _shown(request.model), should_stop)
        self._use_threads(request.threads, held.model)
        return replace(held, rates=probe(held.model.decoder))

    def _compiled(self, held: _Held, mode: CompileMode, should_stop: ShouldStop) -> _Held:
        """Give the decoder its compiled step, or take it away.

        "on" waits for the build: raises EngineError where there is none to be had, and Stopped.
        """
        decoder = held.model.decoder
        if mode == "off" or decoder.communication_ns is not None:
            if held.compilation is not None:
                held.compilation.drop()
            decoder.decode_step = None
            return replace(held, compilation=None)
        if held.compilation is None:
            from engine.compiled.step import attach

            held = replace(held, compilation=attach(decoder))
        if mode == "on" and held.compilation is not None:
            held.compilation.wait_unless(should_stop)
            if decoder.decode_step is None:
                raise EngineError(held.compilation.note)
        return held

    def close(self) -> None:
        """End what the model runs on: other ranks, where it has any."""
        self._release()

    def _release(self) -> None:
        """Let go of the model; its other ranks end."""
        held, self._held = self._held, None
        close = getattr(held.model.decoder, "close", None) if held is not None else None
        if close is not None:
            close()

    def _release_if_lost(self) -> None:
        """A model of which a rank has ended is of no use: the next request loads it anew."""
        if self._held is not None and getattr(self._held.model.decoder, "lost", False):
            self._release()

    def _model_for_evaluation(
        self, request: Evaluate, should_stop: ShouldStop
    ) -> Generator[Progress, None, LoadedModel]:
        """The model held, if it is the one; otherwise loaded for this once, so that the one held stays."""
        key = _key(request.weights, request.dtype, request.device, 1)
        if self._held is not None and self._held.key == key:
            return self._held.model
        load = Load(model=request.weights, dtype=request.dtype, device=request.device)
        held = yield from followed(lambda watch: _load(key, load, watch), _shown(request.weights), should_stop)
        return held.model

    def _use_threads(self, threads: int | None, model: LoadedModel) -> None:
        """Give torch the threads asked for; else one for a small model, torch's own choice for others.

        Threads that wait for the few operations worth splitting cost more than they save: on two busy cores the
        assignment's model took 3 to 7 times as long with two threads.
        """
        small = model.decoder.n_parameters < SMALL_MODEL_PARAMETERS
        torch.set_num_threads(threads or (1 if small else self._default_threads))

    # --- the three kinds of work --------------------------------------------------------------------------

    def _generate(self, request: Generate, should_stop: ShouldStop) -> Iterator[Event]:
        options = generation_options(request)
        model = yield from self._hold(request, should_stop)
        events = generate(
            model.decoder,
            _prompt_ids(request, model),
            replace(options, prefill_chunk=self._prefill_chunk()),
            tokenizer=model.tokenizer,
            should_stop=should_stop,
            request_id=request.request_id,
            kept=self._held.kept if request.reuse and self._held is not None else None,
        )
        for event in events:
            if isinstance(event, GenerationStarted):
                yield msgspec.structs.replace(event, prompt_text=_prompt_text(request, model))
            else:
                yield event

    def _prefill_chunk(self) -> int | None:
        held = self._held
        return prefill_chunk(held.model.decoder, held.rates) if held is not None else None

    def _evaluate(self, request: Evaluate, should_stop: ShouldStop) -> Iterator[Event]:
        if request.atol is not None:
            check_atol(request.atol)
        path = cases_path(request.weights, request.cases)
        model = yield from self._model_for_evaluation(request, should_stop)
        self._use_threads(None, model)
        cases = load_cases(path, model.config)
        atol = default_atol(model.decoder.dtype) if request.atol is None else request.atol
        start_ns = time.perf_counter_ns()
        results: list[CaseResult] = []
        if should_stop():
            yield Cancelled()
            return
        for result in evaluate_cases(model.decoder, cases, atol=atol, cached=request.cached):
            results.append(result)
            yield CaseEvaluated(case=result)
            yield _evaluation_progress(len(results), len(cases), time.perf_counter_ns() - start_ns)
            if should_stop() and len(results) < len(cases):
                yield Cancelled()
                return
        yield EvaluationFinished(result=_evaluation_result(request, model, atol, results))

    def _benchmark(self, request: Benchmark, should_stop: ShouldStop) -> Iterator[Event]:
        check_benchmark(request)
        model = yield from self._hold(request, should_stop)
        chunk = self._prefill_chunk()
        yield from run_benchmark(model.decoder, request, should_stop, model_name=model.name, prefill_chunk=chunk)

    def _batch(self, request: Batch, should_stop: ShouldStop) -> Iterator[Event]:
        from engine.measure.batch import run_batch

        check_batch(request)
        model = yield from self._hold(request, should_stop)
        if self._held is not None and self._held.compilation is not None:
            self._held.compilation.wait_unless(should_stop)
        yield from run_batch(model.decoder, request, should_stop, model_name=model.name)

    def _formats(self, request: Formats, should_stop: ShouldStop) -> Iterator[Event]:
        """The model measured last stays, so that a prompt in that format starts at once."""
        from engine.measure.compare import run_formats

        pick_device(request.device)

        def load(dtype: DType) -> Generator[Progress, None, LoadedModel]:
            self._release()  # one model at a time
            asked = Load(model=request.model, dtype=dtype, device=request.device)
            key = _key(request.model, dtype, request.device, 1)
            self._held = yield from followed(lambda watch: _load(key, asked, watch), _shown(request.model), should_stop)
            self._use_threads(request.threads, self._held.model)
            return self._held.model

        finished = False
        try:
            for event in run_formats(request, load, should_stop):
                if isinstance(event, FormatsFinished):
                    yield from self._still_held()
                    finished = True
                yield event
        finally:
            if not finished:  # nobody was told what is held
                self._release()

    def _still_held(self) -> Iterator[Event]:
        """Tell of the model that a comparison leaves behind, with this machine's rates; nothing if its load failed."""
        if self._held is not None:
            held = self._held = replace(self._held, rates=probe(self._held.model.decoder), told="")
            yield Loaded(model=model_info(held.model, load_ns=held.load_ns, rates=held.rates))


# --- models -----------------------------------------------------------------------------------------------


def model_info(
    model: LoadedModel, *, load_ns: int | None = None, step_note: str = "", rates: Rates | None = None
) -> ModelInfo:
    """The record of a loaded model that the app gets."""
    config, decoder = model.config, model.decoder
    return ModelInfo(
        name=model.name,
        path=str(model.path),
        n_layers=config.n_layers,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        n_parameters=decoder.n_parameters,
        weight_bytes=model.weight_bytes,
        dtype=model.dtype_name,
        kv_bytes_per_token=cache_bytes(config, 1, dtype=decoder.dtype),
        has_tokenizer=model.tokenizer is not None,
        gated_mlp=config.gated_mlp,
        tied=config.tied,
        norm=config.norm,
        qkv_bias=config.qkv_bias,
        o_bias=config.o_bias,
        mlp_bias=config.mlp_bias,
        head_bias=config.head_bias,
        qk_norm=config.qk_norm,
        learned_positions=config.positions == "learned",
        sliding_window=config.sliding_window,
        load_ns=load_ns,
        tp=getattr(getattr(decoder, "group", None), "size", 1),
        rank_weight_bytes=getattr(decoder, "rank_weight_bytes", None),
        has_chat=model.chat is not None and model.tokenizer is not None,
        step_note=step_note,
        read_bytes_per_s=rates.read_bytes_per_s if rates is not None else None,
        matmul_flops_per_s=rates.matmul_flops_per_s if rates is not None else None,
        cache_dtype=str(decoder.dtype).removeprefix("torch."),
        device=decoder.device.type,
    )


def _load(key: tuple[object, ...], request: Load | Generate | Benchmark | Batch, watch: Watch) -> _Held:
    start_ns = time.perf_counter_ns()
    path, dtype = _path(request.model), request.dtype
    if request.tp > 1:
        from engine.parallel.launch import load_parallel  # torch.distributed

        loaded = load_parallel(
            path, dtype=dtype, device=request.device, tp=request.tp, threads=request.threads, watch=watch
        )
    else:
        loaded = load_checkpoint(path, dtype=dtype, device=pick_device(request.device), watch=watch)
    synchronize(loaded.decoder.device)
    return _Held(key=key, model=loaded, load_ns=time.perf_counter_ns() - start_ns, kept=Kept())


def _path(model: str | None) -> Path | None:
    """The path a request names, None for the bundled model."""
    return None if model is None or model == BUNDLED else Path(model)


def _shown(model: str | None) -> str:
    """A model's name for a line of progress: the last part of its path."""
    return BUNDLED if model is None else Path(model).name


def _key(model: str | None, dtype: DType, device: Device, tp: int) -> tuple[object, ...]:
    """What makes two requests mean the same model: the same path, unchanged since, dtype, device and ranks."""
    path, how = _path(model), (dtype, pick_device(device).type, tp)
    if path is None:
        return (BUNDLED, *how)
    try:
        status = path.stat()
    except OSError:
        return (str(path), *how)
    return (str(path.resolve()), status.st_mtime_ns, status.st_size, *how)


# --- generate ---------------------------------------------------------------------------------------------


def generation_options(request: Generate) -> GenerationOptions:
    """The checked options of a request. Raises `OptionError`."""
    if sum(given is not None for given in (request.prompt, request.prompt_ids, request.turns)) != 1:
        raise OptionError("prompt", "give the prompt as text, as token ids or as turns of a chat, one of the three")
    return GenerationOptions(
        max_new_tokens=request.max_new_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
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
        return tuple(model.tokenizer.encode(_chat_text(request.turns, model), add_special=False))
    assert request.prompt is not None
    return tuple(model.tokenizer.encode(request.prompt))


def _chat_text(turns: Sequence[Turn], model: LoadedModel) -> str:
    """The turns in the model's template, up to where its answer begins. Raises TokenizerError, PromptError."""
    if model.chat is None:
        raise TokenizerError(f"the model {model.name} has no chat template; give a plain prompt")
    return model.chat.render([{"role": turn.role, "content": turn.content} for turn in turns])


def _prompt_text(request: Generate, model: LoadedModel) -> str | None:
    if request.prompt_ids is None or model.tokenizer is None:
        return request.prompt
    return model.tokenizer.decode(request.prompt_ids)


# --- evaluate ---------------------------------------------------------------------------------------------


def cases_path(weights: str | None, cases: str | None) -> Path:
    """The file of cases: the one given, or the one shipped for the bundled weights. Raises CasesError."""
    if cases is not None:
        return Path(cases)
    path = _path(weights)
    if path is not None and path.exists():  # weights that are not there are said to be so when they are loaded
        raise CasesError(f"there are no cases for {weights}; name a file of them (--cases)")
    return assets.path("cases.json")


def _evaluation_result(
    request: Evaluate, model: LoadedModel, atol: float, results: list[CaseResult]
) -> EvaluationResult:
    return EvaluationResult(
        command="kv-evaluate" if request.cached else "evaluate",
        weights=str(model.path),
        dtype=model.dtype_name,
        atol=atol,
        passed=bool(results) and all(case.passed for case in results),
        cases=tuple(results),
    )


def _evaluation_progress(done: int, total: int, elapsed_ns: int) -> Progress:
    return Progress(
        stage="evaluate",
        done=done,
        total=total,
        elapsed_ns=elapsed_ns,
        remaining_s=elapsed_ns / done * (total - done) / NS_PER_S,
        detail=f"case {done} of {total}",
    )


# --- failures ---------------------------------------------------------------------------------------------


def failure(error: Exception, request_id: int = 0) -> Failed:
    """What the user is told about an exception. An unexpected one goes to stderr with its traceback."""
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
