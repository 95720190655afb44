"""The time of a whole pass on one rank: the expected time, operator by operator, and the lower bound."""

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
"""Operators that every engine needs for the pass; those between them can be fused away."""
GEFORCE = ("NVIDIA RTX 30", "NVIDIA RTX 40", "NVIDIA RTX 50")
"""Cards whose 16-bit peak doubles with 16-bit accumulation, which llama.cpp uses."""


@dataclass(frozen=True, kw_only=True)
class PassTime:
    """A pass: its operators with their times, and the least times for its arithmetic and its bytes.

    With an array of batches, times are arrays.
    """

    work: Pass
    operators: tuple[Timed, ...]
    least_compute_s: Any
    least_memory_s: Any

    @property
    def bound_s(self) -> Any:
        """The lower bound in seconds for any engine: all operators may overlap."""
        return maximum(self.least_compute_s, self.least_memory_s)

    @cached_property
    def expected_s(self) -> Any:
        """The sum over the operators, never below the bound."""
        return maximum(sum(one.time_s for one in self.operators), self.bound_s)

    @property
    def compute_s(self) -> Any:
        """Compute time alone, at achieved rates."""
        return sum(one.compute_s for one in self.operators)

    @property
    def memory_s(self) -> Any:
        """Memory time alone, at achieved bandwidth."""
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
        """The bottleneck of the operators that take most of the time."""
        shares: dict[str, float] = {}
        for one in self.operators:
            shares[one.limited_by] = shares.get(one.limited_by, 0.0) + one.time_s
        return max(shares, key=lambda name: shares[name])


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """The work of a pass on any device: its operators, and the least FLOPs and bytes that any engine needs.

    These count matrix products and attention, each weight once, only the experts of one token, and the caches; no
    softmax and no activations.
    """

    work: Pass
    operators: tuple[Operator, ...]
    least_flops: Any
    least_bytes: Any


def worked(model: ModelSpec, work: Pass) -> Worked:
    """The operators and the least work of the pass `work`."""
    operators = pass_operators(model, work)
    needed = [operator for operator in operators if operator.kind in MATRICES]
    return Worked(
        work=work,
        operators=operators,
        least_flops=sum(operator.flops * _least_share(operator, work) for operator in needed),
        least_bytes=sum(map(_least_bytes, needed)),
    )


def time_of(done: Worked, device: Device) -> PassTime:
    """The time on `device`; the lower bound uses the highest rate of any path and the full bandwidth."""
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
    """The share of matrix products in the FLOPs: attention without its softmax."""
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
