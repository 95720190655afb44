"""Prefill and decode as an iterator of events with raw timestamps; rates are computed elsewhere.

The events are the protocol's own records (`engine.generation_events`), so that tests see exactly what the app gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import OptionError, PromptError, Stopped
from engine.generation_events import GenerationFinished, GenerationStarted, StopReason, TokenGenerated
from engine.model.cache import Cache, reuse_prefix
from engine.model.cache_choice import cache_bytes
from engine.model.decoder import Decoder, check_ids
from engine.model.devices import synchronize
from engine.model.drafts import Drafter
from engine.model.sampling import Sampler
from engine.model.stops import StopTexts
from engine.records import CacheKind
from engine.sampling_options import check_at_least_one, check_sampling, check_stop
from engine.speculation import Drafted, Speculate

if TYPE_CHECKING:
    from engine.weights.tokenizer import TextStream, Tokenizer

START_REACH = 3
"""The most tokens of the first draft; each later limit is twice the tokens of the last step."""
GenerationEvent = GenerationStarted | TokenGenerated | GenerationFinished
_MAX_ID = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How to generate. ``temperature`` 0 is greedy; None switches an option off. Raises OptionError.

    ``prefill_chunk``: prompt tokens per forward pass (None: all in one; without the cache there are no chunks).
    ``cache_capacity``: tokens to allocate (None: prompt and new tokens, at most the model's positions).
    ``cache``: how keys and values are stored (`engine.records.CacheKind`).
    ``stop``: texts that end the run; neither they nor what follows is part of its text.
    ``forced_ids``: use these tokens instead of the sampled ones, at the same cost. For timing.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    use_cache: bool = True
    stop_at_eos: bool = True
    prefill_chunk: int | None = None
    cache_capacity: int | None = None
    cache: CacheKind = "full"
    forced_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            seed=self.seed,
        )
        check_stop(self.stop)
        check_at_least_one(
            max_new_tokens=self.max_new_tokens, prefill_chunk=self.prefill_chunk, cache_capacity=self.cache_capacity
        )
        if self.forced_ids is not None and len(self.forced_ids) < self.max_new_tokens:
            raise OptionError(
                "forced_ids",
                f"forced_ids has {len(self.forced_ids)} tokens, but {self.max_new_tokens} are to be generated",
            )


@dataclass(frozen=True, slots=True)
class Speculation:
    """The drafter of a run, as requested."""

    asked: Speculate
    drafter: Drafter
    name: str
    """Name of the drafter."""


@dataclass(slots=True)
class ReusableCache:
    """A cache that outlives a run, and the ids whose keys and values it holds (its first `cache.length`)."""

    cache: Cache | None = None
    kind: CacheKind = "full"
    ids: tuple[int, ...] = ()


def generate(
    decoder: Decoder,
    prompt_ids: Sequence[int],
    options: GenerationOptions | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    should_stop: Callable[[], bool] | None = None,
    request_id: int = 0,
    reused: ReusableCache | None = None,
    speculation: Speculation | None = None,
) -> Iterator[GenerationEvent]:
    """Yield Started, then one event per token, then Finished; the end-of-text token counts as a token.

    Errors (PromptError, OptionError, OutOfMemory) are raised by this call, before the first event.
    ``should_stop`` is called before every forward pass, and before every layer of a pass over many tokens; the run
    then ends with the reason "cancelled".
    ``reused``: its cache supplies the prefix that it shares with the prompt, and holds this run afterwards.
    ``speculation`` drafts tokens that one pass then verifies. Every token, greedy or sampled, is the same as without
    speculation: it is chosen from the logits of its own row, which equal those of a pass over that row alone
    (`Decoder.forward_rows`), with the random numbers of its own position.
    """
    run = _Run(decoder, prompt_ids, options or GenerationOptions(), tokenizer, request_id, reused, speculation)
    return run.events(should_stop or _never)


def prompt_tensor(decoder: Decoder, prompt_ids: Sequence[int]) -> Tensor:
    """A prompt as ids (1, T) on the model's device. Raises PromptError."""
    wrong = next((i for i in prompt_ids if not -_MAX_ID <= i < _MAX_ID), None)
    if wrong is not None:
        raise PromptError(f"token id {wrong} is outside the vocabulary")
    ids = torch.tensor([list(prompt_ids)], dtype=torch.int64)
    check_ids(ids, decoder.config)
    n_tokens, room = ids.size(1), decoder.config.max_positions
    if n_tokens > room:
        raise PromptError(f"the prompt is {n_tokens:,} tokens long; the model has {room:,} positions")
    return ids.to(decoder.device)


