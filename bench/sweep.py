"""How many points per second a sweep computes, and how many rows per second it writes.

    .venv/bin/python bench/sweep.py [--rounds 5]

Four sweeps: one large block, a windowed model, many small blocks (every TP, format and device), and one whose numbers
exceed 64 bits. Evaluated means every column of every point; written means as CSV or JSON text to a file. Prints
medians in millions per second, and checks a sample of points against memory_report.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from calc.fit.axes import Axes
from calc.fit.memory import memory_report
from calc.fit.sweep import Block, csv_rows, json_rows, sweep
from calc.model.storage import FORMATS
from calc.model.study import Study
from calc.sources.catalog import devices, find_model, manual_device

BF16 = FORMATS["bf16"]


def cases() -> dict[str, Axes]:
    """The sweeps by name."""
    large = Axes(
        models=(find_model("llama-3-8b"),),
        devices=(manual_device(80 * 10**9),),
        tps=(1,),
        contexts=tuple(range(64, 64 * 2001, 64)),
        batches=tuple(range(1, 1001)),
        weight_formats=(BF16,),
        kv_formats=(BF16,),
    )
    formats = tuple(FORMATS[name] for name in ("bf16", "fp8", "q8_0", "int4"))
    small = replace(
        large,
        models=tuple(map(find_model, ("llama-3-8b", "llama-3.1-70b", "mistral-7b-v0.1"))),
        devices=tuple(entry.spec for entry in devices().values()),
        tps=(1, 2, 4, 8),
        contexts=tuple(range(1024, 32 * 1024 + 1, 1024)),
        batches=tuple(range(1, 33)),
        weight_formats=formats,
        kv_formats=formats,
    )
    return {
        "one large block": large,
        "windowed, q8_0 cache, TP 3": replace(
            large, models=(find_model("mistral-7b-v0.1"),), kv_formats=(FORMATS["q8_0"],), tps=(3,)
        ),
        "many small blocks": small,
        "beyond 64 bits": replace(large, contexts=(*large.contexts[:200], 10**12), batches=(*large.batches, 10**9)),
    }


def check(axes: Axes, samples: int = 50) -> None:
    """Compare points drawn at random with memory_report. Raises AssertionError."""
    chosen = random.Random(1)
    block = chosen.choice(list(sweep(replace(axes, devices=axes.devices[:2]))))
    model = next(m for m in axes.models if m.name == block.model)
    device = next(d for d in axes.devices if d.name == block.device)
    weights = next(f for f in axes.weight_formats if f is not None and f.name == block.weight_format)
    cache = next(f for f in axes.kv_formats if f.name == block.kv_format)
    for _ in range(samples):
        i = chosen.randrange(len(block.contexts))
        study = Study(
            model=model,
            device=device,
            context=int(block.contexts[i]),
            weight_format=weights,
            kv_format=cache,
            tps=(block.tp,),
            policy=axes.policy,
        )
        (row,) = memory_report(study).tp
        assert int(block.max_batch[i]) == row.max_batch, (block.model, study.context)
        assert block.weight_bytes == row.weight_bytes_per_gpu


def evaluated(axes: Axes) -> int:
    """Work out every point and drop it."""
    return sum(block.points for block in sweep(axes))


def written(rows: Callable[[Block], object]) -> Callable[[Axes], int]:
    """Write every point as text."""

    def run(axes: Axes) -> int:
        with open(os.devnull, "w", encoding="utf-8") as out:
            points = 0
            for block in sweep(axes):
                out.writelines(rows(block))  # type: ignore[arg-type]
                points += block.points
        return points

    return run


def rate(run: Callable[[Axes], int], axes: Axes, rounds: int) -> float:
    """Median points per second."""
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        points = run(axes)
        rates.append(points / (time.perf_counter() - start))
    return statistics.median(rates)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"{'sweep':28} {'points':>12} {'evaluated':>12} {'CSV':>8} {'JSON':>8}   millions per second")
    for name, axes in cases().items():
        check(axes)
        rates = [rate(run, axes, rounds) / 1e6 for run in (evaluated, written(csv_rows), written(json_rows))]
        print(f"{name:28} {axes.points:12,} {rates[0]:12.1f} {rates[1]:8.2f} {rates[2]:8.2f}")


if __name__ == "__main__":
    main()
