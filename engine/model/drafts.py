"""Drafters for speculative decoding: prompt lookup, or a small model. Drafts change the speed, never the tokens."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from engine.errors import OptionError
from engine.model.cache import common_prefix
from engine.model.decoder import Decoder
from engine.model.sampling import Sampler
from engine.speculation import LEAST_NGRAM

ShouldStop = Callable[[], bool]


class Drafter(Protocol):
    """Proposes tokens for one run."""

    def begin(self, prompt: Sequence[int], capacity: int, sampler: Sampler, should_stop: ShouldStop) -> None:
        """Prepare for a run of at most ``capacity`` tokens that ``sampler`` chooses. Raises Stopped."""
        ...

    def draft(self, made: Sequence[int], most: int) -> list[int]:
        """Up to ``most`` draft tokens to follow the prompt and the tokens generated so far (``made``)."""
        ...


class PromptLookup:
    """Finds the last earlier occurrence of the text's final n-gram (longest n first) and drafts what followed it.

    Saxena 2023, "Prompt lookup decoding". A continuation that reaches the end of the text goes on with its own draft,
    so that a repeating text can be drafted to any length.
    """

    def __init__(self, ngram: int) -> None:
        self._lengths = range(ngram, LEAST_NGRAM - 1, -1)
        self._text: list[int] = []
        self._n_prompt = 0
        self._after: dict[tuple[int, ...], int] = {}  # n-gram to the position of the token that follows it

    def begin(self, prompt: Sequence[int], capacity: int, sampler: Sampler, should_stop: ShouldStop) -> None:
        self._text, self._n_prompt, self._after = [], len(prompt), {}
        self._read(prompt)

    def draft(self, made: Sequence[int], most: int) -> list[int]:
        self._read(made[len(self._text) - self._n_prompt :])
        known = (self._after.get(tuple(self._text[-n:])) for n in self._lengths if n <= len(self._text))
        at = next((place for place in known if place is not None), None)
        if at is None:
            return []
        drafted = self._text[at : at + most]
        while len(drafted) < most:
            drafted.append(drafted[at + len(drafted) - len(self._text)])
        return drafted

    def _read(self, tokens: Sequence[int]) -> None:
        """Index the new tokens: the n-grams at the old end of the text now have a successor."""
        for token in tokens:
            end = len(self._text)
            for n in self._lengths:
                if n <= end:
                    self._after[tuple(self._text[end - n :])] = end
            self._text.append(token)


class DraftModel:
    """Drafts with a small model of the same vocabulary.

    Sampling uses the same random numbers that the main model will use at the same positions, so that both often agree
    (coupling without communication: Daliri, Musco and Suresh 2024, arXiv:2408.07978).
    """

    def __init__(self, decoder: Decoder, *, vocab_size: int, chunk: int | None = None) -> None:
        """``vocab_size``: of the main model. Raises OptionError."""
        if decoder.config.recurrent is not None:
            raise OptionError(
                "speculate", "the draft model has recurrent states, which cannot be rolled back: use another one"
            )
        self._decoder = decoder
        self._n_tokens = min(vocab_size, decoder.config.vocab_size)
        self._chunk = chunk
        self._text: list[int] = []  # the text of the last draft
        self._held: list[int] = []  # the ids in its cache

    def begin(self, prompt: Sequence[int], capacity: int, sampler: Sampler, should_stop: ShouldStop) -> None:
        self._prompt, self._text, self._held, self._theirs = list(prompt), [], [], sampler
        self._sampler = sampler.twin(self._decoder.device)
        self._cache = self._decoder.new_cache(min(capacity, self._decoder.config.max_positions))
        if len(prompt) <= self._cache.capacity:
            self._cache.seen.whole = len(prompt)
            self._run(prompt, should_stop)

    def draft(self, made: Sequence[int], most: int) -> list[int]:
        self._go_on_from([*self._prompt, *made])
        self._sampler.draw_as(self._theirs)
        drafted: list[int] = []
        for _ in range(min(most, self._cache.capacity - len(self._text) + 1)):
            logits = self._run([*self._text, *drafted][self._cache.length :])[:, : self._n_tokens]
            if self._sampler.looks_back:
                logits = self._sampler.penalised(logits, self._prompt, [*made, *drafted])
            drafted.append(int(self._sampler(logits)))
        return drafted

    def _go_on_from(self, text: list[int]) -> None:
        """Truncate the cache to the prefix shared with this text, less the last token, whose logits are needed."""
        known = len(self._text)
        kept = known + common_prefix(self._held[known:], text[known:])
        self._text, kept = text, self._cache.truncate(min(kept, len(text) - 1))
        del self._held[kept:]

    def _run(self, tokens: Sequence[int], should_stop: ShouldStop | None = None) -> torch.Tensor:
        """Run some more tokens; the logits (1, V) after them."""
        ids, cache = torch.tensor([list(tokens)], device=self._decoder.device), self._cache
        self._held += tokens
        if cache.length and 1 < len(tokens) <= self._decoder.rows_left(cache):
            logits = self._decoder.forward_rows(ids, cache)
            cache.advance(len(tokens))
            return logits[:, -1]
        for part in torch.split(ids, self._chunk or len(tokens), dim=1):
            logits = self._decoder.forward(part, cache, last_only=True, should_stop=should_stop)
        return logits[:, -1]
