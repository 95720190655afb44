"""The memory that a server budgets with: what PyTorch reports of a device, from logs; else said to be assumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calc.servers.budget import visible_bytes
from calc.sources.catalog import devices, find_device, manual_device

GIB = 2**30
REPORTED = Path(__file__).parents[3] / "bench" / "devices_reported.json"


@pytest.mark.parametrize(
    ("key", "gib"),
    [
        ("h200-sxm", 139.81), ("h100-sxm", 79.19), ("a100-80gb", 79.25), ("h100-nvl", 93.10), ("mi300x", 191.98),
        ("mi355x", 287.98), ("gb10", 121.69), ("v100-sxm2-32gb", 31.73), ("v100-pcie-16gb", 15.77),
        ("b300-sxm", 267.69), ("rtx-3090", 23.69),
    ],
)  # fmt: skip
def test_memory_in_logs(key: str, gib: float) -> None:
    assert visible_bytes(find_device(key))[0] / GIB == pytest.approx(gib, abs=0.001)


def test_what_is_not_known_is_said() -> None:
    for entry in devices().values():
        seen, said = visible_bytes(entry.spec)
        if entry.reported_memory_bytes is not None:
            assert seen == entry.reported_memory_bytes or "CUDA reports" in entry.reading
            assert entry.reported_source
        elif entry.vendor == "NVIDIA" and "CUDA reports" not in entry.reading:
            assert "is assumed" in str(said)
        elif "on the label" in entry.reading:
            assert "the nominal size is used" in str(said)


def test_a_memory_that_was_typed_in_is_taken() -> None:
    edited = replace(find_device("h200-sxm"), name="NVIDIA H200 SXM (edited)", memory_bytes=100 * GIB, reading="typed")
    assert visible_bytes(edited) == (100 * GIB, None)
    assert visible_bytes(manual_device(80 * GIB)) == (80 * GIB, None)


def test_the_catalog_holds_what_was_collected() -> None:
    collected = json.loads(REPORTED.read_text())
    del collected["about"]
    held = {key: entry for key, entry in devices().items() if entry.reported_memory_bytes is not None}
    assert set(held) == set(collected)
    for key, (gib, source) in collected.items():
        assert (held[key].reported_memory_bytes, held[key].reported_source) == (int(gib * GIB), source)
