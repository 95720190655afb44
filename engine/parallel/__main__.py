"""One rank, as `engine.parallel.launch` starts it."""

import sys

from engine.parallel.launch import run_rank

if __name__ == "__main__":
    path, dtype, device, threads = sys.argv[1:]
    sys.exit(run_rank(path, dtype, device, int(threads)))
