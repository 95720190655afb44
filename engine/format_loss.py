"""What a weight format costs: the logits of a text, token by token, against those of float32 (or any other).

The text is given to both models as it stands (teacher forcing), so that one early difference does not make all
that follows incomparable.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import PromptError
from engine.generate import prompt_tensor
from engine.model import Decoder
from engine.tokenizer import Tokenizer

TEXT = """A reservoir behaves like a bank account for water. When the rains come, more flows in than is taken out, and \
the level rises; in a dry summer the town draws on what was saved. The engineer who decides how much to release each \
morning has to guess the weather of the coming weeks. If she keeps the lake too full, a sudden storm may spill over \
the dam; if she lets it fall too low, the turbines stop and the fields below go without. Her tables list every flood \
of the last hundred years, but no table says what will happen tomorrow. So she writes two numbers on the board, the \
level she hopes for and the level she fears, and opens the gates halfway between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatLoss:
    """Two models on the same n_tokens predictions. Errors are in units of logits; agreement: the same likeliest
    token. Perplexity: e to the mean of -log p of the token that follows."""

    n_tokens: int
    max_error: float
    mean_error: float
    agreement: float
    perplexity: float
    reference_perplexity: float

    def sentence(self) -> str:
        """For people: "123 of 127 likeliest tokens the same, ..."."""
        same = round(self.agreement * self.n_tokens)
        return (
            f"{same} of {self.n_tokens} likeliest tokens the same, logits off by {self.mean_error:.3f} on average and "
            f"{self.max_error:.2f} at most, perplexity {self.perplexity:.2f} against {self.reference_perplexity:.2f}"
        )


def loss_ids(tokenizer: Tokenizer, *, limit: int = 128) -> tuple[int, ...]:
    """The bundled text as the model's tokens, at most ``limit``."""
    return tuple(tokenizer.encode(TEXT)[:limit])


def format_loss(
    reference: Decoder,
    other: Decoder,
    ids: Sequence[int],
    *,
    should_stop: Callable[[], bool] = lambda: False,
) -> FormatLoss | None:
    """Run both over ``ids`` (at least two), one decode step a token; None when told to stop.

    Both must share a vocabulary. Raises PromptError.
    """
    tokens = prompt_tensor(reference, ids)
    if tokens.size(1) < 2:
        raise PromptError("a format is measured on at least two tokens")
    caches = [decoder.new_cache(tokens.size(1)) for decoder in (reference, other)]
    sums, highest = torch.zeros(4, dtype=torch.float64), 0.0
    for i in range(tokens.size(1) - 1):
        if should_stop():
            return None
        expected, got = (
            decoder.forward(tokens[:, i : i + 1], cache)[0, 0].float()
            for decoder, cache in zip((reference, other), caches, strict=True)
        )
        error = (got - expected).abs()
        highest = max(highest, error.max().item())
        same = float(got.argmax() == expected.argmax())
        following = int(tokens[0, i + 1])
        sums += torch.tensor(
            [error.mean().item(), same, _surprise(got, following), _surprise(expected, following)], dtype=torch.float64
        )
    n = tokens.size(1) - 1
    mean, agreement, own, theirs = (sums / n).tolist()
    return FormatLoss(
        n_tokens=n,
        max_error=highest,
        mean_error=mean,
        agreement=agreement,
        perplexity=math.exp(own),
        reference_perplexity=math.exp(theirs),
    )


def _surprise(logits: Tensor, token: int) -> float:
    """-log p(token)."""
    return float(logits.logsumexp(-1) - logits[token])
