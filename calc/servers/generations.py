"""Generations of GPUs by the names of devices: what kernels a server takes depends on them."""

from __future__ import annotations

from collections.abc import Mapping

from calc.model.spec import DeviceSpec

HOPPER, BLACKWELL, OTHER = "Hopper", "Blackwell", "other"
STARTS: Mapping[str, tuple[str, ...]] = {
    HOPPER: ("NVIDIA H100", "NVIDIA H200", "NVIDIA H20", "NVIDIA H800", "NVIDIA GH200"),
    BLACKWELL: ("NVIDIA B100", "NVIDIA B200", "NVIDIA B300", "NVIDIA GB200", "NVIDIA GB300"),
}
"""How the names of a generation begin; Blackwell's are those of compute capability 10."""


BEYOND_HOPPER_BYTES = 160 * 2**30
"""No Hopper has this much: a memory that was typed in then is taken for a Blackwell's."""


def generation(device: DeviceSpec) -> str:
    """The generation of `device`."""
    if device.source == "typed in" and device.memory_bytes >= BEYOND_HOPPER_BYTES:
        return BLACKWELL
    return next((name for name, starts in STARTS.items() if device.name.startswith(starts)), OTHER)
