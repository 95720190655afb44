"""The time of a sweep of estimates: 100 devices, 100 batches, 3 formats, as arrays and as one estimate per point.

    .venv/bin/python bench/estimate_sweep.py [--rounds 5]

Reports CPU seconds: the sweep has one thread. Also computes some of the points one at a time, which must give the same
results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace

from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.sources.catalog import devices, find_model
from calc.speed.asked import Asked, Load
from calc.speed.estimate import estimate
from calc.speed.room import room_of
from calc.speed.sweep import Block, sweep

N_DEVICES, BATCHES, WEIGHTS = 100, range(1, 101), ("bf16", "fp8", "int4")
SINGLE = 50


def studied(model: str) -> tuple[list[Study], list[Study]]:
    """The model in each format, and that on each device."""
    known = [d.spec for d in devices().values() if d.bandwidth_bytes_per_s and d.peak_flops_per_s.get("bf16")]
    one = Study(model=find_model(model), device=known[0], policy=Policy.REPLICATED)
    formats = [replace(one, weight_format=FORMATS[name]) for name in WEIGHTS]
    return formats, [replace(one, device=device) for device in known[:N_DEVICES]]


def measured(formats: list[Study], on: list[Study], load: Load, rounds: int) -> tuple[float, float, list[Block]]:
    """Median seconds of the arrays, and of an estimate for every point; the blocks."""
    arrays, points, blocks = [], [], list[Block]()
    for _ in range(rounds):
        start = time.process_time()
        blocks = sweep(formats, [study.device for study in on], Asked(load=load), BATCHES)
        arrays.append(time.process_time() - start)
        for block in blocks:
            for _ in block.points():
                pass
        points.append(time.process_time() - start)
    return statistics.median(arrays), statistics.median(points), blocks


def one_by_one_s(blocks: list[Block]) -> float:
    """Seconds of one estimate alone, which must say what the sweep says."""
    sample = [(block, point) for block in blocks[:: len(blocks) // SINGLE + 1] for point in list(block.points())[-1:]]
    start = time.process_time()
    for block, point in sample:
        alone = estimate(block.study, point.asked, room_of(block.study, point.asked))
        both = alone.tpot, point.tpot
        assert (both[0] is None) is (both[1] is None)
        assert both[0] is None or both[1] is None or abs(both[0].mid / both[1].mid - 1) < 1e-9
    return (time.process_time() - start) / len(sample)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"load {os.getloadavg()[0]:.1f}\n\n| model, load | points | arrays | every point | one estimate |")
    print("|---|---|---|---|---|")
    for model in ("llama-3-8b", "qwen3-30b-a3b"):
        formats, on = studied(model)
        for load in (Load.STATIC, Load.CLOSED):
            arrays_s, points_s, blocks = measured(formats, on, load, rounds)
            n = len(blocks) * len(BATCHES)
            alone_ms = 1e3 * one_by_one_s(blocks)
            print(f"| {model}, {load} | {n:,} | {arrays_s:.2f} s | {points_s:.2f} s | {alone_ms:.1f} ms |")


if __name__ == "__main__":
    main()
