"""What is on the device, the largest batch, and the tensor-parallel table.

Weights and KV cache are counted, as the assignment asks. Activations, runtime and graphs are not: what a particular
server reserves for them is a separate question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from calc.explain.terms import Number, Term, derive
from calc.model.cache import pair_term, rank_request_term, rank_state_term, request_term, state_term, token_term
from calc.model.count import Parameters, parameters
from calc.model.shares import Shares, rank_weights_term, shares, tp_problem
from calc.model.study import Policy, Study


def weight_bytes(*, parameters: Any, weight_element_bytes: Any) -> Any:
    """Bytes of the weights.

    >>> weight_bytes(parameters=8_030_261_248, weight_element_bytes=2)
    16060522496
    """
    return parameters * weight_element_bytes


def max_batch(*, memory_bytes: Any, weight_bytes: Any, kv_request_bytes: Any) -> Any:
    """Number of requests whose caches fit beside the weights.

    >>> max_batch(memory_bytes=80_000_000_000, weight_bytes=16_060_522_496, kv_request_bytes=1_073_741_824)
    59
    """
    return (memory_bytes - weight_bytes) // kv_request_bytes


def max_batch_with_state(*, memory_bytes: Any, weight_bytes: Any, kv_request_bytes: Any, state_bytes: Any) -> Any:
    """Number of requests whose caches and recurrent states fit beside the weights."""
    return (memory_bytes - weight_bytes) // (kv_request_bytes + state_bytes)


def shortfall(*, memory_bytes: Any, weight_bytes: Any, kv_request_bytes: Any, state_bytes: Any = 0) -> Any:
    """Bytes missing for the weights and one request."""
    return weight_bytes + kv_request_bytes + state_bytes - memory_bytes


def equal_share(*, weight_bytes: Any, tp: Any) -> Any:
    """Weight bytes per GPU if everything divides evenly (the assignment's rule)."""
    return weight_bytes / tp


def equal_kv_share(*, kv_request_bytes: Any, tp: Any) -> Any:
    """Cache bytes per request and GPU if everything divides evenly."""
    return kv_request_bytes / tp


def equal_state_share(*, state_bytes: Any, tp: Any) -> Any:
    """State bytes per sequence and GPU if everything divides evenly, rounded up."""
    return (state_bytes + tp - 1) // tp


@dataclass(frozen=True, slots=True, kw_only=True)
class TpRow:
    """One tensor-parallel degree. `problem`: why no server could run it, or None.

    `steps` derive the weights, the cache, the state if there is one, and finally the batch that follows from them. The
    equal split divides anyway, as the assignment does; with whole heads such a row never fits.
    """

    tp: int
    weight_bytes_per_gpu: int
    kv_bytes_per_request_per_gpu: Number
    max_batch: int
    fits: bool
    problem: str | None
    steps: tuple[Term, ...]
    state_bytes_per_sequence_per_gpu: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReport:
    """The assignment's table and everything behind it. `max_batch` and `fits` are for a single device."""

    study: Study
    parameters: Parameters
    weight_bytes: int
    kv_bytes_per_token: Number
    kv_bytes_per_request: int
    free_bytes: int
    max_batch: int
    fits: bool
    tp_tables: Mapping[Policy, tuple[TpRow, ...]]
    steps: tuple[Term, ...]
    state_bytes_per_sequence: int = 0

    @property
    def request_bytes(self) -> int:
        """Bytes per request: its cache, and the state of the recurrent layers if there are any."""
        return self.kv_bytes_per_request + self.state_bytes_per_sequence

    @property
    def component_bytes(self) -> dict[str, Number]:
        """Weight bytes by component: as stored in the file if it was read, else equal for every parameter."""
        weights, counts = self.study.weight_format, self.parameters.components
        if weights.stored is not None and weights.stored.components:
            own = dict(weights.stored.components)
            return {name: own.get(name, 0) for name in counts}
        return {name: n * weights.bytes_per_element for name, n in counts.items()}

    @property
    def tp(self) -> tuple[TpRow, ...]:
        """The tensor-parallel table under the study's own policy."""
        return self.tp_tables[self.study.policy]


def batch_term(study: Study, weights: Number, kv: Number, state: Number = 0) -> Term:
    """The number of requests of `kv` and `state` bytes that fit beside `weights`, or what one lacks if none fits."""
    formula: Callable[..., Any] = max_batch_with_state if state else max_batch
    name, gives, unit = "Max batch size", "batch", "requests"
    if study.device.memory_bytes < weights + kv + state or not kv + state:
        formula, name, gives, unit = shortfall, "Missing for one request", "", "B"
    more: dict[str, Any] = {"state_bytes": state} if state else {}
    return derive(
        name,
        formula,
        gives=gives,
        unit=unit,
        memory_bytes=study.device.memory_bytes,
        weight_bytes=weights,
        kv_request_bytes=kv,
        **more,
    )


def _tp_row(
    study: Study, tp: int, *, weights: Term, kv: Term, state: Term | None = None, runnable: bool = True
) -> TpRow:
    held = 0 if state is None else ceil(state.value)
    batch = batch_term(study, weights.value, kv.value, held)
    fits = batch.unit == "requests" and runnable
    return TpRow(
        tp=tp,
        weight_bytes_per_gpu=ceil(weights.value),
        kv_bytes_per_request_per_gpu=kv.value,
        max_batch=int(batch.value) if fits else 0,
        fits=fits,
        problem=tp_problem(study.model, tp),
        steps=(weights, kv, *(() if state is None else (state,)), batch),
        state_bytes_per_sequence_per_gpu=held,
    )


def _equal_row(study: Study, weights: int, kv: int, tp: int, *, state: int = 0) -> TpRow:
    name = "State per sequence and GPU"
    return _tp_row(
        study,
        tp,
        weights=derive("Weights per GPU", equal_share, unit="B", weight_bytes=weights, tp=tp),
        kv=derive("KV cache per request and GPU", equal_kv_share, unit="B", kv_request_bytes=kv, tp=tp),
        state=derive(name, equal_state_share, unit="B", state_bytes=state, tp=tp) if state else None,
    )


def _whole_head_row(study: Study, found: Shares, tp: int) -> TpRow:
    return _tp_row(
        study,
        tp,
        weights=rank_weights_term(found, study.weight_format, tp),
        kv=rank_request_term(study.model, study.kv_format, study.context, tp),
        state=rank_state_term(study.model, study.kv_format, tp),
        runnable=tp_problem(study.model, tp) is None,
    )


def memory_report(study: Study) -> MemoryReport:
    """Parameters, bytes, largest batch and both tensor-parallel tables of `study`. Never raises because something does
    not fit."""
    counts = parameters(study.model)
    weights = derive(
        "Parameter memory",
        weight_bytes,
        gives="weight_bytes",
        unit="B",
        parameters=counts.total,
        weight_element_bytes=study.weight_format.bytes_per_element,
    )
    pair = pair_term(study.model, study.kv_format)
    per_token = token_term(study.model, study.kv_format)
    per_request = request_term(study.model, study.kv_format, study.context)
    held, request = ceil(weights.value), ceil(per_request.value)
    term = state_term(study.model, study.kv_format)
    states = () if term is None else (term,)
    state = sum(ceil(term.value) for term in states)
    batch = batch_term(study, held, request, state)
    found = shares(study.model)
    fits = batch.unit == "requests"
    return MemoryReport(
        study=study,
        parameters=counts,
        weight_bytes=held,
        kv_bytes_per_token=per_token.value,
        kv_bytes_per_request=request,
        free_bytes=study.device.memory_bytes - held,
        max_batch=int(batch.value) if fits else 0,
        fits=fits,
        tp_tables={
            Policy.EQUAL_SPLIT: tuple(_equal_row(study, held, request, tp, state=state) for tp in study.tps),
            Policy.REPLICATED: tuple(_whole_head_row(study, found, tp) for tp in study.tps),
        },
        steps=(*counts.steps, weights, *pair, per_token, per_request, *states, batch),
        state_bytes_per_sequence=state,
    )
