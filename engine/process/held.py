"""The model in memory: at most one, so that the next request for it starts at once."""

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from engine.errors import EngineError, OptionError
from engine.measure.options import check_ranks, check_threads
from engine.measure.own import BUDGET_S, Needs, OwnTimes
from engine.measure.own_timer import OwnTimer, unmeasured
from engine.measure.rates import Rates, prefill_chunk, probe
from engine.model.cache_choice import cache_bytes
from engine.model.decoder import Decoder
from engine.model.devices import check_devices, pick_device, synchronize
from engine.model.drafts import DraftModel, PromptLookup, ShouldStop
from engine.model.generate import ReusableCache, Speculation
from engine.process.events import Loaded
from engine.records import CompileMode, Event, Load, ModelInfo, OnModel, Progress
from engine.speculation import Speculate
from engine.weights.checkpoint import BUNDLED, SMALL_MODEL_PARAMETERS, LoadedModel, load_checkpoint
from engine.weights.formats import read_bytes
from engine.weights.loading import Watch, followed

if TYPE_CHECKING:
    from engine.compiled.attach import Compilation


@dataclass(slots=True, kw_only=True)
class _Held:
    """A loaded model, its source and load time, and objects that belong to it."""

    key: tuple[object, ...]
    model: LoadedModel
    load_ns: int
    reusable: ReusableCache = field(default_factory=ReusableCache)
    """The cache that the next run of the same chat or prompt starts from."""
    rates: Rates | None = None
    own_times: dict[tuple[int, bool], tuple[Needs, OwnTimes]] = field(default_factory=dict)
    """Measured operator times and their range, by number of threads and whether the compiled step ran."""
    compilation: "Compilation | None" = None
    told: str | None = None
    """The last note sent on the compiled step."""

    def loaded(self) -> Loaded:
        """The event that describes it; from now on this is what the app knows."""
        self.told = self.compilation.note if self.compilation is not None else ""
        return Loaded(model=model_info(self.model, load_ns=self.load_ns, step_note=self.told, rates=self.rates))


