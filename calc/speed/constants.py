"""Achieved rates of operators: constants per device family from microbenchmarks, cautious defaults for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import assets
from calc.model.study import DeviceSpec
from calc.sources.machine import MARK, machine_or_none


@dataclass(frozen=True, slots=True)
class Reach:
    """Achieved rates of one kind of operator: launch overhead in seconds, shares of bandwidth and of peak FLOP/s."""

    t0_s: float
    bandwidth: float
    peak: float


@dataclass(frozen=True, slots=True)
class Link:
    """An all-reduce: latency in seconds, and bytes per second of the data that each rank sends."""

    t0_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The constants of a device family; `known` is False for the defaults."""

    family: str
    known: bool
    product: Mapping[str, Reach]
    experts: Mapping[str, Reach]
    decode_attention: Mapping[str, Reach]
    prefill_attention: Mapping[str, Reach]
    all_reduce: Mapping[int, Link]
    source: str

    def link(self, tp: int, device: DeviceSpec) -> Link:
        """The all-reduce of `tp` ranks: measured for the nearest number of ranks, else from the interconnect."""
        nearest = min(self.all_reduce, key=lambda n: abs(n - tp), default=None)
        if nearest is not None:
            return self.all_reduce[nearest]
        return Link(DEFAULT_LINK_S, LINK_SHARE * (device.interconnect_bytes_per_s or PCIE_BYTES_PER_S))


ELEMENTWISE = Reach(2e-6, 0.7, 1.0)
"""Norms, rotary, activations, look-ups: small kernels. A layer has three or four, 6 us together on every family."""
DEFAULT_LINK_S, LINK_SHARE, PCIE_BYTES_PER_S = 5e-6, 0.6, 16e9
DEFAULTS = Constants(
    family="none measured",
    known=False,
    product={"bf16": Reach(4e-6, 0.75, 0.6), "fp8": Reach(8e-6, 0.7, 0.45), "fp4": Reach(8e-6, 0.55, 0.35)},
    experts={
        "bf16": Reach(30e-6, 0.75, 0.45),
        "fp8": Reach(35e-6, 0.7, 0.3),
        "fp4": Reach(30e-6, 0.65, 0.25),
        "w4a16": Reach(35e-6, 0.7, 0.35),
    },
    decode_attention={"bf16": Reach(11e-6, 0.75, 0.3), "fp8": Reach(12e-6, 0.65, 0.3)},
    prefill_attention={"bf16": Reach(12e-6, 0.5, 0.45)},
    all_reduce={},
    source="defaults: no operator was measured on this device",
)


AMD_BANDWIDTH = 0.4
"""Public runs of MI300X (2024) and MI355X (2026) move 0.27 and 0.44 of the bandwidth: software, not hardware."""


def constants_of(device: DeviceSpec) -> Constants:
    """The constants of the device's family; `DEFAULTS` if no device of the family was measured."""
    if MARK in device.name:
        return _of_this_machine() or DEFAULTS
    for family in _families():
        if device.name.startswith(tuple(family["devices"])):
            return _constants(family)
    return _slower(DEFAULTS) if device.name.startswith("AMD") else DEFAULTS


def _of_this_machine() -> Constants | None:
    """The results of `kvscope machine`: its rates are achieved rates, so the shares refer to the fastest dtype."""
    machine = machine_or_none()
    if machine is None:
        return None
    rates = machine.gpus[0][2] if machine.gpus else machine.rates
    start_s, fastest = rates.operator_overhead_s, max(rates.read_bytes_per_s.values())
    reached = {dtype: Reach(start_s, read / fastest, 1.0) for dtype, read in rates.read_bytes_per_s.items()}
    sixteen_bits = reached.get("bf16") or reached.get("fp16") or reached.get("fp32") or Reach(start_s, 1.0, 1.0)
    product = {"bf16": sixteen_bits, "fp8": reached.get("int8", sixteen_bits), "fp4": reached.get("int4", sixteen_bits)}
    whole = {"bf16": sixteen_bits, "fp8": sixteen_bits}
    return Constants(
        family="this machine",
        known=True,
        product={**product, **({"fp32": reached["fp32"]} if "fp32" in reached else {})},
        experts={**product, "w4a16": product["fp4"]},
        decode_attention=whole,
        prefill_attention=whole,
        all_reduce={},
        source=f"kvscope machine, {machine.measured_at}",
    )


def _slower(constants: Constants) -> Constants:
    """The same with the lower share of bandwidth that public runs on AMD show."""

    def each(reaches: Mapping[str, Reach]) -> dict[str, Reach]:
        return {path: replace(reach, bandwidth=AMD_BANDWIDTH) for path, reach in reaches.items()}

    return replace(
        constants,
        product=each(constants.product),
        experts=each(constants.experts),
        decode_attention=each(constants.decode_attention),
        source=f"{constants.source}; the share of the bandwidth is that of public runs on AMD",
    )


@cache
def _families() -> tuple[dict[str, Any], ...]:
    document = json.loads(assets.path("speed.json").read_text(encoding="utf-8"))
    return tuple({"family": name, **record} for name, record in document["families"].items())


def _constants(record: Mapping[str, Any]) -> Constants:
    """Constants from a record of the asset; kinds and paths without measurements get the defaults."""

    def reaches(kind: str, defaults: Mapping[str, Reach]) -> dict[str, Reach]:
        measured = {path: Reach(r["t0_us"] / 1e6, r["bandwidth"], r["peak"]) for path, r in record[kind].items()}
        return {**defaults, **measured}

    return Constants(
        family=record["family"],
        known=True,
        product=reaches("product", DEFAULTS.product),
        experts=reaches("experts", DEFAULTS.experts),
        decode_attention=reaches("decode_attention", DEFAULTS.decode_attention),
        prefill_attention=reaches("prefill_attention", DEFAULTS.prefill_attention),
        all_reduce={int(n): Link(r["t0_us"] / 1e6, r["bytes_per_s"]) for n, r in record["all_reduce"].items()},
        source=record["source"],
    )
