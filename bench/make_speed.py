"""Writes assets/speed.json: the achieved rates of operators by device family, from fits to microbenchmarks.

The tables have one fit per device, engine and version: ``op_gemm.csv`` (products) and ``op_other.csv`` (attention,
experts, all-reduce), made from aiconfigurator's measurements. A constant is the median over a family's rows. Fits
with more than SLOW_US for an empty product mean that the engine lacks a kernel, and are left out.

    python bench/make_speed.py ../shared/data
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path

TARGET = Path(__file__).parent.parent / "assets" / "speed.json"
SOURCE = "median of fits to operator microbenchmarks, ai-dynamo/aiconfigurator systems/data @095f58a: {systems}"
SLOW_US = 20.0
FAMILIES = {
    "ampere": ["a100_sxm"],
    "ada": ["l40s"],
    "hopper": ["h100_sxm", "h200_sxm"],
    "blackwell": ["b200_sxm", "gb200"],
    "blackwell-ultra": ["b300_sxm", "gb300"],
    "rtx-blackwell": ["rtx_pro_6000_server"],
}
DEVICES = {
    "ampere": ["NVIDIA A100", "NVIDIA A10", "NVIDIA A30", "NVIDIA A40", "NVIDIA RTX 30", "NVIDIA RTX A"],
    "ada": ["NVIDIA L4", "NVIDIA RTX 40", "NVIDIA RTX 5000 Ada", "NVIDIA RTX 6000 Ada"],
    "hopper": ["NVIDIA H100", "NVIDIA H200", "NVIDIA H20", "NVIDIA H800", "NVIDIA GH200"],
    "blackwell": ["NVIDIA B100", "NVIDIA B200", "NVIDIA GB200"],
    "blackwell-ultra": ["NVIDIA B300", "NVIDIA GB300"],
    "rtx-blackwell": ["NVIDIA RTX PRO", "NVIDIA RTX 50"],
}
"""How the names of a family's devices begin. One device of each was measured; the others share its kernels."""
GEMM = {"bf16": "bfloat16", "fp8": "fp8", "fp4": "nvfp4"}
EXPERTS = {
    "bf16": "bfloat16 balanced",
    "fp8": "fp8_block balanced",
    "fp4": "nvfp4 balanced",
    "w4a16": "w4a16_mxfp4 balanced",
}
ATTENTION = {"bf16": "bfloat16", "fp8": "fp8"}
Rows = list[dict[str, str]]


def median(rows: Rows, column: str) -> float | None:
    """The median of a column's values; None where there are none."""
    values = [float(row[column]) for row in rows if row[column]]
    return round(statistics.median(values), 3) if values else None


def constants(rows: Rows) -> dict[str, float] | None:
    """t0, the share of the bandwidth and the share of the peak that the rows reach; None where there are no rows."""
    found = {"t0_us": median(rows, "t0_us"), "bandwidth": median(rows, "em"), "peak": median(rows, "ec")}
    return {name: value for name, value in found.items() if value is not None} if rows else None


def family(name: str, systems: list[str], gemm: Rows, other: Rows) -> dict[str, object]:
    """The record of a family."""

    def of(op: str, kind: str) -> Rows:
        return [row for row in other if row["op"] == op and row["sys"] in systems and row["dt"] == kind]

    products = [row for row in gemm if row["sys"] in systems and float(row["t0_us"]) < SLOW_US]
    by_kind = {
        "product": {name: constants([r for r in products if r["dt"] == kind]) for name, kind in GEMM.items()},
        "experts": {name: constants(of("moe", kind)) for name, kind in EXPERTS.items()},
        "decode_attention": {name: constants(of("gen", kind)) for name, kind in ATTENTION.items()},
        "prefill_attention": {"bf16": constants(of("ctx", "bf16"))},
    }
    links = {n: constants(of("allreduce", f"n={n} elems*2B")) for n in (2, 4, 8)}
    return {
        **{kind: {name: row for name, row in rows.items() if row} for kind, rows in by_kind.items()},
        "all_reduce": {
            str(n): {"t0_us": row["t0_us"], "bytes_per_s": round(row["bandwidth"] * 1e9)}
            for n, row in links.items()
            if row
        },
        "devices": DEVICES[name],
        "source": SOURCE.format(systems=", ".join(systems)),
    }


def main(folder: Path) -> None:
    """Write the asset."""
    gemm = list(csv.DictReader((folder / "op_gemm.csv").open()))
    other = list(csv.DictReader((folder / "op_other.csv").open()))
    records = {name: family(name, systems, gemm, other) for name, systems in FAMILIES.items()}
    document = {"about": "What operators reach, by device family; made by bench/make_speed.py", "families": records}
    TARGET.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{TARGET}: {len(records)} families, {TARGET.stat().st_size:,} B")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
