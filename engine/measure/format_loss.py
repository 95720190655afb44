"""The error of a weight format: the logits of a text, token by token, compared with those of float32 (or any other).

Both models read the same text (teacher forcing), so that one early difference does not make everything after it
incomparable.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import PromptError
from engine.model.decoder import Decoder
from engine.model.devices import synchronize
from engine.model.generate import prompt_tensor
from engine.records import CacheKind
from engine.weights.tokenizer import Tokenizer

TEXT = """A reservoir behaves like a bank account for water. When the rains come, more flows in than is taken out, and \
the level rises; in a dry summer the town draws on what was saved. The engineer who decides how much to release each \
morning has to guess the weather of the coming weeks. If she keeps the lake too full, a sudden storm may spill over \
the dam; if she lets it fall too low, the turbines stop and the fields below go without. Her tables list every flood \
of the last hundred years, but no table says what will happen tomorrow. So she writes two numbers on the board, the \
level she hopes for and the level she fears, and opens the gates halfway between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLoss:
    """Two models on the same n_tokens predictions. Errors are in units of logits; agreement means the same most likely
    token. Perplexity: e to the mean of -log p of the next token."""

    n_tokens: int
    max_error: float
    mean_error: float
    agreement: float
    perplexity: float
    reference_perplexity: float

    def sentence(self) -> str:
        """For people: "123 of 127 most likely tokens the same, ..."."""
        same = round(self.agreement * self.n_tokens)
        return (
            f"{same} of {self.n_tokens} most likely tokens the same, logits off by {self.mean_error:.3f} on average "
            f"and {self.max_error:.2f} at most, perplexity {self.perplexity:.2f} against "
            f"{self.reference_perplexity:.2f}"
        )


def loss_ids(tokenizer: Tokenizer, *, limit: int = 128) -> tuple[int, ...]:
    """The bundled text as the model's tokens, at most ``limit``."""
    return tuple(tokenizer.encode(TEXT)[:limit])


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A text read token by token: ``logits`` (n - 1, V) in float32 after each token but the last, and its times."""

    logits: Tensor
    times_s: tuple[float, ...]


def read_along(
    decoder: Decoder,
    ids: Sequence[int],
    *,
    cache: CacheKind = "full",
    should_stop: Callable[[], bool] = lambda: False,
) -> Reading | None:
    """One decode step for each of ``ids`` (at least two) but the last; None when told to stop. Raises PromptError."""
    tokens = prompt_tensor(decoder, ids)
    if tokens.size(1) < 2:
        raise PromptError("measuring a format needs at least two tokens")
    kept = decoder.new_cache(tokens.size(1), kind=cache)
    logits, times_s = [], []
    for i in range(tokens.size(1) - 1):
        if should_stop():
            return None
        start = time.perf_counter()
        row = decoder.forward(tokens[:, i : i + 1], kept)[0, 0]
        synchronize(decoder.device)
        times_s.append(time.perf_counter() - start)
        logits.append(row.float())
    return Reading(logits=torch.stack(logits), times_s=tuple(times_s))


def format_loss(expected: Tensor, got: Tensor, ids: Sequence[int]) -> FormatLoss:
    """Logits (n - 1, V) of two models that read the same ``ids`` (n)."""
    error = (got - expected).abs()
    following = torch.tensor(ids[1:], device=got.device)[:, None]
    return FormatLoss(
        n_tokens=len(got),
        max_error=error.max().item(),
        mean_error=error.mean(dtype=torch.float64).item(),
        agreement=(got.argmax(-1) == expected.argmax(-1)).double().mean().item(),
        perplexity=math.exp(_surprise(got, following)),
        reference_perplexity=math.exp(_surprise(expected, following)),
    )


def _surprise(logits: Tensor, following: Tensor) -> float:
    """The mean of -log p of the tokens that follow."""
    wide = logits.double()
    return (wide.logsumexp(-1) - wide.gather(-1, following)[:, 0]).mean().item()
