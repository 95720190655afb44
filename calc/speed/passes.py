"""The time of a whole pass on one rank: the expected one, operator by operator, and the least that is possible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from calc.explain.terms import maximum
from calc.speed.kernels import Device, Timed, timed
from calc.step.model import pass_operators
from calc.step.operators import Kind, Operator, Pass

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec

MATRICES = frozenset({Kind.QKV, Kind.OUTPUT, Kind.MLP, Kind.EXPERTS, Kind.HEAD, Kind.ATTENTION})
"""Operators without which no engine computes the pass; what is between them can be fused away."""
GEFORCE = ("NVIDIA RTX 30", "NVIDIA RTX 40", "NVIDIA RTX 50")
"""Cards whose 16-bit peak doubles when sums are kept in 16 bits too, as llama.cpp does."""


@dataclass(frozen=True, kw_only=True)
class PassTime:
    """A pass: its operators with their times, and the least that its arithmetic and its bytes take.

    Where batches are an array, so are the times.
    """

    work: Pass
    operators: tuple[Timed, ...]
    least_compute_s: Any
    least_memory_s: Any

    @property
    def bound_s(self) -> Any:
        """Seconds that no engine beats: all operators may overlap."""
        return maximum(self.least_compute_s, self.least_memory_s)

    @cached_property
    def expected_s(self) -> Any:
        """The sum over the operators, never below the bound."""
        return maximum(sum(one.time_s for one in self.operators), self.bound_s)

    @property
    def compute_s(self) -> Any:
        """Arithmetic alone, at the rates that operators reach."""
        return sum(one.compute_s for one in self.operators)

    @property
    def memory_s(self) -> Any:
        """Bytes alone, at the bandwidth that operators reach."""
        return sum(one.memory_s for one in self.operators)

    @property
    def flops(self) -> float:
        """FLOPs of all operators."""
        return float(sum(one.operator.flops for one in self.operators))

    @property
    def bytes(self) -> float:
        """Bytes moved by all operators."""
        return float(sum(one.operator.bytes for one in self.operators))

    @property
    def limited_by(self) -> str:
        """What bounds the operators that take most of the time."""
        shares: dict[str, float] = {}
        for one in self.operators:
            shares[one.limited_by] = shares.get(one.limited_by, 0.0) + one.time_s
        return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What a pass does, on any device: its operators, and the FLOPs and bytes without which nobody computes it.

    Products and attention, weights once, of experts only as many as one token takes, and the caches; no softmax, no
    activations.
    """

    work: Pass
    operators: tuple[Operator, ...]
    least_flops: Any
    least_bytes: Any


def worked(model: ModelSpec, work: Pass) -> Worked:
    """What `work` does."""
    operators = pass_operators(model, work)
    needed = [operator for operator in operators if operator.kind in MATRICES]
    return Worked(
        work=work,
        operators=operators,
        least_flops=sum(operator.flops * _least_share(operator, work) for operator in needed),
        least_bytes=sum(map(_least_bytes, needed)),
    )


def time_of(done: Worked, device: Device) -> PassTime:
    """The time on `device`; the least takes the highest rate of any path, and the full bandwidth."""
    return PassTime(
        work=done.work,
        operators=tuple(timed(operator, done.work, device) for operator in done.operators),
        least_compute_s=done.least_flops / highest_peak(device),
        least_memory_s=done.least_bytes / device.bandwidth_bytes_per_s,
    )


def highest_peak(device: Device) -> float:
    """The highest rate of any arithmetic that the device has for these weights."""
    sixteen_bits = device.peaks["bf16"] * (2 if device.spec.name.startswith(GEFORCE) else 1)
    return max(sixteen_bits, *device.peaks.values()) if device.narrow else sixteen_bits


def _least_share(operator: Operator, work: Pass) -> float:
    """Products alone: what remains of attention without its softmax."""
    if operator.kind is not Kind.ATTENTION or not work.softmax_flops:
        return 1.0
    sizes = operator.flops_each.sizes
    products = 2 * sizes["key_dim"] + 2 * sizes["value_dim"]
    return float(products / (products + work.softmax_flops))


def _least_bytes(operator: Operator) -> Any:
    sizes = operator.weights_each.sizes
    weights = operator.weight_bytes
    if operator.kind is Kind.EXPERTS and "top_k" in sizes:
        weights = operator.count * sizes["top_k"] * float(sizes["matrix_params"] * sizes["weight_element_bytes"])
    return weights * 1.0 + operator.cache_bytes * 1.0
