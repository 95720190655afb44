"""Logits to the next token: greedy, or temperature, top-k and top-p with a generator of its own."""

import math

import torch
from torch import Tensor

from engine.errors import EngineFailure, OptionError

_MAX_SEED = 2**63


class Sampler:
    """Chooses one token a call. Temperature 0 takes the likeliest (the first of equals) and ignores the rest.

    Otherwise logits are divided by the temperature, cut to the ``top_k`` largest, then to the smallest set
    of likeliest tokens whose probabilities reach ``top_p``, and one is drawn. The same seed draws the same
    tokens; None draws anew each time. Raises OptionError.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """logits (1, V) -> token (1, 1) int64. Raises EngineFailure when they are not numbers."""
        best, token = _likeliest(logits)
        if not math.isfinite(best):
            raise EngineFailure(
                f"the logits are not finite numbers; {_name(logits.dtype)} may be too narrow for the weights"
            )
        if self.temperature == 0:
            return token
        return torch.multinomial(self.probabilities(logits), 1, generator=self.generator)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution tokens are drawn from, (1, V), at least float32."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        # The largest is taken off first: a tiny temperature then cannot overflow.
        wide = (wide - wide.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < wide.size(-1):
            wide = _keep_top_k(wide, self.top_k)
        probabilities = wide.softmax(-1)
        return probabilities if self.top_p is None else _keep_top_p(probabilities, self.top_p)


def _likeliest(logits: Tensor) -> tuple[float, Tensor]:
    """(the largest of logits (1, V), not a number where one of them is none; its token (1, 1)).

    On the CPU by numpy, which finds it in a tenth of the time that torch's max takes, or less.
    """
    if logits.device.type != "cpu":
        best, token = logits.max(-1, keepdim=True)
        return best.item(), token
    wide = (logits if logits.dtype == torch.float64 else logits.float())[0].numpy()
    index = wide.argmax()  # the first that is not a number, if there is one
    return float(wide[index]), torch.tensor([[int(index)]])


def check_sampling(*, temperature: float, top_k: int | None, top_p: float | None, seed: int | None) -> None:
    """Raise OptionError, naming the field, for values that mean nothing."""
    if not 0 <= temperature < math.inf:
        raise OptionError("temperature", f"temperature is {temperature}; it must be 0 (greedy) or above")
    if top_k is not None and top_k < 1:
        raise OptionError("top_k", f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise OptionError("top_p", f"top_p is {top_p}; it must be above 0 and at most 1")
    if seed is not None and not 0 <= seed < _MAX_SEED:
        raise OptionError("seed", f"seed is {seed}; it must be from 0 to 2^63 - 1")


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Exactly k survive: of equals at the edge, those topk returns."""
    values, tokens = logits.topk(k, -1)
    return torch.full_like(logits, -math.inf).scatter_(-1, tokens, values)


def _keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """The likeliest tokens until their sum reaches p, never none; scaled to sum to 1 again."""
    ordered, tokens = probabilities.sort(stable=True, dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= p, 0)
    kept = torch.zeros_like(probabilities).scatter_(-1, tokens, ordered)
    return kept / kept.sum(-1, keepdim=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
