"""GPU generations by device name: a server's choice of kernels depends on them."""

from __future__ import annotations

from collections.abc import Mapping

from calc.model.study import DeviceSpec

HOPPER, BLACKWELL, OTHER = "Hopper", "Blackwell", "other"
STARTS: Mapping[str, tuple[str, ...]] = {
    HOPPER: ("NVIDIA H100", "NVIDIA H200", "NVIDIA H20", "NVIDIA H800", "NVIDIA GH200"),
    BLACKWELL: ("NVIDIA B100", "NVIDIA B200", "NVIDIA B300", "NVIDIA GB200", "NVIDIA GB300"),
}
"""Name prefixes of each generation; Blackwell means compute capability 10."""


BEYOND_HOPPER_BYTES = 160 * 2**30
"""No Hopper has this much memory: a typed-in memory of this size is taken for a Blackwell."""


def generation(device: DeviceSpec) -> str:
    """The generation of `device`."""
    if device.source == "typed in" and device.memory_bytes >= BEYOND_HOPPER_BYTES:
        return BLACKWELL
    return next((name for name, starts in STARTS.items() if device.name.startswith(starts)), OTHER)


BEFORE_ADA = (
    "NVIDIA A2", "NVIDIA A10", "NVIDIA A16", "NVIDIA A30", "NVIDIA A40", "NVIDIA A100", "NVIDIA A800",
    "NVIDIA RTX A", "NVIDIA RTX 30", "NVIDIA RTX 20", "NVIDIA Titan", "NVIDIA T4", "NVIDIA V100", "NVIDIA P",
    "NVIDIA Tesla", "NVIDIA Quadro", "NVIDIA Jetson AGX Orin", "NVIDIA Jetson Orin",
)  # fmt: skip
"""Name prefixes of devices with compute capability below 8.9, which have no fp8 instructions."""
VOLTA = ("NVIDIA V100", "NVIDIA Titan V", "NVIDIA Tesla V100")


def lacks_fp8(device: DeviceSpec) -> bool:
    """Whether the device has no instructions for fp8 (E4M3)."""
    return device.name.startswith(BEFORE_ADA)


def is_volta(device: DeviceSpec) -> bool:
    """Whether the device has compute capability 7.0: FlashInfer does not run on it."""
    return device.name.startswith(VOLTA)
