"""What a device holds as a function of the context, by the formulas of `calc.fit.memory`.

`memory_report` answers for one context. Inverse questions and sweeps need thousands: here, weights and state are taken
from a report once, and the cache's formula is called with one context or an array of them. A size is a pair of integers
(numerator, denominator), so that nothing is rounded early.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from calc.fit.memory import memory_report
from calc.model.cache import cache_elements, kept_formula, only_kv_heads, rank_cache_elements
from calc.model.spec import ModelSpec
from calc.model.study import Policy, Study
from calc.model.tensors import kv_heads_per_rank

Elements = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCosts:
    """What one of `tp` devices holds, with everything fixed except the context.

    `elements` gives the cache elements per request for a context (an int, or an array for an array). An element takes
    `kv_num / kv_den` bytes, with the total rounded up if `whole_bytes`; the device holds `share_num / share_den` of
    that. `weight_num / weight_den` are the exact weight bytes. `problem`: why no server could run it; `runnable`:
    whether the policy divides the model anyway.
    """

    tp: int
    weight_num: int
    weight_den: int
    state_bytes: int
    elements: Elements
    kv_num: int
    kv_den: int
    whole_bytes: bool
    share_num: int
    share_den: int
    problem: str | None
    runnable: bool

    @property
    def weight_bytes(self) -> int:
        """Weight bytes of the device, rounded up."""
        return -(-self.weight_num // self.weight_den)

    @property
    def kv_scale(self) -> int:
        """The divisor of `kv_scaled`."""
        return self.share_den if self.whole_bytes else self.share_den * self.kv_den

    def kv_scaled(self, context: Any) -> Any:
        """Cache bytes per request on the device, times `kv_scale`."""
        stored = self.elements(context) * self.kv_num
        if self.whole_bytes:
            stored = -(-stored // self.kv_den)
        return stored * self.share_num

    def kv_bytes(self, context: int) -> Fraction:
        """Exact cache bytes per request on the device."""
        return Fraction(self.kv_scaled(context), self.kv_scale)

    def request(self, context: Any) -> Any:
        """Cache and state bytes per request on the device, times `kv_scale`."""
        return self.kv_scaled(context) + self.state_bytes * self.kv_scale

    def room(self, memory_bytes: int) -> int:
        """Bytes beside the weights, times `kv_scale`, rounded down; negative where the weights exceed the device.

        At that scale, request sizes are integers, so rounding here changes no quotient.
        """
        free = memory_bytes * self.weight_den - self.weight_num
        return free * self.kv_scale // self.weight_den

    def max_batch(self, memory_bytes: int, context: int) -> int:
        """Requests whose caches and states fit beside the weights; 0 if none fits or no server could run it."""
        request, room = self.request(context), self.room(memory_bytes)
        batch: int = room // request if self.runnable and 0 < request <= room else 0
        return batch

    def free_bytes(self, memory_bytes: int, context: int, batch: int) -> int:
        """Whole bytes left beside the weights and `batch` requests; negative if they do not fit."""
        free: int = (self.room(memory_bytes) - batch * self.request(context)) // self.kv_scale
        return free

    def missing_bytes(self, memory_bytes: int, context: int, batch: int = 1) -> int:
        """Bytes by which the weights and `batch` requests exceed the device; 0 if they fit."""
        return max(0, -self.free_bytes(memory_bytes, context, batch))


def rank_costs(study: Study, tps: Sequence[int] | None = None) -> tuple[RankCosts, ...]:
    """`RankCosts` of `study` for each degree of tensor parallelism, under the study's policy.

    Exactly what `memory_report(study).tp` says, for any context. All policies except the equal split keep whole heads.
    """
    whole_heads = study.policy is not Policy.EQUAL_SPLIT
    asked = study if tps is None else replace(study, tps=tuple(tps))
    report = memory_report(asked)
    rows = report.tp_tables[Policy.REPLICATED if whole_heads else Policy.EQUAL_SPLIT]
    each = Fraction(study.kv_format.bytes_per_element)
    costs = []
    for row in rows:
        weights = Fraction(row.steps[0].value)
        elements, whole_bytes, share = _cache(study.model, row.tp, whole_heads=whole_heads)
        costs.append(
            RankCosts(
                tp=row.tp,
                weight_num=weights.numerator,
                weight_den=weights.denominator,
                state_bytes=row.state_bytes_per_sequence_per_gpu,
                elements=elements,
                kv_num=each.numerator,
                kv_den=each.denominator,
                whole_bytes=whole_bytes,
                share_num=share.numerator,
                share_den=share.denominator,
                problem=row.problem,
                runnable=row.problem is None or not whole_heads,
            )
        )
    return tuple(costs)


def _cache(model: ModelSpec, tp: int, *, whole_heads: bool) -> tuple[Elements, bool, Fraction]:
    """Elements by context, whether they are rounded up to bytes before they are divided, and the device's share."""
    if not whole_heads:
        return request_elements(model), True, Fraction(1, tp)
    if (heads := only_kv_heads(model)) is None:
        return request_elements(model, tp), False, Fraction(1)
    return request_elements(model), True, Fraction(kv_heads_per_rank(n_kv_heads=heads, tp=tp), heads)


def request_elements(model: ModelSpec, tp: int | None = None) -> Elements:
    """Cache elements per request by context, for the model or for a rank of `tp` that keeps whole heads.

    >>> from calc.sources.catalog import find_model
    >>> request_elements(find_model("llama-3-8b"))(8192)
    536870912
    """
    held = cache_elements(model) if tp is None else rank_cache_elements(model, tp)
    kept = kept_formula(held.windowed)
    sizes: dict[str, Any] = {"full_elements": held.full, "latent_elements": held.latent, "kv_element_bytes": 1}
    if held.windowed:
        sizes["window"], sizes["window_elements"] = next(iter(held.windowed.items()))
    return lambda context: kept(context=context, **sizes)
