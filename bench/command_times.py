"""The time of each kvscope command on this machine, for whole processes from start to end: the table of the README.

    .venv/bin/python bench/command_times.py [--rounds 3]

Prints a Markdown table of medians, with the processor and the load of the machine (a busy machine takes longer).
Commands that measure run once, because they compute medians themselves.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from calc.units import format_duration_s
from engine.machine import cpu_name, usable_cores

ROOT = Path(__file__).parents[1]
CALCULATED = (
    "memory",
    "memory --model deepseek-v3 --device h200-sxm --tp 8,16",
    "memory --policy vllm --device h100-sxm",
    "intensity",
    "solve --model qwen3-32b --device l40s --find all",
    "sweep --models llama-3-8b,qwen3-8b --contexts 1k..128k --batches 1..256 --kv-formats bf16,fp8",
    "models",
    "report --no-measure --output {folder}/r.md",
)
MEASURED = (
    "generate --prompt 'The king' --max-new-tokens 64",
    "evaluate",
    "kv-evaluate",
    "benchmark",
    "batch",
    "formats",
    "report --output {folder}/r.md",
    "--no-tui",
)


def process_s(command: str, folder: str) -> float:
    """Wall time of one command."""
    words = shlex.split(command.format(folder=folder))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tui", *words], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each calculated command (default 3)")
    rounds = parser.parse_args().rounds
    print(f"{cpu_name()}, {usable_cores()} cores, load {os.getloadavg()[0]:.1f}\n\n| command | time |\n|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for command in (*CALCULATED, *MEASURED):
            runs = [process_s(command, folder) for _ in range(rounds if command in CALCULATED else 1)]
            shown = command.replace("{folder}/", "")
            print(f"| `kvscope {shown}` | {format_duration_s(statistics.median(runs))} |", flush=True)


if __name__ == "__main__":
    main()
