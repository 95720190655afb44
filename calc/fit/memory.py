"""What is on the device, the largest batch, and the tensor-parallel table.

Counted are weights and KV cache, as the assignment asks. Activations, runtime and graphs are not: what a
particular server reserves for them is a question of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from calc.explain.terms import Number, Term, derive
from calc.model.cache import kv_heads_per_rank, request_term, token_term
from calc.model.params import Parameters, parameters
from calc.model.spec import ModelSpec, Policy, Study


def weight_bytes(*, parameters: Any, weight_element_bytes: Any) -> Any:
    """Bytes of the weights.

    >>> weight_bytes(parameters=8_030_261_248, weight_element_bytes=2)
    16060522496
    """
    return parameters * weight_element_bytes


def max_batch(*, memory_bytes: Any, weight_bytes: Any, kv_request_bytes: Any) -> Any:
    """Requests whose caches fit beside the weights.

    >>> max_batch(memory_bytes=80_000_000_000, weight_bytes=16_060_522_496, kv_request_bytes=1_073_741_824)
    59
    """
    return (memory_bytes - weight_bytes) // kv_request_bytes


def max_batch_with_state(*, memory_bytes: Any, weight_bytes: Any, kv_request_bytes: Any, state_bytes: Any) -> Any:
    """Requests whose caches and recurrent states fit beside the weights."""
    return (memory_bytes - weight_bytes) // (kv_request_bytes + state_bytes)


def shortfall(*, memory_bytes: Any, weight_bytes: Any, kv_request_bytes: Any, state_bytes: Any = 0) -> Any:
    """Bytes missing for the weights and one request."""
    return weight_bytes + kv_request_bytes + state_bytes - memory_bytes


def equal_share(*, weight_bytes: Any, tp: Any) -> Any:
    """Weight bytes a GPU when everything divides evenly (the assignment's rule)."""
    return weight_bytes / tp


def equal_kv_share(*, kv_request_bytes: Any, tp: Any) -> Any:
    """Cache bytes a request and GPU when everything divides evenly."""
    return kv_request_bytes / tp


def rank_weight_bytes(
    *, split_params: Any, tp: Any, n_kv_heads: Any, kv_head_params: Any, whole_params: Any, weight_element_bytes: Any
) -> Any:
    """Weight bytes of a rank that keeps whole KV heads.

    Query, output and feed-forward matrices, embedding and head are divided; K and V projections follow the
    KV heads; norms and output biases are on every rank (Shoeybi et al. 2019, section 3; vLLM QKVParallelLinear).
    """
    own_kv = kv_heads_per_rank(n_kv_heads=n_kv_heads, tp=tp) * kv_head_params
    return (split_params / tp + own_kv + whole_params) * weight_element_bytes


def rank_kv_bytes(*, kv_request_bytes: Any, n_kv_heads: Any, tp: Any) -> Any:
    """Cache bytes a request on a rank that keeps whole KV heads."""
    return kv_request_bytes / n_kv_heads * kv_heads_per_rank(n_kv_heads=n_kv_heads, tp=tp)


@dataclass(frozen=True, slots=True, kw_only=True)
class TpRow:
    """One tensor-parallel degree. `problem` says why no server could run it, or is None.

    The equal split divides regardless, as the assignment does; with whole heads such a row never fits.
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
    """The assignment's table and everything behind it. `max_batch` and `fits` are of a single device."""

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
        """What a request takes: its cache, and the state of the recurrent layers where there are any."""
        return self.kv_bytes_per_request + self.state_bytes_per_sequence

    @property
    def tp(self) -> tuple[TpRow, ...]:
        """The tensor-parallel table under the study's own policy."""
        return self.tp_tables[self.study.policy]


def tp_problem(model: ModelSpec, tp: int) -> str | None:
    """Why `tp` GPUs cannot share this model in whole heads, or None if they can."""
    if model.layers:
        from calc.model.layered import layered_tp_problem

        return layered_tp_problem(model, tp)
    if model.n_heads % tp:
        return f"{_heads(model.n_heads, 'query')} not divide by {tp:,}"
    if model.n_kv_heads % tp and tp % model.n_kv_heads:
        return f"{model.n_kv_heads:,} KV heads neither divide by {tp:,} nor repeat evenly on {tp:,} GPUs"
    if model.intermediate_size % tp:
        return f"the inner dimension {model.intermediate_size:,} does not divide by {tp:,}"
    return None


def _heads(n: int, kind: str) -> str:
    return f"{n:,} {kind} heads do" if n > 1 else f"1 {kind} head does"


def _batch_term(study: Study, weights: Number, kv: Number, state: Number = 0) -> Term:
    formula: Callable[..., Any] = max_batch_with_state if state else max_batch
    name, unit = "Max batch size", "requests"
    if study.device.memory_bytes < weights + kv + state or not kv + state:
        formula, name, unit = shortfall, "Missing for one request", "B"
    more: dict[str, Any] = {"state_bytes": state} if state else {}
    return derive(
        name,
        formula,
        unit=unit,
        memory_bytes=study.device.memory_bytes,
        weight_bytes=weights,
        kv_request_bytes=kv,
        **more,
    )


def _tp_row(study: Study, tp: int, *, weights: Term, kv: Term, state: int = 0, runnable: bool = True) -> TpRow:
    batch = _batch_term(study, weights.value, kv.value, state)
    fits = batch.unit == "requests" and runnable
    return TpRow(
        tp=tp,
        weight_bytes_per_gpu=ceil(weights.value),
        kv_bytes_per_request_per_gpu=kv.value,
        max_batch=int(batch.value) if fits else 0,
        fits=fits,
        problem=tp_problem(study.model, tp),
        steps=(weights, kv, batch),
        state_bytes_per_sequence_per_gpu=state,
    )


def _equal_row(study: Study, weights: int, kv: int, tp: int, *, state: int = 0) -> TpRow:
    return _tp_row(
        study,
        tp,
        weights=derive("Weights per GPU", equal_share, unit="B", weight_bytes=weights, tp=tp),
        kv=derive("KV cache per request and GPU", equal_kv_share, unit="B", kv_request_bytes=kv, tp=tp),
        state=-(-state // tp),
    )


def _split_of(model: ModelSpec, counts: Parameters) -> dict[str, Any]:
    """How the parameters fall into divided, per-KV-head and whole ones."""
    m = model
    per_kv_head = m.n_layers * (2 * m.hidden_size * m.head_dim + (2 * m.head_dim if m.qkv_bias else 0))
    output_biases = m.n_layers * m.hidden_size * (int(m.o_bias) + int(m.mlp_bias))
    whole = counts.norms + counts.positions + output_biases
    split = counts.total - whole - m.n_kv_heads * per_kv_head
    return {"split_params": split, "kv_head_params": per_kv_head, "whole_params": whole}


def _whole_head_row(study: Study, counts: Parameters, kv: int, tp: int) -> TpRow:
    if study.model.layers:
        return _layered_row(study, counts, tp)
    n_kv_heads = study.model.n_kv_heads
    return _tp_row(
        study,
        tp,
        weights=derive(
            "Weights per GPU",
            rank_weight_bytes,
            unit="B",
            tp=tp,
            n_kv_heads=n_kv_heads,
            weight_element_bytes=study.weight_format.bytes_per_element,
            **_split_of(study.model, counts),
        ),
        kv=derive(
            "KV cache per request and GPU", rank_kv_bytes, unit="B", kv_request_bytes=kv, n_kv_heads=n_kv_heads, tp=tp
        ),
        runnable=tp_problem(study.model, tp) is None,
    )


def _layered_row(study: Study, counts: Parameters, tp: int) -> TpRow:
    from calc.model.layered import rank_request_term, rank_state_bytes, rank_weights_term

    return _tp_row(
        study,
        tp,
        weights=rank_weights_term(study.model, counts.total, study.weight_format, tp),
        kv=rank_request_term(study.model, study.kv_format, study.context, tp),
        state=rank_state_bytes(study.model, study.kv_format, tp),
        runnable=tp_problem(study.model, tp) is None,
    )


def _state_terms(study: Study) -> tuple[Term, ...]:
    """The state of recurrent layers, where the model has any."""
    if not study.model.layers:
        return ()
    from calc.model.layered import state_term

    term = state_term(study.model, study.kv_format)
    return () if term is None else (term,)


def memory_report(study: Study) -> MemoryReport:
    """Parameters, bytes, largest batch and both tensor-parallel tables of `study`. Never raises for a bad fit."""
    counts = parameters(study.model)
    weights = derive(
        "Parameter memory",
        weight_bytes,
        unit="B",
        parameters=counts.total,
        weight_element_bytes=study.weight_format.bytes_per_element,
    )
    per_token = token_term(study.model, study.kv_format)
    per_request = request_term(study.model, study.kv_format, study.context)
    held, request = ceil(weights.value), ceil(per_request.value)
    states = _state_terms(study)
    state = sum(ceil(term.value) for term in states)
    batch = _batch_term(study, held, request, state)
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
            Policy.REPLICATED: tuple(_whole_head_row(study, counts, request, tp) for tp in study.tps),
        },
        steps=(*counts.steps, weights, per_token, per_request, *states, batch),
        state_bytes_per_sequence=state,
    )
