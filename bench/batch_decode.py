"""Aggregate decode speed against batch: measured, and the rise that calc's roofline predicts from this machine.

    python bench/batch_decode.py MODEL [--dtype bfloat16] [--batches 1,2,4,8,16,32] [--rounds 5]

A decode step reads the weights once for all rows, so tokens a second rise with the batch until arithmetic binds.
Prediction: the slower of bytes over bandwidth (fitted to the measured batch 1) and FLOPs over the rate of the
matrix products of a prefill, both measured here. Batches alternate within a round; figures are medians.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from calc.roofline import bound_s
from engine.checkpoint import load_checkpoint
from engine.compiled.step import attach
from engine.formats import held_bytes
from engine.model import Decoder


def decode_s(decoder: Decoder, batch: int, n_context: int, n_new: int) -> float:
    """Seconds of one step at that batch."""
    ids = torch.randint(1000, 20_000, (batch, n_context), generator=torch.Generator().manual_seed(7))
    cache = decoder.new_cache(n_context + n_new + 1, batch)
    ids = decoder.forward(ids, cache, last_only=True).argmax(-1)
    start = time.perf_counter()
    for _ in range(n_new):
        ids = decoder.forward(ids, cache, last_only=True).argmax(-1)
    return (time.perf_counter() - start) / n_new


def prefill_rate(decoder: Decoder, n_tokens: int) -> float:
    """Tokens a second of one long prompt, where arithmetic binds."""
    ids = torch.randint(1000, 20_000, (1, n_tokens), generator=torch.Generator().manual_seed(8))
    start = time.perf_counter()
    decoder.forward(ids, decoder.new_cache(n_tokens))
    return n_tokens / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    decoder = load_checkpoint(options.model, dtype=options.dtype).decoder
    attach(decoder, "on")
    batches = [int(text) for text in options.batches.split(",")]
    times: dict[int, list[float]] = {batch: [] for batch in batches}
    rates = []
    for number in range(options.rounds + 1):
        rate = prefill_rate(decoder, 256)
        for batch in batches:
            seconds = decode_s(decoder, batch, options.context, options.new_tokens)
            if number:  # the first round warms up
                times[batch].append(seconds)
        rates += [rate] if number else []
    report(
        decoder, {batch: statistics.median(each) for batch, each in times.items()}, statistics.median(rates), options
    )


def report(decoder: Decoder, seconds: dict[int, float], rate: float, options: argparse.Namespace) -> None:
    """A line a batch: measured and predicted tokens a second, both as rises over the first."""
    first = min(seconds)
    row_bytes = decoder.new_cache(options.context + options.new_tokens // 2).nbytes
    weights = held_bytes(decoder)
    bandwidth = (weights + first * row_bytes) / seconds[first]
    print(
        f"{options.model.name} {options.dtype}: weights {weights / 1e6:.0f} MB, cache of a row {row_bytes / 1e6:.1f} MB"
    )
    print(f"bandwidth of the step {bandwidth / 1e9:.1f} GB/s; arithmetic binds at {rate:.0f} tokens/s")
    print(f"{'batch':>5} {'tok/s':>8} {'rise':>6} {'predicted':>10}")
    for batch, each in seconds.items():
        # Arithmetic in units of a token's: `rate` is how many of them the machine does in a second.
        moved = weights + batch * row_bytes
        predicted = bound_s(moved_bytes=moved, flops=batch, bytes_per_s=bandwidth, flops_per_s=rate)
        rise, expected = (batch / t / (first / seconds[first]) for t in (each, predicted))
        print(f"{batch:5} {batch / each:8.0f} {rise:6.1f} {expected:10.1f}")


if __name__ == "__main__":
    main()
