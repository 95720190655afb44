"""Attention as in the layers of a model (latent, windows, indexers, recurrences), for all layers and one sequence.

If all layers have plain attention over the whole context, one KV head is studied instead (`calc.intensity.attention`),
as the assignment asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from calc.explain.polynomial import closed_form, expand, ratio_of
from calc.explain.terms import Expr, Number, as_expr, symbol
from calc.model.parts import mixers_of
from calc.model.spec import ModelSpec
from calc.step.model import mixing_operators
from calc.step.operators import Operator, Pass, Phase, total
from calc.units import whole

N = "n_keys"
KEPT = "kept "


def is_plain(model: ModelSpec) -> bool:
    """Whether all layers have the same attention, with K and V of one width, over the whole context."""
    reads = {
        None if read is None else read._replace(form="")
        for read in (mixer.attended() for mixer in mixers_of(model.layers))
    }
    read = next(iter(reads))
    if len(reads) > 1 or read is None or any(len(layer.mixers) != 1 for layer in model.groups):
        return False
    whole_context = read.most is None and read.ratio == 1 and not read.index_heads
    return whole_context and read.key_dim == read.value_dim and read.token_elements == 2 * read.key_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersCost:
    """FLOPs, bytes and intensity of all mixers in one phase, for one sequence, by kind.

    Formulas are in N, with every other size substituted. `limit` is the limit of the intensity as N grows (None: it
    grows without bound).
    """

    phase: Phase
    operators: tuple[Operator, ...]
    flops: Number
    bytes: Number
    flops_formula: Expr
    bytes_formula: Expr
    limit_formula: Expr | None
    limit: float | None

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return float(Fraction(self.flops) / Fraction(self.bytes))

    @property
    def intensity_formula(self) -> Expr:
        """FLOPs over bytes."""
        return self.flops_formula / self.bytes_formula

    @property
    def cache_bytes(self) -> Number:
        """Bytes read of caches and states."""
        read: Number = total(self.operators, "cache_bytes")
        return read

    @property
    def layers(self) -> int:
        """Layers with attention or recurrence."""
        return sum(operator.count for operator in self.operators if operator.kind != "index")


def layers_cost(model: ModelSpec, work: Pass) -> LayersCost:
    """The mixers of `model` in a pass of one sequence."""
    operators = mixing_operators(model, work)
    flops, moved = total(operators, "flops"), total(operators, "bytes")
    traced = mixing_operators(model, _in_n(work))
    flops_formula, bytes_formula = (_collected(as_expr(total(traced, what))) for what in ("flops", "bytes"))
    limit = _limit(flops_formula, bytes_formula)
    return LayersCost(
        phase=work.phase,
        operators=operators,
        flops=whole(Fraction(flops)),
        bytes=whole(Fraction(moved)),
        flops_formula=flops_formula,
        bytes_formula=bytes_formula,
        limit_formula=limit[0] if limit else None,
        limit=float(limit[1]) if limit else None,
    )


def _in_n(work: Pass) -> Pass:
    """The same pass over N tokens."""
    return Pass(
        phase=work.phase,
        batch=1,
        context=symbol(N),
        causal=work.causal,
        scores_in_memory=work.scores_in_memory,
        softmax_flops=work.softmax_flops,
        element_bytes=work.element_bytes,
        kv_element_bytes=work.kv_element_bytes,
    )


def _collected(node: Expr) -> Expr:
    """`node` multiplied out and collected; minima and floors stay as they are."""
    kept: list[Expr] = []

    def without(at: Expr) -> Expr:
        if at.op in ("min", "//"):
            if at not in kept:
                kept.append(at)
            return symbol(f"{KEPT}{kept.index(at)}")
        return at if at.op in ("sym", "num") else Expr(at.op, tuple(map(without, at.args)))

    def back(at: Expr) -> Expr:
        if at.op == "sym" and at.args[0].startswith(KEPT):
            return kept[int(at.args[0].removeprefix(KEPT))]
        return at if at.op in ("sym", "num") else Expr(at.op, tuple(map(back, at.args)))

    return back(closed_form(without(node)))


def _limit(flops: Expr, moved: Expr) -> tuple[Expr, Fraction] | None:
    """The limit of flops / moved as N grows; None if it is not a number."""
    return ratio_of(expand(_far(flops)), expand(_far(moved))).limit(N, {})


def _far(node: Expr) -> Expr:
    """`node` for N larger than every window: min(N, x) becomes x, and ⌊N/m⌋ becomes N/m."""
    if node.op in ("sym", "num"):
        return node
    left, right = (_far(arg) for arg in node.args)
    if node.op == "min":
        return right if _grows(left) and not _grows(right) else left
    if node.op == "//":
        return as_expr(left * Fraction(1, int(right.args[0])))
    return Expr(node.op, (left, right))


def _grows(node: Expr) -> bool:
    return node.args[0] == N if node.op == "sym" else node.op != "num" and any(_grows(arg) for arg in node.args)


def layers_work(model: ModelSpec, work: Pass) -> tuple[Any, Any]:
    """(FLOPs, bytes) of the mixers in a pass."""
    operators = mixing_operators(model, work)
    return total(operators, "flops"), total(operators, "bytes")
