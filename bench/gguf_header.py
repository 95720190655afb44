"""The time to read the header of a GGUF file with a large vocabulary.

    python bench/gguf_header.py [--words 128000]

Writes a file with that many words and merges (and no weights) with the gguf package, reads it, and prints the median.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import gguf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from calc.sources.gguf import read_header


def write(path: Path, words: int) -> None:
    """A header as a chat model's: words, scores, types, merges."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(32)
    writer.add_token_list([f"token{i}" for i in range(words)])
    writer.add_token_scores([0.0] * words)
    writer.add_token_types([1] * words)
    writer.add_token_merges([f"to ken{i}" for i in range(words)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=128_000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        write(path, args.words)
        times = []
        for _ in range(args.repeats):
            start = time.perf_counter()
            read_header(path)
            times.append(time.perf_counter() - start)
    print(f"{args.words:,} words: {statistics.median(times) * 1e3:.0f} ms (median of {args.repeats})")


if __name__ == "__main__":
    main()