def _never() -> bool:
    return False


def _check_speculation(speculation: Speculation | None, decoder: Decoder, options: GenerationOptions) -> None:
    if speculation is None:
        return
    speculation.asked.check()
    if not options.use_cache:
        raise OptionError("speculate", "speculation needs the KV cache: remove no-cache")
    if decoder.communication_ns is not None:
        raise OptionError("speculate", "speculation runs in one process only; use tp 1")


def _sampler(options: GenerationOptions, device: torch.device) -> Sampler:
    return Sampler(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        presence_penalty=options.presence_penalty,
        seed=options.seed,
        device=device,
    )


class _Run:
    """One generation: the prompt, the cache, and the tokens so far."""

    def __init__(
        self,
        decoder: Decoder,
        prompt_ids: Sequence[int],
        options: GenerationOptions,
        tokenizer: Tokenizer | None,
        request_id: int,
        reused: ReusableCache | None,
        speculation: Speculation | None,
    ) -> None:
        _check_speculation(speculation, decoder, options)
        self.decoder = decoder
        self.options = options
        self.request_id = request_id
        self.tokenizer = tokenizer
        self.text: TextStream | None = tokenizer.stream() if tokenizer else None
        if options.stop and tokenizer is None:
            raise OptionError("stop", "stop texts need a tokenizer, which this model does not have")
        self.stops = StopTexts(options.stop)
        self.shown: list[str] = []
        self.prompt = prompt_tensor(decoder, prompt_ids)
        self.n_prompt = self.prompt.size(1)
        if options.forced_ids is not None:
            check_ids(torch.tensor([options.forced_ids]), decoder.config)
        self.sampler = _sampler(options, decoder.device)
        self.reused = reused
        self.n_reused = 0
        self.cache = self._make_cache() if options.use_cache else None
        self.context = self.prompt  # all tokens so far; only read without the cache
        self.ids: list[int] = []
        self.times_ns: list[int] = []
        self.speculation = speculation
        self.steps: list[tuple[int, int]] = []  # tokens drafted and accepted
        self.reach = START_REACH
        self.drafting_ns = self.reading_ns = 0
        self.start_ns = 0
        self.communicated_ns = decoder.communication_ns

    def _make_cache(self) -> Cache:
        capacity = self.options.cache_capacity
        if capacity is None:
            capacity = min(self.n_prompt + self.options.max_new_tokens, self.decoder.config.max_positions)
        elif capacity < self.n_prompt:
            raise OptionError(
                "cache_capacity",
                f"cache_capacity is {capacity:,} tokens; the prompt alone has {self.n_prompt:,}",
            )
        if self.reused is not None:
            return self._reuse(capacity)
        return self.decoder.new_cache(capacity, kind=self.options.cache)

    def _reuse(self, capacity: int) -> Cache:
        """The cache of earlier runs, cut to the prefix shared with the prompt; a larger one if it is too small."""
        reused = self.reused
        assert reused is not None
        if reused.cache is not None and reused.kind == self.options.cache and reused.cache.capacity >= capacity:
            self.n_reused = reuse_prefix(reused.cache, reused.ids, self.prompt[0].tolist())
            return reused.cache
        reused.cache, reused.ids = None, ()  # frees its memory before the next cache is allocated
        room = min(4 * capacity, self.decoder.config.max_positions)
        reused.kind = self.options.cache
        reused.cache = self.decoder.new_cache(max(capacity, room), kind=reused.kind)
        return reused.cache

    def events(self, should_stop: Callable[[], bool]) -> Iterator[GenerationEvent]:
        """The loop: forward pass, sampling, event; until there is a reason to stop."""
        synchronize(self.decoder.device)
        self.start_ns = time.perf_counter_ns()
        try:
            yield from self._work(should_stop)
        finally:
            if self.reused is not None:
                self.reused.ids = (*self.prompt[0].tolist(), *self.ids)

    def _work(self, should_stop: Callable[[], bool]) -> Iterator[GenerationEvent]:
        yield self._started()
        logits = self._prefill(should_stop) if self._begin_drafting(should_stop) else None
        reason: StopReason = "cancelled"
        guesses: list[int] = []
        while logits is not None:
            stop = yield from self._tokens(logits, guesses)
            if stop is not None:
                reason = stop
                break
            guesses = self._guesses()
            logits = None if should_stop() else self._next(guesses, should_stop)
        yield self._finished(reason)

    def _tokens(self, logits: Tensor, guesses: list[int]) -> Generator[TokenGenerated, None, StopReason | None]:
        """One token per row of logits (1, 1 + guesses, V), up to the first that is no guess; gives the stop reason."""
        is_step = bool(self.ids)
        for row, guess in enumerate([*guesses, None]):
            if guesses:
                assert self.cache is not None
                self.cache.advance(1)  # the token that led to this row stays: after row 0 it is a right guess
            self._choose(logits[:, row : row + 1])
            stop = self._stop_reason()
            event = self._token_event(last=stop is not None, drafted=row > 0)
            stop = "stop" if self.stops.found else stop
            yield event
            if stop is not None or self.ids[-1] != guess:
                break
        if is_step:
            self.steps.append((row if stop is not None else len(guesses), row))
        if guesses:
            self.reach = 2 * (row + 1)
        return stop

    def _begin_drafting(self, should_stop: Callable[[], bool]) -> bool:
        """Let the drafter read the prompt; False if it was cancelled."""
        if self.speculation is None or self.cache is None:
            return True
        start_ns = time.perf_counter_ns()
        try:
            self.speculation.drafter.begin(self.prompt[0].tolist(), self.cache.capacity, self.sampler, should_stop)
        except Stopped:
            return False
        self.reading_ns = time.perf_counter_ns() - start_ns
        return True

    def _guesses(self) -> list[int]:
        """Draft tokens, limited by the draft length, the free cache space and the tokens still wanted."""
        if self.speculation is None or self.cache is None:
            return []
        room = min(self.decoder.rows_left(self.cache), self.options.max_new_tokens - len(self.ids)) - 1
        start_ns = time.perf_counter_ns()
        most = min(room, self.speculation.asked.most, self.reach)
        guesses = self.speculation.drafter.draft(self.ids, most) if most > 0 else []
        self.drafting_ns += time.perf_counter_ns() - start_ns
        return guesses

    def _prefill(self, should_stop: Callable[[], bool]) -> Tensor | None:
        """Logits (1, 1, V) after the prompt; None if cancelled."""
        chunk = self.options.prefill_chunk if self.cache is not None else None
        if self.cache is not None:
            self.cache.seen.whole = self.n_prompt
        logits: Tensor | None = None
        for ids in torch.split(self.prompt[:, self.n_reused :], chunk or self.n_prompt, dim=1):
            logits = None if should_stop() else self._pass(ids, should_stop)
            if logits is None:
                break
        return logits

    def _next(self, guesses: list[int], should_stop: Callable[[], bool]) -> Tensor | None:
        """Logits (1, 1 + guesses, V) after the last token and each guess; None if cancelled.

        Without the cache the whole context is run again.
        """
        ids = torch.tensor([[self.ids[-1], *guesses]], device=self.decoder.device)
        if self.cache is None:
            self.context = torch.cat((self.context, ids), 1)
            return self._pass(self.context, should_stop)
        if not guesses:
            return self.decoder.forward(ids, self.cache, last_only=True)
        try:
            return self.decoder.forward_rows(ids, self.cache, should_stop=should_stop)
        except Stopped:
            return None

    def _pass(self, ids: Tensor, should_stop: Callable[[], bool]) -> Tensor | None:
        """Logits (1, 1, V) after many tokens; None if cancelled between two layers."""
        try:
            return self.decoder.forward(ids, self.cache, last_only=True, should_stop=should_stop)
        except Stopped:
            if self.cache is not None and self.options.cache == "window":
                self.cache.reset()  # new tokens may have overwritten old ones
            return None

    def _choose(self, logits: Tensor) -> None:
        """Choose one more token from logits (1, 1, V)."""
        last = logits[:, -1]
        if self.sampler.looks_back:
            last = self.sampler.penalised(last, self.prompt[0].tolist(), self.ids)
        token = self.sampler(last)
        if self.options.forced_ids is not None:
            token = token.new_tensor([[self.options.forced_ids[len(self.ids)]]])
        self.ids.append(int(token))
        self.times_ns.append(time.perf_counter_ns())

    def _stop_reason(self) -> StopReason | None:
        """Why the newest token ends the run, or None."""
        if self.options.stop_at_eos and self.ids[-1] in self.decoder.config.eos_ids:
            return "eos"
        if len(self.ids) >= self.options.max_new_tokens:
            return "length"
        if self.n_prompt + len(self.ids) > self.decoder.config.max_positions:
            return "positions"
        if self.cache is not None and self.cache.length >= self.cache.capacity:
            return "cache"
        return None

    def _started(self) -> GenerationStarted:
        per_token = cache_bytes(self.decoder.cache_config, 1, dtype=self.decoder.dtype, kind=self.options.cache)
        return GenerationStarted(
            request_id=self.request_id,
            prompt_ids=tuple(self.prompt[0].tolist()),
            start_ns=self.start_ns,
            kv_cache_bytes=self.cache.nbytes if self.cache is not None else 0,
            kv_bytes_per_token=per_token,
            reused_tokens=self.n_reused,
            kv_capacity=self.cache.capacity if self.cache is not None else 0,
        )

    def _token_event(self, *, last: bool, drafted: bool) -> TokenGenerated:
        text = ""
        if self.text is not None:
            text = self.stops.push(self.text.push(self.ids[-1]) + (self.text.finish() if last else ""))
            text += self.stops.finish() if last else ""
            self.shown.append(text)
        return TokenGenerated(
            request_id=self.request_id,
            index=len(self.ids) - 1,
            token_id=self.ids[-1],
            text=text,
            time_ns=self.times_ns[-1],
            kv_tokens=self.cache.length if self.cache is not None else 0,
            kv_used_bytes=self.cache.used_bytes if self.cache is not None else 0,
            drafted=drafted,
        )

    def _finished(self, reason: StopReason) -> GenerationFinished:
        return GenerationFinished(
            request_id=self.request_id,
            reason=reason,
            prompt_ids=tuple(self.prompt[0].tolist()),
            ids=tuple(self.ids),
            text=self._text(),
            start_ns=self.start_ns,
            token_times_ns=tuple(self.times_ns),
            kv_cache_bytes=self.cache.nbytes if self.cache is not None else 0,
            communication_ns=self._communication_ns(),
            kv_capacity=self.cache.capacity if self.cache is not None else 0,
            cache=self.options.cache,
            drafted=self._drafted(),
        )

    def _drafted(self) -> Drafted | None:
        if self.speculation is None:
            return None
        return Drafted(
            draft=self.speculation.name,
            tokens=self.speculation.asked.most,
            by_step=tuple(drafted for drafted, _ in self.steps),
            accepted=tuple(accepted for _, accepted in self.steps),
            drafting_ns=self.drafting_ns,
            reading_ns=self.reading_ns,
            compiled=self.decoder.decode_step is not None,
        )

    def _text(self) -> str | None:
        """The whole text, cut where a stop text begins."""
        if self.tokenizer is None:
            return None
        return "".join(self.shown) if self.stops.found else self.tokenizer.decode(self.ids)

    def _communication_ns(self) -> int | None:
        now = self.decoder.communication_ns
        return None if now is None or self.communicated_ns is None else now - self.communicated_ns
