"""FLOPs and bytes of attention for one KV head: standard (Algorithm 0) and FlashAttention, prefill and decode.

Algorithm 0 is the standard implementation of Dao et al. 2022 (FlashAttention, section 2.2): S = Q Kᵀ is written to
device memory, read for the softmax, P written, and read again for O = P V. FlashAttention (Algorithm 1 there) keeps S
and P on chip; its traffic is counted at the minimum: Q, K, V and O once each.

A multiply-add is two FLOPs. The softmax counts `softmax_flops` per element: 5 for maximum, subtraction, exponential,
sum and division, or 0 to leave it out. There is no causal mask, as in Algorithm 0, unless `causal` is set: then only
the lower triangle of S and P is computed and moved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

from calc.errors import SpecError
from calc.explain.polynomial import Ratio, closed_form, ratio
from calc.explain.terms import Expr, Number, as_expr, evaluate, symbol
from calc.step.formulas import pairs
from calc.step.operators import Phase as Phase
from calc.units import whole


class Attention(StrEnum):
    """STANDARD moves S and P through device memory; FLASH does not."""

    STANDARD = "standard"
    FLASH = "flash"


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the algorithm: FLOPs, and elements read and written (numbers, arrays or expressions)."""

    name: str
    flops: Any
    reads: Any
    writes: Any


def standard_steps(
    *, n_queries: Any, n_keys: Any, head_dim: Any, group_size: Any, softmax_flops: Number, causal: bool = False
) -> list[Step]:
    """The three steps of Algorithm 0 for one KV head and its `group_size` query heads.

    K and V are read once for the whole group; Q, S, P and O belong to each query head.
    """
    scores = group_size * pairs(n_queries=n_queries, n_keys=n_keys, causal=causal)
    queries, keys = group_size * n_queries * head_dim, n_keys * head_dim
    return [
        Step("S = Q Kᵀ", 2 * scores * head_dim, queries + keys, scores),
        Step("P = softmax(S)", softmax_flops * scores, scores, scores),
        Step("O = P V", 2 * scores * head_dim, scores + keys, queries),
    ]


def flash_steps(
    *, n_queries: Any, n_keys: Any, head_dim: Any, group_size: Any, softmax_flops: Number, causal: bool = False
) -> list[Step]:
    """The same FLOPs with S and P kept on chip: only Q, K and V are read and O is written."""
    scores = group_size * pairs(n_queries=n_queries, n_keys=n_keys, causal=causal)
    queries, keys = group_size * n_queries * head_dim, n_keys * head_dim
    return [
        Step("S = Q Kᵀ", 2 * scores * head_dim, queries + keys, 0),
        Step("P = softmax(S)", softmax_flops * scores, 0, 0),
        Step("O = P V", 2 * scores * head_dim, keys, queries),
    ]


def attention_steps(kind: Attention, phase: Phase, *, n_keys: Any, causal: bool = False, **sizes: Any) -> list[Step]:
    """The steps for `phase`: as many queries as keys in prefill; one in decode, where the mask hides nothing."""
    steps = standard_steps if kind is Attention.STANDARD else flash_steps
    if phase is Phase.DECODE:
        return steps(n_queries=1, n_keys=n_keys, **sizes)
    return steps(n_queries=n_keys, n_keys=n_keys, causal=causal, **sizes)


def attention_work(kind: Attention, phase: Phase, *, element_bytes: Any, **sizes: Any) -> tuple[Any, Any]:
    """(FLOPs, bytes) for one KV head.

    >>> attention_work(Attention.STANDARD, Phase.PREFILL, n_keys=1024, head_dim=128, group_size=1,
    ...                softmax_flops=5, element_bytes=2)
    (542113792, 9437184)
    """
    steps = attention_steps(kind, phase, **sizes)
    flops = steps[0].flops + steps[1].flops + steps[2].flops
    elements = sum((step.reads + step.writes for step in steps[1:]), steps[0].reads + steps[0].writes)
    return flops, elements * element_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A row of the step table: formulas as expressions, values as integers (bytes)."""

    name: str
    flops_formula: Expr
    reads_formula: Expr
    writes_formula: Expr
    flops: Number
    read_bytes: Number
    write_bytes: Number


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCost:
    """FLOPs, bytes and intensity of one phase: values, closed forms, the step table and the limit in N.

    Read and write formulas of `steps` count elements; byte formulas include the factor b. `limit` is the limit of the
    intensity as N grows (None: it grows without bound).
    """

    phase: Phase
    flops: Number
    bytes: Number
    flops_formula: Expr
    bytes_formula: Expr
    intensity_formula: Expr
    limit_formula: Expr | None
    limit: float | None
    values: Mapping[str, Number]
    steps: tuple[StepCost, ...]

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return float(Fraction(self.flops) / Fraction(self.bytes))


def _step_costs(traced: list[Step], values: Mapping[str, Number]) -> tuple[StepCost, ...]:
    element_bytes = values["element_bytes"]

    def value(formula: Any) -> Any:
        return evaluate(as_expr(formula), values)

    return tuple(
        StepCost(
            name=s.name,
            flops_formula=closed_form(as_expr(s.flops)),
            reads_formula=closed_form(as_expr(s.reads)),
            writes_formula=closed_form(as_expr(s.writes)),
            flops=_exact(value(s.flops)),
            read_bytes=_exact(value(s.reads) * element_bytes),
            write_bytes=_exact(value(s.writes) * element_bytes),
        )
        for s in traced
    )


def _exact(value: Number) -> Number:
    return whole(value) if isinstance(value, Fraction) else value


def phase_cost(
    kind: Attention,
    phase: Phase,
    *,
    context: int,
    head_dim: int,
    group_size: int = 1,
    element_bytes: Number = 2,
    softmax_flops: Number = 5,
    causal: bool = False,
) -> PhaseCost:
    """Work of one KV head with its `group_size` query heads at `context` tokens, values and formulas.

    Raises SpecError for a size below 1.
    """
    for name, size in (("context", context), ("head_dim", head_dim), ("group_size", group_size)):
        if size < 1:
            raise SpecError(name, f"{name} must be at least 1, not {size}")
    values = {"n_keys": context, "head_dim": head_dim, "element_bytes": element_bytes, "group_size": group_size}
    group = 1 if group_size == 1 else symbol("group_size")
    sizes: dict[str, Any] = {"n_keys": symbol("n_keys"), "head_dim": symbol("head_dim"), "group_size": group}
    counted: dict[str, Any] = {"softmax_flops": softmax_flops, "causal": causal}
    traced = attention_steps(kind, phase, **counted, **sizes)
    flops, moved = attention_work(kind, phase, element_bytes=symbol("element_bytes"), **counted, **sizes)
    quotient: Ratio = ratio(flops, moved)
    limit = quotient.limit("n_keys", values)
    return PhaseCost(
        phase=phase,
        flops=_exact(evaluate(flops, values)),
        bytes=_exact(evaluate(moved, values)),
        flops_formula=closed_form(flops),
        bytes_formula=_bytes_formula(moved),
        intensity_formula=quotient.expression,
        limit_formula=limit[0] if limit else None,
        limit=float(limit[1]) if limit else None,
        values=values,
        steps=_step_costs(traced, values),
    )


def _bytes_formula(moved: Expr) -> Expr:
    """``b · (4·N² + 4·N·d)``: collected elements times bytes per element."""
    elements, element_bytes = moved.args
    return Expr("*", (element_bytes, closed_form(elements)))
