"""The ridge that intensities are compared with: the device's own, or those of common devices if it has none."""

from __future__ import annotations

from dataclasses import dataclass

from calc.model.study import DeviceSpec

COMMON = (("A100", "a100-80gb"), ("H100", "h100-sxm"))
"""Well-known 80 GB devices, by their catalog names."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """FLOP per byte at which a device's compute and bandwidth balance (bf16). `common`: not from the requested
    device."""

    name: str
    value: float
    common: bool = False


def ridges_of(device: DeviceSpec) -> tuple[Ridge, ...]:
    """The ridge of `device`, or those of common devices if its bandwidth or peak is unknown."""
    if (own := device.ridge()) is not None:
        return (Ridge(device.name, own),)
    from calc.sources.catalog import devices

    found = ((short, devices()[name].spec.ridge()) for short, name in COMMON)
    return tuple(Ridge(f"{short} 80 GB", value, common=True) for short, value in found if value is not None)
