"""The time of an operator: launch overhead plus the longer of compute and memory time (roofline)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calc.errors import SpecError
from calc.explain.terms import maximum, minimum
from calc.model.storage import StorageFormat
from calc.model.study import DeviceSpec
from calc.speed.constants import ELEMENTWISE, Constants, Reach
from calc.step.formulas import experts_hit
from calc.step.operators import BETWEEN_RANKS, Kind, Operator, Pass, Phase

PRODUCTS = frozenset({Kind.QKV, Kind.OUTPUT, Kind.MLP, Kind.ROUTER, Kind.HEAD})
EXPERT_PRODUCTS = 2
"""Experts were measured as one operator: both products, and the sorting of tokens around them."""
THERE_AND_BACK = frozenset({Kind.EXCHANGE, Kind.COMBINE})
"""Two sends, one after the other."""
TILE, LARGE_TILE = 16, 64
"""Rows of an expert's product are padded to whole tiles, small ones to 16 rows."""
THIRTY_TWO_BITS, SIXTEEN_BITS, EIGHT_BITS = 3.9, 1.9, 0.75
"""Least bytes per weight at which a matrix is multiplied in 32, 16 and 8 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The properties of a device that times depend on.

    `quantized`: the low-bit arithmetic that matches the weight format. `narrow`: weights have fewer than 16 bits, and
    an engine may quantize their activations too. `tiled`: experts fill whole tiles.
    """

    spec: DeviceSpec
    constants: Constants
    bandwidth_bytes_per_s: float
    peaks: Mapping[str, float]
    quantized: frozenset[str]
    narrow: bool = False
    tiled: bool = True

    def path(self, element_bytes: float) -> str:
        """The arithmetic for a matrix with this many bytes per weight."""
        if element_bytes >= THIRTY_TWO_BITS and "fp32" in self.constants.product and "fp32" in self.peaks:
            return "fp32"  # only for this machine; for other devices servers define the arithmetic
        if element_bytes >= SIXTEEN_BITS:
            return "bf16"
        path = "fp8" if element_bytes >= EIGHT_BITS else "fp4"
        return path if path in self.quantized and path in self.peaks else "bf16"


@dataclass(frozen=True, slots=True)
class Timed:
    """An operator with the time of all its runs: launch overhead, compute and memory time.

    With an array of batches, times are arrays. For communication, `start_s` is the whole time.
    """

    operator: Operator
    start_s: Any
    compute_s: Any = 0.0
    memory_s: Any = 0.0

    @property
    def time_s(self) -> Any:
        """Seconds of all runs."""
        return self.start_s + maximum(self.compute_s, self.memory_s)

    @property
    def limited_by_link(self) -> bool:
        """Whether it waits for other ranks."""
        return self.operator.kind in BETWEEN_RANKS

    @property
    def limited_by(self) -> str:
        """The bottleneck: ``overhead``, ``arithmetic``, ``memory bandwidth``; or ``communication``."""
        if self.limited_by_link:
            return "communication"
        parts = {"overhead": self.start_s, "arithmetic": self.compute_s, "memory bandwidth": self.memory_s}
        return max(parts, key=lambda name: parts[name])


def device_for_times(device: DeviceSpec, constants: Constants, weights: StorageFormat, *, tiled: bool = True) -> Device:
    """`device` with `weights` in their format. Raises SpecError where bandwidth or peak is not known."""
    bandwidth, peaks = device.bandwidth_bytes_per_s, device.peak_flops_per_s
    missing = [name for name, known in (("bandwidth", bandwidth), ("16-bit peak", peaks.get("bf16"))) if not known]
    if bandwidth is None or missing:
        known = "" if len(missing) == 2 else ", which is not known"
        pick = "pick a device that has it" if known else "pick a device from the catalog"
        raise SpecError("device", f"times need the {' and the '.join(missing)} of {device.name}{known}: {pick}")
    name = weights.name.lower()
    quantized = {path for path in ("fp8", "fp4") if path in name}
    return Device(
        spec=device,
        constants=constants,
        bandwidth_bytes_per_s=bandwidth,
        peaks=peaks,
        quantized=frozenset(quantized),
        narrow=weights.bytes_per_element < SIXTEEN_BITS,
        tiled=tiled,
    )


