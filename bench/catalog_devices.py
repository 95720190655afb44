"""Records of assets/devices.json: devices.csv of the data folder and the tables beside this file.

devices_more.csv has the same columns. mac_memory.csv: one Apple chip per row with every memory size of Macs that
have it; the size in devices.csv keeps the plain name of the chip. devices_reported.json: the memory that PyTorch
reported on real devices.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catalog_models import rows

from calc.units import format_gib

HERE = Path(__file__).parent

# Memory as CUDA reported it to a server that printed it, GiB; where from.
CUDA_GIB = {
    "H100 SXM": (79.19, "vLLM's start-up log"),
    "H200 SXM": (139.81, "vLLM's start-up log"),
    "A100 SXM 40GB": (39.5, "vLLM's start-up log"),
}
IDS = {
    "A100 SXM 80GB": "a100-80gb",
    "A100 SXM 40GB": "a100-40gb",
    "RTX PRO 6000 Blackwell (Server)": "rtx-pro-6000",
    "GB200 (per GPU)": "gb200",
    "GB300 (per GPU)": "gb300",
    "Gaudi 3 (OAM)": "gaudi-3",
    "TPU v6e (Trillium)": "tpu-v6e",
    "TPU7x (Ironwood)": "tpu7x",
    "GB10 (DGX Spark)": "gb10",
    "Trainium (1)": "trainium1",
    "A10 PCIe": "a10",
}
ALIASES: dict[str, tuple[str, ...]] = {
    "a100-80gb": ("a100-sxm-80gb", "a100-sxm4-80gb", "a100-80g"),
    "a100-40gb": ("a100-sxm-40gb", "a100-sxm4-40gb"),
    "h100-sxm": ("h100-80gb", "h100-sxm5", "h100-sxm-80gb", "h100-80gb-hbm3"),
    "h100-pcie": ("h100-pcie-80gb",),
    "h200-sxm": ("h200-141gb",),
    "rtx-pro-6000": ("rtx-6000-blackwell",),
    "rtx-a6000": ("a6000",),
    "gb10": ("dgx-spark",),
    "tpu-v6e": ("trillium",),
    "tpu7x": ("ironwood", "tpu-v7"),
    "trainium1": ("trn1",),
    "trainium2": ("trn2",),
    "trainium3": ("trn3",),
    "inferentia2": ("inf2",),
    "t4": ("tesla-t4",),
    "p40": ("tesla-p40",),
    "p100-pcie-16gb": ("tesla-p100", "p100"),
    "h20-141gb": ("h20-3e",),
    "apple-m1-max": ("apple-m1-max-64gb",),
    "apple-m1-ultra": ("apple-m1-ultra-128gb",),
    "apple-m2-max": ("apple-m2-max-96gb",),
    "apple-m2-ultra": ("apple-m2-ultra-192gb",),
    "apple-m3-max": ("apple-m3-max-128gb",),
    "apple-m3-ultra": ("apple-m3-ultra-512gb",),
    "apple-m4-max": ("apple-m4-max-128gb",),
    "apple-m4-pro": ("apple-m4-pro-64gb",),
    "ryzen-ai-max-395": ("strix-halo", "radeon-8060s"),
}
PEAKS = {
    "bf16": "fp16_bf16_dense_tflops",
    "fp8": "fp8_dense_tflops",
    "int8": "int8_dense_tops",
    "fp4": "fp4_dense_tflops",
    "fp32": "fp32_tflops",
}
NO_BF16 = ("V100", "T4", "P100", "MI50")
APPLE = "apple-"
GEFORCE = r"rtx-([345]0[5-9]0.*)"


COLLECTED = " (find_string)"
"""A mark of how devices.csv was put together, which tells a reader nothing."""
MAC_NOTE = (
    "fp16 runs at the fp32 rate on the GPU; usable = macOS's default limit (llama.cpp discussion 2182; raise it with "
    "iogpu.wired_limit_mb; macOS 26 was seen to give more: 107.52 of 128 GiB)."
)
WIRED_LARGE, WIRED_SMALL, SMALL_GB = 3 / 4, 2 / 3, 32
"""What macOS lets the GPU have by default: two thirds up to 32 GB, three quarters above (llama.cpp discussion 2182)."""


def device_records(data: Path) -> Iterator[dict[str, Any]]:
    """Records of assets/devices.json."""
    for row in _all_rows(data):
        name = row["name"]
        key = IDS.get(name) or re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\(.*\)", "", name).lower()).strip("-")
        label = round(float(row["memory_gb"]) * 10**9)
        memory, reading = _memory(row, label)
        link = _number(row["interconnect_bidir_gb_s"])
        notes = row["conflicts_and_notes"].strip()
        if name.startswith(NO_BF16):
            notes = f"16-bit peak is fp16: no bf16 in hardware. {notes}"
        short = re.fullmatch(GEFORCE, key)
        usual = (short[1], f"geforce-{key}") if short else ()
        own = () if _slug(name) == key else (_slug(name),)
        if key.startswith(APPLE):
            usual = tuple(name.removeprefix(APPLE) for name in (key, *ALIASES.get(key, ())))
        aliases = tuple(dict.fromkeys((*ALIASES.get(key, ()), *usual, *own)))
        yield {
            "id": key,
            "name": f"{row['vendor']} {name}" if not name.startswith(row["vendor"]) else name,
            "vendor": row["vendor"],
            "aliases": list(aliases),
            "label_bytes": label,
            "memory_bytes": memory,
            "reading": reading,
            "bandwidth_bytes_per_s": _scaled(row["memory_bandwidth_gb_s"], 10**9),
            "peak_flops_per_s": {d: v for d, c in PEAKS.items() if (v := _scaled(row[c], 10**12)) is not None},
            "interconnect": row["interconnect"] or None,
            "interconnect_bytes_per_s": None if link is None else link * 10**9 / 2,
            "power_w": round(power) if (power := _number(row["tdp_w"])) else None,
            "source": "; ".join(filter(None, (row["source"], row["second_source"]))).replace(COLLECTED, ""),
            "confidence": row["confidence"],
            "notes": notes,
            **_reported(key),
        }


def _all_rows(data: Path) -> list[dict[str, str]]:
    """All tables in turn, Apple's devices together: by chip, then by memory."""
    table = [*rows(data / "devices.csv"), *rows(HERE / "devices_more.csv"), *_macs()]
    apple = [row for row in table if row["vendor"] == "Apple"]
    apple.sort(key=lambda row: (re.sub(r" (\d+GB )?\(.*", "", row["name"]), int(row["memory_gb"])))
    first = next(i for i, row in enumerate(table) if row["vendor"] == "Apple")
    others = [row for row in table if row["vendor"] != "Apple"]
    return [*others[:first], *apple, *others[first:]]


