"""What was measured of this machine: the record that a file keeps and calc reads as a device. No torch here."""

import msgspec

from engine.records import Machine


class MachineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One dtype: bytes per second of weights read by a product of one row, FLOPs per second of so many rows."""

    dtype: str
    read_bytes_per_s: float
    matmul_flops_per_s: dict[str, float]


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """The same of a GPU that torch sees."""

    name: str
    memory_bytes: int
    read_bytes_per_s: dict[str, float]
    matmul_flops_per_s: dict[str, dict[str, float]]
    operator_overhead_s: float


class MachineResult(msgspec.Struct, frozen=True, kw_only=True):
    """The whole measurement. `spread`: how far times of the same thing lay apart, 0.1 is 10 %."""

    cpu: str
    cores: int
    threads: int
    memory_bytes: int | None
    last_cache_bytes: int | None
    gpus: tuple[Gpu, ...]
    rows: tuple[MachineRow, ...]
    operator_overhead_s: float
    load_average: float | None
    spread: float
    rounds: int
    measured_at: str
    versions: dict[str, str]
    machine: Machine
    kept_in: str = ""
    """The file that keeps it; empty where it could not be kept."""
    notes: tuple[str, ...] = ()
