"""Logits to the next token: penalties, then greedy or a draw by temperature, top-k, top-p and min-p."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import EngineFailure
from engine.sampling_options import check_sampling


class Sampler:
    """Chooses one token per call. Temperature 0 takes the likeliest (the first of equals).

    Otherwise logits are divided by the temperature, cut to the ``top_k`` largest, then to the smallest set
    of likeliest tokens whose probabilities reach ``top_p``, then to those at least ``min_p`` times as likely as the
    likeliest, and one is drawn. Before that, the logit of every token in the text is divided by
    ``repetition_penalty`` (multiplied if negative), and that of every generated token is lowered by
    ``presence_penalty``. The same seed gives the same tokens; None is random each time. Raises OptionError.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            seed=seed,
        )
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty or 1.0
        self.presence_penalty = presence_penalty or 0.0
        self.generator = torch.Generator(device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def twin(self, device: torch.device) -> "Sampler":
        """A sampler with the same options and its own random generator."""
        return Sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            device=device,
        )

    def draw_as(self, other: "Sampler") -> None:
        """Copy the random state of another sampler, if both are on the same kind of device."""
        if self.generator.device.type == other.generator.device.type:
            self.generator.set_state(other.generator.get_state())

    @property
    def looks_back(self) -> bool:
        """Whether the choice depends on earlier tokens."""
        return (self.repetition_penalty, self.presence_penalty) != (1.0, 0.0)

    def penalised(self, logits: Tensor, prompt: Sequence[int], made: Sequence[int]) -> Tensor:
        """logits (1, V) after the penalties, a copy."""
        logits = logits.clone()
        text = torch.tensor(sorted({*prompt, *made}), device=logits.device)
        here = logits[:, text]
        logits[:, text] = torch.where(here > 0, here / self.repetition_penalty, here * self.repetition_penalty)
        if made:
            logits[:, torch.tensor(sorted(set(made)), device=logits.device)] -= self.presence_penalty
        return logits

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
        """The distribution that tokens are drawn from, (1, V), in float32 or wider."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        # Subtract the largest logit first, so that a tiny temperature cannot overflow.
        wide = (wide - wide.amax(-1, keepdim=True)) / self.temperature
        if self.top_k is not None and self.top_k < wide.size(-1):
            wide = _keep_top_k(wide, self.top_k)
        probabilities = wide.softmax(-1)
        if self.top_p is not None:
            probabilities = _keep_top_p(probabilities, self.top_p)
        return probabilities if self.min_p is None else _keep_min_p(probabilities, self.min_p)


def _likeliest(logits: Tensor) -> tuple[float, Tensor]:
    """(the largest of logits (1, V), NaN if any is NaN; its token (1, 1)).

    On the CPU by numpy, which finds it in a tenth of the time that torch's max takes, or less.
    """
    if logits.device.type != "cpu":
        best, token = logits.max(-1, keepdim=True)
        return best.item(), token
    wide = (logits if logits.dtype == torch.float64 else logits.float())[0].numpy()
    index = wide.argmax()  # the first NaN, if there is one
    return float(wide[index]), torch.tensor([[int(index)]])


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep exactly k tokens: among ties at the edge, those that topk returns."""
    values, tokens = logits.topk(k, -1)
    return torch.full_like(logits, -math.inf).scatter_(-1, tokens, values)


def _keep_top_p(probabilities: Tensor, p: float) -> Tensor:
    """Keep the likeliest tokens until their sum reaches p (at least one); renormalized."""
    ordered, tokens = probabilities.sort(stable=True, dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= p, 0)
    kept = torch.zeros_like(probabilities).scatter_(-1, tokens, ordered)
    return kept / kept.sum(-1, keepdim=True)


def _keep_min_p(probabilities: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest; renormalized."""
    kept = probabilities.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), 0)
    return kept / kept.sum(-1, keepdim=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
