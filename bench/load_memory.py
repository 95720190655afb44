"""Time and memory of loading a model and reading a prompt, in a process of its own, against what is predicted.

    python bench/load_memory.py MODEL [--dtype auto] [--prompt-tokens 128]

Memory is resident memory above that of the process with torch imported: after loading, and the highest of all. The
prediction is the weights as they are held and the cache.
"""

import argparse
import resource
import time
from pathlib import Path

import torch

from engine.checkpoint import load_checkpoint
from engine.compiled.step import attach


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def highest_bytes() -> int:
    """The most it ever was."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    options = parser.parse_args()
    before, start = resident_bytes(), time.perf_counter()
    model = load_checkpoint(options.model, dtype=options.dtype)
    load_s, loaded, highest = time.perf_counter() - start, resident_bytes(), highest_bytes()
    attach(model.decoder, "auto").wait()
    cache = model.decoder.new_cache(2 * options.prompt_tokens)
    model.decoder.forward(torch.ones(1, options.prompt_tokens, dtype=torch.int64), cache, last_only=True)
    predicted = model.weight_bytes + cache.nbytes
    print(f"{options.model.name} {options.dtype}: loaded in {load_s:.2f} s; predicted {predicted / 1e6:.0f} MB")
    print(f"after loading {(loaded - before) / 1e6:.0f} MB, highest until then {(highest - before) / 1e6:.0f} MB")
    peak = highest_bytes() - before
    print(f"highest with the prompt {peak / 1e6:.0f} MB: {peak / predicted:.2f} of the prediction")


if __name__ == "__main__":
    main()
