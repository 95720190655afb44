"""Routed experts. Source: Shazeer et al. 2017."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from calc.errors import SpecError
from calc.explain.terms import Term, derive
from calc.model.parts import PARAMS, Mlp, check_sizes, feed_forward_params, feed_forward_tensors
from calc.model.tensors import OTHER, ROUTER, WHOLE, Tensor


def expert_params(*, hidden_size: Any, expert_size: Any, mlp: Mlp = Mlp.GATED, bias: bool = False) -> Any:
    """One expert."""
    return feed_forward_params(hidden_size=hidden_size, intermediate_size=expert_size, mlp=mlp, bias=bias)


def routed_params(*, n_experts: Any, expert: Any) -> Any:
    """All routed experts of a layer."""
    return n_experts * expert


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """`n_experts` routed feed-forwards, of which a token uses `top_k`; the router has `router_params` parameters."""

    kind: ClassVar[str] = "experts"
    n_experts: int
    top_k: int
    expert_size: int
    router_params: int
    mlp: Mlp = Mlp.GATED
    bias: bool = False
    input_size: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.top_k > self.n_experts:
            raise SpecError("top_k", f"{self.top_k:,} experts per token, but there are {self.n_experts:,}")

    @property
    def label(self) -> str:
        """What it is, in words."""
        return f"{self.n_experts:,} experts of {self.expert_size:,} ({self.top_k:,} active)"

    @property
    def inner(self) -> int:
        """The inner dimension of an expert."""
        return self.expert_size

    def problem(self, tp: int) -> str | None:
        """Why `tp` ranks cannot share each expert; None if they can."""
        if self.expert_size % tp:
            return f"the experts' inner dimension {self.expert_size:,} is not divisible by {tp:,}"
        return None

    def tensors(self, hidden_size: int) -> Iterator[Tensor]:
        """Its tensors: the router, and the matrices of all experts under the name of the first."""
        weights = min(self.router_params, self.n_experts * hidden_size)
        if weights == self.n_experts * hidden_size:
            yield Tensor("gate", self.n_experts, hidden_size, WHOLE, ROUTER)
        elif weights:
            yield Tensor("gate", weights, share=WHOLE, role=OTHER)
        if rest := self.router_params - weights:
            yield Tensor("gate.bias", rest, share=WHOLE, role=OTHER)
        yield from feed_forward_tensors(
            "experts.0.", self.input_size or hidden_size, self.expert_size, self.mlp,
            bias=self.bias, copies=self.n_experts, active=self.top_k,
        )  # fmt: skip

    def term(self, hidden_size: int) -> Term:
        """Parameters of one expert."""
        return derive(
            f"One expert of {self.expert_size:,}",
            expert_params,
            unit=PARAMS,
            hidden_size=self.input_size or hidden_size,
            expert_size=self.expert_size,
            mlp=self.mlp,
            bias=self.bias,
        )

    def routed_term(self, hidden_size: int) -> Term:
        """Parameters of all experts."""
        numbers: dict[str, Any] = {"n_experts": self.n_experts, "expert": int(self.term(hidden_size).value)}
        return derive(f"{self.n_experts:,} experts (per layer)", routed_params, unit=PARAMS, **numbers)
