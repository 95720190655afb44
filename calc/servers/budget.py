"""What all server reports share: the memory that a server sees and the parts of a device, one term per line."""

from __future__ import annotations

from typing import Any

from calc.explain.terms import Term, derive
from calc.model.study import DeviceSpec, Study
from calc.servers.records import Band, ServerOptions
from calc.units import GIB

CUDA_SHARE, LABEL_SHARE = 0.99, 0.985
"""CUDA's reported memory relative to the driver's figure and to the label, over the devices with known logs."""


def visible_bytes(device: DeviceSpec) -> tuple[int, str | None]:
    """Bytes that a server sees, and the assumption if that is not the device record's value."""
    own, seen = device.memory_bytes, device.reported_memory_bytes
    if device.source == "typed in" or "CUDA reports" in device.reading or "(edited)" in device.name:
        return own, None
    if seen is not None:
        return seen, f"{device.name}: {seen / GIB:.2f} GiB of memory as PyTorch reports it ({device.reported_source})"
    if "on the label" not in device.reading and not device.name.startswith("NVIDIA"):
        return own, None
    if not device.name.startswith("NVIDIA"):
        return own, f"{device.name}: its driver's figure is unknown, so the nominal size is used"
    share = CUDA_SHARE if "driver" in device.reading else LABEL_SHARE
    said = f"{device.name}: the memory that CUDA reports is unknown; {share:.1%} of {own / GIB:.2f} GiB is assumed"
    return int(own * share), said


def plain_bytes(study: Study, options: ServerOptions) -> int:
    """Bytes per element of activations and unquantized tensors: 4 if the weights are float32."""
    return 4 if study.weight_format.bytes_per_element >= 4 else options.activation_element_bytes


def pool_from_total(
    *,
    memory_bytes: Any,
    utilization: Any,
    weight_bytes: Any,
    activation_bytes: Any,
    non_torch_bytes: Any,
    cuda_graph_bytes: Any = 0,
) -> Any:
    """vLLM's budget: a share of the whole device, minus everything that is not cache."""
    return memory_bytes * utilization - weight_bytes - activation_bytes - non_torch_bytes - cuda_graph_bytes


def pool_from_free(*, free_bytes: Any, utilization: Any, weight_bytes: Any) -> Any:
    """SGLang's budget: a share of what was free before the weights, minus the weights."""
    return free_bytes * utilization - weight_bytes


def blocks_of(*, pool_bytes: Any, block_bytes: Any) -> Any:
    """Blocks of a pool."""
    return pool_bytes // block_bytes


def concurrency_of(*, blocks: Any, request_blocks: Any) -> Any:
    """Full-length requests that the pool holds."""
    return blocks / request_blocks


def block_terms(pool: int, block_bytes: int, blocks: int, request_blocks: int) -> tuple[Term, ...]:
    """The last two steps of every report."""
    return (
        derive("Blocks of the pool", blocks_of, unit="blocks", pool_bytes=pool, block_bytes=block_bytes),
        derive("Full-length requests", concurrency_of, unit="requests", blocks=blocks, request_blocks=request_blocks),
    )


def summed_band(pool: int, parts: dict[str, tuple[int, Band]]) -> Band:
    """Low and high of a pool from those of its parts; independent deviations are added in quadrature."""
    down = sum((high - value) ** 2 for value, (_, high) in parts.values()) ** 0.5
    up = sum((value - low) ** 2 for value, (low, _) in parts.values()) ** 0.5
    return int(pool - down), int(pool + up)
