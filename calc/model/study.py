"""What a study is about: a model, a device, storage formats, a workload. Frozen records, checked when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from calc.errors import SpecError
from calc.model.checks import check_count
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS, StorageFormat
from calc.units import MAX_BYTES


class Policy(StrEnum):
    """How tensor parallelism splits the KV cache."""

    EQUAL_SPLIT = "equal-split"
    REPLICATED = "replicated"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """An accelerator. Peaks are dense (no sparsity), by dtype: "bf16", "fp8", "int8", "fp4", "fp32".

    `memory_bytes` is what calculations use; `reading` says how that number was read ("80 GB read as 80 x 10^9 B").
    `reported_memory_bytes` is what PyTorch reports; servers budget with it. Unknown values are None or absent, never
    guessed.
    """

    name: str
    memory_bytes: int
    reading: str
    bandwidth_bytes_per_s: float | None = None
    peak_flops_per_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    interconnect: str | None = None
    interconnect_bytes_per_s: float | None = None
    source: str = "typed in"
    reported_memory_bytes: int | None = None
    reported_source: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.memory_bytes, bool) or not isinstance(self.memory_bytes, int) or self.memory_bytes <= 0:
            raise SpecError("memory_bytes", f"device memory must be a positive size, not {self.memory_bytes!r}")
        if self.memory_bytes > MAX_BYTES:
            raise SpecError("memory_bytes", f"device memory must be at most {MAX_BYTES:,} B, an exabyte")

    def ridge(self, dtype: str = "bf16") -> float | None:
        """FLOP per byte at which compute and bandwidth balance; None if either is unknown."""
        peak = self.peak_flops_per_s.get(dtype)
        if peak is None or self.bandwidth_bytes_per_s is None:
            return None
        return peak / self.bandwidth_bytes_per_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything a calculation needs: one value that the app edits and the command line builds."""

    model: ModelSpec
    device: DeviceSpec
    context: int = 8192
    weight_format: StorageFormat = FORMATS["bf16"]
    kv_format: StorageFormat = FORMATS["bf16"]
    tps: tuple[int, ...] = (1, 2, 4, 8)
    policy: Policy = Policy.EQUAL_SPLIT

    def __post_init__(self) -> None:
        check_count("context", self.context)
        if not self.tps:
            raise SpecError("tp", "tp needs at least one number, such as 1,2,4,8")
        for tp in self.tps:
            check_count("tp", tp)