class HeldModel:
    """Loads models, and keeps the last one in memory until another one is requested."""

    def __init__(self) -> None:
        self._held: _Held | None = None
        self._draft: _Held | None = None
        self._default_threads = torch.get_num_threads()

    @property
    def model(self) -> LoadedModel | None:
        """The model in memory, if there is one."""
        return None if self._held is None else self._held.model

    @property
    def reusable(self) -> ReusableCache | None:
        """The cache of an earlier run with this model, for the next run to start from."""
        return None if self._held is None else self._held.reusable

    @property
    def prefill_chunk(self) -> int | None:
        """Prompt tokens per pass (see `engine.measure.rates.prefill_chunk`); None for no limit."""
        return None if self._held is None else prefill_chunk(self._held.model.decoder, self._held.rates)

    def own_times(
        self, needs: Needs, should_stop: ShouldStop, *, budget_s: float = BUDGET_S
    ) -> tuple[OwnTimes | None, str]:
        """The measured times of the model's own operators (measured once), or None and the reason. Raises Stopped."""
        held = self._held
        assert held is not None
        if note := unmeasured(held.model.decoder):
            return None, note
        key = (torch.get_num_threads(), held.model.decoder.decode_step is not None)
        known = held.own_times.get(key)
        if known is None or not needs.within(known[0]):
            timer = self.timer_of(held.model.decoder, needs)
            assert timer is not None
            timer.budget_s = budget_s
            timer.rounds(should_stop)
            times = timer.times()
            assert times is not None
            held.own_times[key] = known = needs, times
        return known[1], ""

    def timer_of(self, decoder: Decoder, needs: Needs) -> OwnTimer | None:
        """The timer for operators of `decoder`, which is the held model or derived from it; None with several ranks."""
        if unmeasured(decoder):
            return None
        rate = self._held.rates.matmul_flops_per_s if self._held is not None and self._held.rates is not None else 0.0
        return OwnTimer(decoder=decoder, needs=needs, chunk=self.prefill_chunk, flops_per_s=rate)

    def hold(self, request: OnModel, should_stop: ShouldStop) -> Generator[Event, None, LoadedModel]:
        """The model that a request names: the held one if file, dtype and device are the same, else a newly loaded one.

        Raises EngineError and Stopped; a model that had to be loaded is then not held.
        """
        check_threads(request.threads)
        check_ranks(request.tp)
        check_devices(pick_device(request.device), request.tp)
        if self._held is None or self._held.key != _key(request):
            yield from self.replace(request, should_stop)
            self._measure_rates()
        held = self._held
        assert held is not None
        self.use_threads(request.threads, held.model)
        yield from self._set_compiled(held, request.compile, should_stop)
        note = held.compilation.note if held.compilation is not None else ""
        if note != held.told or isinstance(request, Load):
            yield held.loaded()
        return held.model

    def replace(self, request: OnModel, should_stop: ShouldStop) -> Generator[Progress, None, LoadedModel]:
        """Release the held model to free its memory, then load the one that a request names. Raises Stopped.

        It neither measures rates nor sends an event: see `announce`.
        """
        self.release()
        self._held = yield from _followed(request, should_stop)
        self.use_threads(request.threads, self._held.model)
        return self._held.model

    def speculation(
        self, request: OnModel, asked: Speculate, should_stop: ShouldStop
    ) -> Generator[Event, None, Speculation]:
        """The drafter for the held model: a draft model is loaded if necessary, and kept in memory too.

        Raises EngineError and Stopped.
        """
        asked.check()
        held = self._held
        assert held is not None
        if asked.looks_up:
            return Speculation(asked, PromptLookup(asked.ngram), asked.draft)
        wanted = Load(model=asked.draft, threads=request.threads, device=request.device, compile=request.compile)
        if self._draft is None or self._draft.key != _key(wanted):
            self._draft = None  # frees its memory before the next one is loaded
            self._draft = yield from _followed(wanted, should_stop)
            self.use_threads(request.threads, held.model)
        draft = self._draft
        check_vocabularies(held.model, draft.model)
        for _ in self._set_compiled(draft, request.compile, should_stop):
            pass  # only the main model is announced
        drafter = DraftModel(
            draft.model.decoder,
            vocab_size=held.model.config.vocab_size,
            chunk=prefill_chunk(draft.model.decoder, held.rates),
        )
        return Speculation(asked, drafter, draft.model.name)

    def borrow(self, request: OnModel, should_stop: ShouldStop) -> Generator[Progress, None, LoadedModel]:
        """The held model if it is the requested one; else a model loaded for a single use, and the held one stays."""
        if self._held is not None and self._held.key == _key(request):
            model = self._held.model
        else:
            model = (yield from _followed(request, should_stop)).model
        self.use_threads(request.threads, model)
        return model

    def announce(self) -> Iterator[Event]:
        """Announce a model that `replace` has loaded, with this machine's rates; nothing if there is none."""
        if self._held is not None:
            self._measure_rates()
            yield self._held.loaded()

    def wait_for_compiled(self, should_stop: ShouldStop) -> None:
        """Wait for a build of the compiled step that is under way. Raises Stopped."""
        if self._held is not None and self._held.compilation is not None:
            self._held.compilation.wait_unless(should_stop)

    def use_threads(self, threads: int | None, model: LoadedModel) -> None:
        """Set torch's threads as requested; by default 1 for a small model, else torch's own number.

        In a small model, idle threads cost more than they save in the few large operations: on two busy cores the
        assignment's model took 3 to 7 times as long with two threads.
        """
        small = model.decoder.n_parameters < SMALL_MODEL_PARAMETERS
        torch.set_num_threads(threads or (1 if small else self._default_threads))

    def release(self) -> None:
        """Release the model and end its other ranks."""
        held, self._held, self._draft = self._held, None, None
        close = getattr(held.model.decoder, "close", None) if held is not None else None
        if close is not None:
            close()

    def release_if_lost(self) -> None:
        """Release a model that has lost a rank, so that the next request reloads it."""
        if self._held is not None and getattr(self._held.model.decoder, "lost", False):
            self.release()

    def _measure_rates(self) -> None:
        if self._held is not None:
            self._held.rates = probe(self._held.model.decoder)

    @staticmethod
    def _set_compiled(held: _Held, mode: CompileMode, should_stop: ShouldStop) -> Iterator[Event]:
        """Attach the compiled step to the decoder, or remove it.

        "on" waits for the build; raises EngineError if no build is possible, and Stopped. "auto" also waits for packed
        weights, without EngineError. An event announces the wait.
        """
        decoder = held.model.decoder
        if mode == "off" or decoder.communication_ns is not None:
            if held.compilation is not None:
                held.compilation.drop()
            decoder.decode_step = held.compilation = None
            return
        if held.compilation is None:
            from engine.compiled.attach import attach

            held.compilation = attach(decoder)
        if mode == "on" or held.model.weight_format is not None:  # torch is thirty times slower on packed weights
            if held.compilation.under_way:
                yield held.loaded()
            held.compilation.wait_unless(should_stop)
        if mode == "on" and decoder.decode_step is None:
            raise EngineError(held.compilation.note)