def timed(operator: Operator, work: Pass, device: Device) -> Timed:
    """The expected time of `operator` in the pass `work`."""
    if operator.kind in BETWEEN_RANKS:
        start_s, bytes_per_s = link_of(operator, work, device)
        return Timed(operator, operator.count * start_s + operator.link_bytes * 1.0 / bytes_per_s)
    reach, path = reach_of(operator, work, device)
    fullest = fullest_rank(operator, work)
    filled = fullest.compute * (filling(operator, work) if device.tiled else 1.0)
    compute_s = operator.flops * (filled / (device.peaks[path] * reach.peak))
    memory_s = operator.bytes * (fullest.memory / (device.bandwidth_bytes_per_s * reach.bandwidth))
    return Timed(operator, operator.count * start_of(operator, reach), compute_s, memory_s)


def start_of(operator: Operator, reach: Reach) -> float:
    """Launch overhead of one run in seconds."""
    return reach.t0_s / (EXPERT_PRODUCTS if operator.kind is Kind.EXPERTS else 1)


def link_of(operator: Operator, work: Pass, device: Device) -> tuple[float, float]:
    """Latency of one run in seconds (both ways for an exchange), and bytes per second."""
    ranks = {Kind.ALL_REDUCE: work.own.tp, Kind.EXCHANGE: work.tp, Kind.COMBINE: work.shared, Kind.SEND: 2}
    link = device.constants.link(ranks[operator.kind], device.spec)
    return link.t0_s * (2 if operator.kind in THERE_AND_BACK else 1), link.bytes_per_s


def reach_of(operator: Operator, work: Pass, device: Device) -> tuple[Reach, str]:
    """The achieved rates of the operator, and its arithmetic."""
    kinds = device.constants
    if operator.kind in PRODUCTS or operator.kind is Kind.EXPERTS:
        element_bytes = float(operator.weights_each.sizes["weight_element_bytes"])
        path = device.path(element_bytes)
        if operator.kind is not Kind.EXPERTS:
            return kinds.product[path], path
        unpacked = device.tiled and path == "bf16" and element_bytes < EIGHT_BITS
        return kinds.experts["w4a16" if unpacked else path], path
    if operator.kind in (Kind.ATTENTION, Kind.INDEX):
        if work.phase is Phase.PREFILL:
            return kinds.prefill_attention["bf16"], "bf16"
        return kinds.decode_attention["bf16" if work.kv_element_bytes >= SIXTEEN_BITS else "fp8"], "bf16"
    return ELEMENTWISE, "bf16"


def filling(operator: Operator, work: Pass) -> Any:
    """The factor on an expert's arithmetic from padding its rows to whole tiles."""
    sizes = operator.weights_each.sizes
    if operator.kind is not Kind.EXPERTS or "top_k" not in sizes:
        return 1.0
    routing = {name: sizes[name] for name in ("n_experts", "top_k", "idle_share")}
    hit = experts_hit(tokens=work.tokens, **routing)
    rows = work.tokens * sizes["top_k"] / hit
    tile = TILE + (LARGE_TILE - TILE) * (rows > TILE)
    return -(-rows // tile) * tile / rows


@dataclass(frozen=True, slots=True)
class Fullest:
    """Load imbalance of expert parallelism: compute and bytes of the busiest rank, relative to the mean."""

    compute: Any = 1.0
    memory: Any = 1.0


EVEN = Fullest()


def fullest_rank(operator: Operator, work: Pass) -> Fullest:
    """Experts over `work.ep` ranks: all wait for the rank with the most tokens; tokens choose ranks uniformly.

    The expected maximum of X normal variables is c standard deviations above the mean: c = 1.4 for 8 (Blom 1958).
    Tokens per rank are binomial, and so is the number of its experts that are hit.
    """
    sizes = operator.weights_each.sizes
    if work.ep == 1 or operator.kind is not Kind.EXPERTS or "top_k" not in sizes:
        return EVEN
    from statistics import NormalDist

    above = NormalDist().inv_cdf((work.ep - 0.375) / (work.ep + 0.25))
    rows, held = work.tokens * sizes["top_k"], float(sizes["n_experts"])
    hit = experts_hit(tokens=work.tokens, **{name: sizes[name] for name in ("n_experts", "top_k", "idle_share")})
    most_hit = minimum(hit + above * (hit * maximum(1 - hit / held, 0.0)) ** 0.5, held)
    return Fullest(1 + above * ((1 - 1 / work.ep) / rows) ** 0.5, most_hit / hit)
