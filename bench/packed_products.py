"""Products of packed weights with one vector, one thread, a matrix that fits in the cache: GB/s of each format.

    python bench/packed_products.py [--rows 512] [--cols 2048] [--calls 4000]

The fastest of many calls: what the instructions of a product take, which other work on the machine does not change.
"""

import argparse
import ctypes
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout
from engine.compiled.build import build_library
from engine.compiled.matrices import CompiledProduct, Scratch
from engine.weights.formats import Packed, fill, packed_bytes
from engine.weights.panels import FORMS, PANEL_FORMS, Groups, PanelForm, Piece


def made(form: PanelForm, rows: int, cols: int) -> Packed:
    """A matrix of random bits."""
    kind, draw = FORMS[form], torch.Generator().manual_seed(0)
    bits = torch.randint(1 << (4 if kind.table else kind.low + kind.high), (rows, cols), generator=draw)
    scales = torch.full((rows, kind.numbers(cols)), 0.01, dtype=torch.float16)
    return fill([Piece(rows, lambda: Groups(bits.to(torch.uint8), scales))], form, rows, cols)


def fastest_s(part: Packed, library: ctypes.CDLL, n_calls: int) -> float:
    """Seconds of the fastest of ``n_calls`` products."""
    product, x = CompiledProduct([part], library, Scratch()), torch.randn(1, part.cols)
    times = []
    for _ in range(n_calls):
        start = time.perf_counter()
        product(x)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--cols", type=int, default=2048)
    parser.add_argument("--calls", type=int, default=4000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    library = build_library()
    for form in PANEL_FORMS:
        part = made(form, options.rows, options.cols)
        print(f"{form:10} {packed_bytes(part) / fastest_s(part, library, options.calls) / 1e9:6.1f} GB/s")


if __name__ == "__main__":
    main()