def _followed(request: OnModel, should_stop: ShouldStop) -> Generator[Progress, None, _Held]:
    """Load a model and report progress. Raises EngineError and Stopped."""
    shown = BUNDLED if request.model is None else Path(request.model).name
    held = yield from followed(lambda watch: _load(request, watch), shown, should_stop)
    return held


def _load(request: OnModel, watch: Watch) -> _Held:
    key, start_ns = _key(request), time.perf_counter_ns()
    path, dtype = model_path(request.model), request.dtype
    if request.tp > 1:
        if request.n_heads is not None:
            raise OptionError("n_heads", "n-heads works in one process only; use tp 1")
        from engine.parallel.launch import load_parallel  # torch.distributed

        loaded = load_parallel(
            path, dtype=dtype, device=request.device, tp=request.tp, threads=request.threads, watch=watch
        )
    else:
        device = pick_device(request.device)
        loaded = load_checkpoint(path, dtype=dtype, device=device, watch=watch, n_heads=request.n_heads)
    synchronize(loaded.decoder.device)
    return _Held(key=key, model=loaded, load_ns=time.perf_counter_ns() - start_ns)


def model_path(model: str | None) -> Path | None:
    """The path that a request names; None for the bundled model."""
    return None if model is None or model == BUNDLED else Path(model)


def check_vocabularies(model: LoadedModel, draft: LoadedModel) -> None:
    """Raise OptionError unless both models have the same vocabulary (added tokens may differ)."""
    pair = f"the draft model {draft.name} and {model.name}"
    if (model.tokenizer is None) != (draft.tokenizer is None):
        raise OptionError("speculate", f"{pair}: only one has a tokenizer, so their tokens cannot be compared")
    if model.tokenizer is None or draft.tokenizer is None:
        same = model.config.vocab_size == draft.config.vocab_size
    else:
        same = model.tokenizer.vocabulary == draft.tokenizer.vocabulary
    if not same:
        raise OptionError("speculate", f"{pair} have different vocabularies: use a draft model of the same family")


def _key(request: OnModel) -> tuple[object, ...]:
    """The identity of a model: path, modification state of the file, dtype, device and ranks."""
    path, device = model_path(request.model), pick_device(request.device).type
    how = (request.dtype, device, request.tp, request.n_heads)
    if path is None:
        return (BUNDLED, *how)
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a character that is invalid in paths
        return (str(path), *how)
    return (str(path.resolve()), status.st_mtime_ns, status.st_size, *how)


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
        notes=model.notes,
        sampling=model.sampling.text,
        read_bytes_per_s=rates.read_bytes_per_s if rates is not None else None,
        matmul_flops_per_s=rates.matmul_flops_per_s if rates is not None else None,
        cache_dtype=str(decoder.dtype).removeprefix("torch."),
        device=decoder.device.type,
        step_weight_bytes=read_bytes(decoder) if model.is_mix else None,
    )
