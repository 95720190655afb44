"""The ridge that intensities are held against: the device's own, or those of common devices where it has none."""

from __future__ import annotations

from dataclasses import dataclass

from calc.model.study import DeviceSpec

COMMON = (("A100", "a100-80gb"), ("H100", "h100-sxm"))
"""Devices of 80 GB that most people know, by their names in the catalog."""


@dataclass(frozen=True, slots=True)
class Ridge:
    """FLOP per byte at which a device's compute and bandwidth balance (bf16). `common`: not of the device asked for."""

    name: str
    value: float
    common: bool = False


def ridges_of(device: DeviceSpec) -> tuple[Ridge, ...]:
    """The ridge of `device`; of common ones where its bandwidth or peak is not known."""
    if (own := device.ridge()) is not None:
        return (Ridge(device.name, own),)
    from calc.sources.catalog import devices

    found = ((short, devices()[name].spec.ridge()) for short, name in COMMON)
    return tuple(Ridge(f"{short} 80 GB", value, common=True) for short, value in found if value is not None)
