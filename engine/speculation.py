"""What is said of speculative decoding: who drafts, how many tokens, and what came of it. Typed and without torch.

A step drafts tokens, and one pass of the model over all of them says how many it would have made itself.
"""

from typing import Any

import msgspec

from engine.errors import OptionError

LOOKUP = "lookup"
"""Drafts are what followed when the text's last tokens stood in it before."""
LOOKUP_TOKENS, MODEL_TOKENS, NGRAM = 7, 3, 3
"""With the token that was made last they are 8 and 4 rows, which go through a matrix together."""
LEAST_NGRAM = 2
MOST_TOKENS = 31
"""Beside the token that was made last they are the rows of one pass, of which a compiled step takes 32."""
WORDS = "lookup[,K[,N]] | MODEL[,K]"


class Speculate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who drafts, and how much."""

    draft: str = LOOKUP
    """"lookup", or the path or org/name of a model with the same vocabulary."""
    tokens: int | None = None
    """Tokens drafted per step at most; None: 7 that are looked up, 3 of a model."""
    ngram: int = NGRAM
    """The longest run of tokens that is looked for in the text; of a lookup alone."""

    @property
    def looks_up(self) -> bool:
        """Whether drafts come from the text itself."""
        return self.draft == LOOKUP

    @property
    def most(self) -> int:
        """Tokens drafted per step at most."""
        return self.tokens or (LOOKUP_TOKENS if self.looks_up else MODEL_TOKENS)

    @property
    def text(self) -> str:
        """As it is typed: `WORDS`."""
        ngram = self.ngram if self.looks_up and self.ngram != NGRAM else None
        tokens = self.most if ngram is not None else self.tokens
        return ",".join(str(word) for word in (self.draft, tokens, ngram) if word is not None)

    def check(self) -> None:
        """Raises OptionError."""
        if self.tokens is not None and not 1 <= self.tokens <= MOST_TOKENS:
            raise OptionError("speculate", f"{self.tokens:,} drafted tokens per step; expected 1 to {MOST_TOKENS}")
        if self.ngram < LEAST_NGRAM:
            raise OptionError("speculate", f"{self.ngram:,} tokens to look up; it must be at least {LEAST_NGRAM}")


def parse_speculate(text: str) -> Speculate:
    """`WORDS` as a choice. Raises OptionError."""
    draft, *numbers = [text] if not text.strip() else text.rsplit(",", 2)
    while numbers and not _is_count(numbers[0]):
        draft, numbers = f"{draft},{numbers[0]}", numbers[1:]  # commas of a path
    if not draft.strip() or _is_count(draft):
        raise OptionError("speculate", f"{text!r} names no draft method: use {WORDS}")
    if len(numbers) > 1 and draft != LOOKUP:
        raise OptionError("speculate", f"{text!r} has two numbers, but a draft model takes one: use {WORDS}")
    words: dict[str, Any] = dict(zip(("tokens", "ngram"), map(int, numbers), strict=False))
    choice = Speculate(draft=draft, **words)
    choice.check()
    return choice


def _is_count(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit()


class Drafted(msgspec.Struct, frozen=True, kw_only=True):
    """What came of drafting in one run, step by step; the first token comes from the prompt and is no step."""

    draft: str
    tokens: int
    """Drafted per step at most."""
    by_step: tuple[int, ...]
    """Drafted tokens of each step that the model has looked at; 0 where nothing was drafted."""
    accepted: tuple[int, ...]
    """How many of them it would have made itself."""
    drafting_ns: int
    """What drafting took, all steps together."""
    reading_ns: int = 0
    """What it took to read the prompt for it, before the model does."""
    compiled: bool = True
    """The compiled step decided on drafts at once. Layers take their tokens one by one, and nothing is gained."""

    @property
    def n_drafted(self) -> int:
        """In all steps."""
        return sum(self.by_step)

    @property
    def n_accepted(self) -> int:
        """In all steps."""
        return sum(self.accepted)

    @property
    def acceptance(self) -> float | None:
        """The chance that a drafted token is accepted where all before it were; None where none was looked at.

        Of the tokens that were decided on: after one that is refused, the rest of a draft is not.
        """
        decided = sum(min(a + 1, d) for d, a in zip(self.by_step, self.accepted, strict=True))
        return self.n_accepted / decided if decided else None

    @property
    def acceptance_by_place(self) -> tuple[float, ...]:
        """The same for the first token of a draft, the second, and so on, as far as any was decided on."""
        places = []
        for place in range(max(self.by_step, default=0)):
            here = [a for d, a in zip(self.by_step, self.accepted, strict=True) if d > place and a >= place]
            if here:
                places.append(sum(a > place for a in here) / len(here))
        return tuple(places)

    @property
    def tokens_per_step(self) -> float | None:
        """Each step makes one token besides those that it accepts."""
        return 1 + self.n_accepted / len(self.by_step) if self.by_step else None
