"""This machine as a device: what `kvscope machine` measured and kept, read from its file.

The engine writes the file (`engine.measure.machine_file`); calc and engine do not import each other, so its place, its
fields and the name of the processor stand twice, and `tests/contract/test_machine.py` holds them equal.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calc.errors import CalcError, SourceError, UnknownName
from calc.files import read_bounded
from calc.model.study import DeviceSpec
from calc.plain import one_line
from calc.units import format_decimal

NAMES = ("this", "this-machine", "this-cpu")
"""Names of the device: its GPU if torch finds one, else its processor; the last name always means the processor."""
NEVER = "this machine has not been measured: run kvscope machine"
MARK = "(this machine)"
"""How the name of the device ends."""
MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What products reach: bytes per second that one row reads, FLOPs per second by dtype and rows."""

    read_bytes_per_s: Mapping[str, float]
    matmul_flops_per_s: Mapping[str, Mapping[int, float]]
    operator_overhead_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredMachine:
    """A measurement of this machine. `gpus`: name, memory and rates of each."""

    cpu: str
    cores: int
    threads: int
    memory_bytes: int | None
    rates: Rates
    gpus: tuple[tuple[str, int, Rates], ...]
    load_average: float | None
    spread: float
    measured_at: str

    def points(self, dtype: str) -> tuple[tuple[float, float], ...]:
        """Products as points of a roofline: FLOPs per byte of weights, FLOPs per second; fewest rows first."""
        return roof_points(self.rates, dtype)

    def device(self, *, gpu: bool = True) -> DeviceSpec:
        """The first GPU (where there is one, and it is wanted) or the processor as a device."""
        if gpu and self.gpus:
            name, memory_bytes, rates = self.gpus[0]
            return self._spec(name, memory_bytes, rates)
        if self.memory_bytes is None:
            raise SourceError("the memory of this machine is unknown: use --gpu-memory instead of --device this")
        return self._spec(f"{self.cpu}, {self.threads} threads", self.memory_bytes, self.rates)

    def _spec(self, name: str, memory_bytes: int, rates: Rates) -> DeviceSpec:
        peaks = {dtype: max(by_rows.values()) for dtype, by_rows in rates.matmul_flops_per_s.items() if by_rows}
        if "bf16" not in peaks and "fp32" in peaks:
            peaks["bf16"] = peaks["fp32"]  # what was not measured is computed as the engine would: wider
        return DeviceSpec(
            name=f"{name} {MARK}",
            memory_bytes=memory_bytes,
            reading=f"{format_decimal(memory_bytes)}, as the system reports it",
            bandwidth_bytes_per_s=max(rates.read_bytes_per_s.values(), default=None),
            peak_flops_per_s=MappingProxyType(peaks),
            source=f"measured by kvscope machine, {self.measured_at}",
        )


ELEMENT_BYTES = MappingProxyType({"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 34 / 32, "int4": 20 / 32})
"""Bytes per weight as the engine keeps them: int8 and int4 have scales for 32."""


def roof_points(rates: Rates, dtype: str) -> tuple[tuple[float, float], ...]:
    """Measured products of a dtype as (FLOPs per byte of weights, FLOPs per second): 2 rows / bytes of a weight."""
    by_rows = rates.matmul_flops_per_s.get(dtype, {})
    return tuple((2 * rows / ELEMENT_BYTES[dtype], by_rows[rows]) for rows in sorted(by_rows))


def machine_path() -> Path:
    """The file: KVSCOPE_MACHINE, else in KVSCOPE_CACHE, else in the user's cache folder."""
    if chosen := os.environ.get("KVSCOPE_MACHINE"):
        return Path(chosen)
    if folder := os.environ.get("KVSCOPE_CACHE"):
        return Path(folder) / "machine.json"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("kvscope")) / "machine.json"


def measured_machine(path: Path | None = None) -> MeasuredMachine:
    """What was measured of this machine. Raises SourceError where nothing was, or where it cannot be used."""
    file = machine_path() if path is None else path
    if not file.exists():
        raise UnknownName(NEVER)
    try:
        machine = _machine(json.loads(read_bounded(file, limit=MAX_BYTES)))
    except SourceError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SourceError(f"{file} is damaged: run kvscope machine --measure") from None
    if machine.cpu != one_line(cpu_name()):
        raise SourceError(f"{file} is from another machine ({machine.cpu}): run kvscope machine")
    return machine


def machine_or_none(path: Path | None = None) -> MeasuredMachine | None:
    """The same for those who can do without it: None where there is none to be used."""
    try:
        return measured_machine(path)
    except CalcError:
        return None


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name for itself, or the platform's, or "unknown"."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "cpu model") and value.strip():
            return value.strip()
    import platform

    return platform.processor() or "unknown"


def _machine(record: Mapping[str, Any]) -> MeasuredMachine:
    rows = {row["dtype"]: row for row in record["rows"]}
    gpus = tuple((one_line(str(gpu["name"])), int(gpu["memory_bytes"]), _rates(gpu)) for gpu in record["gpus"])
    by_dtype = {name: {d: row[name] for d, row in rows.items()} for name in ("read_bytes_per_s", "matmul_flops_per_s")}
    memory = record["memory_bytes"]
    return MeasuredMachine(
        cpu=one_line(str(record["cpu"])),
        cores=int(record["cores"]),
        threads=int(record["threads"]),
        memory_bytes=None if memory is None else int(memory),
        rates=_rates({**by_dtype, "operator_overhead_s": record["operator_overhead_s"]}),
        gpus=gpus,
        load_average=record["load_average"],
        spread=float(record["spread"]),
        measured_at=one_line(str(record["measured_at"])),
    )


def _rates(record: Mapping[str, Any]) -> Rates:
    read = {dtype: _rate(value) for dtype, value in record["read_bytes_per_s"].items()}
    products = {
        dtype: {int(rows): _rate(value) for rows, value in by_rows.items()}
        for dtype, by_rows in record["matmul_flops_per_s"].items()
    }
    if not read or not products or not set(products) <= set(ELEMENT_BYTES):
        raise ValueError("no rates, or of unknown dtypes")
    return Rates(
        read_bytes_per_s=MappingProxyType(read),
        matmul_flops_per_s=MappingProxyType(products),
        operator_overhead_s=_rate(record["operator_overhead_s"]),
    )


def _rate(value: object) -> float:
    """A number that a rate can be. Raises ValueError."""
    if not isinstance(value, int | float) or not 0 < value < 1e18:
        raise ValueError(f"no rate: {value!r}")
    return float(value)