def _macs() -> Iterator[dict[str, str]]:
    """mac_memory.csv as rows of devices.csv, one per memory size."""
    for chip in rows(HERE / "mac_memory.csv"):
        for size in map(int, chip["memory_gb"].split()):
            usable = size * (WIRED_SMALL if size <= SMALL_GB else WIRED_LARGE)
            yield {
                **dict.fromkeys(("fp8_dense_tflops", "int8_dense_tops", "fp4_dense_tflops"), ""),
                "name": f"Apple {chip['chip']} {size}GB ({chip['gpu_cores']}-core GPU)",
                "vendor": "Apple",
                "memory_gb": str(size),
                "memory_usable_gib": f"{usable:.2f}",
                "memory_bandwidth_gb_s": chip["memory_bandwidth_gb_s"],
                "fp16_bf16_dense_tflops": chip["fp16_tflops"],
                "fp32_tflops": chip["fp16_tflops"],
                "interconnect": "unified memory",
                "interconnect_bidir_gb_s": "",
                "tdp_w": "",
                "source": chip["source"],
                "second_source": "",
                "confidence": chip["confidence"],
                "conflicts_and_notes": f"{MAC_NOTE} {chip['notes']}".strip(),
            }


def _reported(key: str) -> dict[str, Any]:
    """Bytes as torch.cuda reports them and who says so; {} where no log is known."""
    known = json.loads((HERE / "devices_reported.json").read_text()).get(key)
    return {} if known is None else {"reported_memory_bytes": int(known[0] * 2**30), "reported_source": known[1]}


def _memory(row: dict[str, str], label: int) -> tuple[int, str]:
    """Bytes to calculate with, and how they were read: what CUDA or the driver reports, else the label x 10^9."""
    printed = f"the label says {label // 10**9} GB"
    usable = _number(row["memory_usable_gib"])
    if row["name"] in CUDA_GIB:
        gib, where = CUDA_GIB[row["name"]]
        return int(gib * 2**30), f"{gib} GiB as CUDA reports it ({where}; the driver shows {usable} GiB); {printed}"
    if usable is None:
        return label, f"{label // 10**9} GB on the label, read as {label // 10**9} x 10^9 B = {format_gib(label)}"
    who = {"NVIDIA": "as the driver shows it", "Apple": "as macOS lets the GPU have by default"}
    return int(usable * 2**30), f"{usable} GiB {who.get(row['vendor'], 'as documented')}; {printed}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None


def _scaled(text: str, scale: int) -> float | None:
    number = _number(text)
    return None if number is None else float(f"{number * scale:.6g}")
