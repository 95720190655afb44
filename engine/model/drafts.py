"""Who drafts tokens: the text itself, or a small model. What is drafted changes no token, only how fast they come."""

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
    """What drafts for one run."""

    def begin(self, prompt: Sequence[int], capacity: int, sampler: Sampler, should_stop: ShouldStop) -> None:
        """Before the first token of a run of at most ``capacity`` tokens, which ``sampler`` chooses. Raises Stopped."""
        ...

    def draft(self, made: Sequence[int], most: int) -> list[int]:
        """At most ``most`` tokens that may follow the prompt and those ``made`` so far."""
        ...


class PromptLookup:
    """Drafts what followed the text's last n tokens where they stood in it last, the longest n there is first.

    Saxena 2023, "Prompt lookup decoding". A continuation that reaches the end of the text goes on with what it drafts,
    so that a text that repeats itself is drafted whole.
    """

    def __init__(self, ngram: int) -> None:
        self._lengths = range(ngram, LEAST_NGRAM - 1, -1)
        self._text: list[int] = []
        self._n_prompt = 0
        self._after: dict[tuple[int, ...], int] = {}  # an n-gram that something follows: where that stands

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
        """The text goes on: what it ended with until now has something that follows."""
        for token in tokens:
            end = len(self._text)
            for n in self._lengths:
                if n <= end:
                    self._after[tuple(self._text[end - n :])] = end
            self._text.append(token)


class DraftModel:
    """Drafts with a model of the same vocabulary.

    What is drawn is drawn with the random numbers that the model will use for the same places, so that both agree often
    (coupling without communication: Daliri, Musco and Suresh 2024, arXiv:2408.07978).
    """

    def __init__(self, decoder: Decoder, *, vocab_size: int, chunk: int | None = None) -> None:
        """``vocab_size`` of the model that is drafted for. Raises OptionError."""
        if decoder.config.recurrent is not None:
            raise OptionError(
                "speculate", "the draft model has recurrent states, which cannot be rolled back: use another one"
            )
        self._decoder = decoder
        self._n_tokens = min(vocab_size, decoder.config.vocab_size)
        self._chunk = chunk
        self._text: list[int] = []  # as it was drafted for last
        self._held: list[int] = []  # the ids that its cache was made from

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
        """Keep of the cache what is of this text, less its last token, whose logits are wanted."""
        known = len(self._text)
        kept = known + common_prefix(self._held[known:], text[known:])
        self._text, kept = text, self._cache.truncate(min(kept, len(text) - 1))
        del self._held[kept:]

    def _run(self, tokens: Sequence[int], should_stop: ShouldStop | None = None) -> torch.Tensor:
        """Logits (1, V) after some more tokens."""
        ids, cache = torch.tensor([list(tokens)], device=self._decoder.device), self._cache
        self._held += tokens
        if cache.length and 1 < len(tokens) <= self._decoder.rows_left(cache):
            logits = self._decoder.forward_rows(ids, cache)
            cache.advance(len(tokens))
            return logits[:, -1]
        for part in torch.split(ids, self._chunk or len(tokens), dim=1):
            logits = self._decoder.forward(part, cache, last_only=True, should_stop=should_stop)
        return logits[:, -1]
