"""Routed experts: a router picks a few of many small MLPs for every token.

Shapes: N tokens, D hidden size, E experts, k of them chosen for a token.
"""

import math

import torch
from torch import Tensor

from engine.model.config import ExpertsConfig, ModelConfig
from engine.model.layers import MLP, Linear, LinearMaker, Weights


class Experts:
    """Takes the place of the MLP (Mixtral, Qwen-MoE, DeepSeek)."""

    def __init__(
        self,
        config: ModelConfig,
        experts: ExpertsConfig,
        weights: Weights,
        name: str,
        *,
        linear: LinearMaker = Linear.of,
    ) -> None:
        self.config = experts
        self.router = Linear.of(weights, f"{name}.gate")  # never quantised: a wrong choice of experts is a large error
        self.experts = [MLP(config, weights, f"{name}.experts.{i}", linear=linear) for i in range(experts.n_experts)]
        self.choice_bias = weights[f"{name}.gate.e_score_correction_bias"] if experts.choice_bias else None
        shared = f"{name}.shared_experts"
        self.shared = MLP(config, weights, shared, linear=linear) if experts.shared_size else None
        self.shared_gate = Linear.of(weights, f"{name}.shared_expert_gate") if experts.shared_gate else None

    def __call__(self, x: Tensor) -> Tensor:
        """The weighted sum of the experts' outputs, (N, D)."""
        return self._run(x, torch.zeros_like(x))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + experts(x); both (N, D)."""
        return self._run(x, residual.clone())

    def _run(self, x: Tensor, out: Tensor) -> Tensor:
        weights, chosen = self.route(x)
        if x.size(0) == 1:
            for weight, expert in zip(weights[0].tolist(), chosen[0].tolist(), strict=True):
                out.add_(self.experts[expert](x), alpha=weight)
        else:
            self._run_many(x, out, weights, chosen)
        if self.shared is not None and self.shared_gate is not None:
            return out.add_(self.shared(x).mul_(self.shared_gate(x).sigmoid()))
        return out if self.shared is None else self.shared.add_to(out, x)

    def _run_many(self, x: Tensor, out: Tensor, weights: Tensor, chosen: Tensor) -> None:
        """Run each expert once, on all tokens routed to it."""
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.config.n_experts).tolist()
        flat = weights.flatten()
        for expert, entries in enumerate(torch.split(order, counts)):
            if entries.numel():
                tokens = entries // self.config.n_active
                out.index_add_(0, tokens, self.experts[expert](x[tokens]).mul_(flat[entries, None]))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(weights, experts) of each token, both (N, k)."""
        c = self.config
        logits = self.router(x)
        if logits.dtype.itemsize == 2:
            logits = logits.float()
        if c.jitter is not None:
            weights, chosen = _mixed_sparsely(logits, c.n_active, c.jitter)
            return weights.to(x.dtype), chosen
        scores = logits.softmax(-1) if c.scoring == "softmax" else logits.sigmoid()
        ranked = scores if self.choice_bias is None else scores + self.choice_bias
        if c.n_groups > 1:
            ranked = _best_groups(ranked, c)
        chosen = ranked.topk(c.n_active, -1).indices
        weights = scores.gather(-1, chosen)
        if c.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + c.sum_floor)
        return (weights * c.scale).to(x.dtype), chosen


def _mixed_sparsely(scores: Tensor, n_active: int, jitter: float) -> tuple[Tensor, Tensor]:
    """(weights, experts), both (N, k): repeatedly the best remaining expert, weighted among those nearly as good."""
    left, weights, chosen = scores, [], []
    for _ in range(n_active):
        best, index = left.max(-1, keepdim=True)
        far = (best - scores) / scores.abs().clamp(min=best) > 2 * jitter
        weights.append(left.masked_fill(far, -math.inf).softmax(-1).gather(-1, index))
        chosen.append(index)
        left = left.scatter(-1, index, -math.inf)
    return torch.cat(weights, -1), torch.cat(chosen, -1)


def _best_groups(scores: Tensor, c: ExpertsConfig) -> Tensor:
    """Scores (N, E), with experts outside the best groups masked out."""
    groups = scores.view(scores.size(0), c.n_groups, -1)
    worth = groups.topk(min(c.group_best, groups.size(-1)), -1).values.sum(-1)
    best = worth.topk(c.n_active_groups, -1).indices
    kept = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter_(1, best, True)
    return groups.masked_fill(~kept[..., None], -math.inf).view_as(scores)
