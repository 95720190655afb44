"""The engine against llama.cpp on a tiny random model of every GGUF architecture that the engine reads.

    python bench/gguf_architectures.py [NAME ..] [--llama-python PYTHON] [--golden]

transformers builds each model with random weights seeded by their names; it is written as by llama.cpp's conversion
(tests/engine/gguf_conversion.py). llama.cpp reads a text of 37 tokens in float32, the engine in float64. For each it
prints the largest difference of the logits, their standard deviation, and the share of positions with the same
likeliest token. The remaining differences are rounding and, for models with GELU, llama.cpp's float16 table of it.
--golden writes llama.cpp's logits to tests/engine/weights/llama_cpp_logits.json, which the tests compare with.

llama.cpp is built once, as bench/engine_speed.py does it; exit code 1 if a difference is more than rounding.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, its bench and tests included
from bench import speed_setup
from bench.llama_process import LlamaEndedError, LlamaProcess
from engine.errors import EngineError
from engine.weights.checkpoint import load_checkpoint
from tests.engine.gguf_conversion import CASES, GOLDEN, IDS, KEPT, Case, converted, save_named, tolerance


class Compared:
    """Both programs' logits of a file (T, V), or why there are none."""

    def __init__(self, case: Case, llama: LlamaProcess) -> None:
        self.theirs: Tensor | None = None
        self.ours: Tensor | None = None
        self.failed = ""
        with tempfile.TemporaryDirectory() as folder:
            save_named(case, Path(folder))
            file = converted(Path(folder), case)
            self._run(file, llama)

    def _run(self, file: Path, llama: LlamaProcess) -> None:
        answer = llama.ask(do="logits", path=str(file), ids=IDS)
        if "failed" in answer:
            self.failed = str(answer["failed"])
            return
        self.theirs = torch.tensor(answer["logits"], dtype=torch.float64)
        try:
            self.ours = load_checkpoint(file, dtype="float64").decoder.forward(torch.tensor([IDS]))[0]
        except EngineError as error:
            self.failed = str(error)

    def difference(self) -> float | None:
        """The largest one."""
        return None if self.ours is None or self.theirs is None else (self.ours - self.theirs).abs().max().item()

    def row(self) -> str:
        """Numbers of a line."""
        if self.ours is None or self.theirs is None:
            return self.failed
        same = (self.ours.argmax(-1) == self.theirs.argmax(-1)).double().mean().item()
        return f"{self.difference():10.1e} {self.theirs.std().item():8.2f} {same:8.0%}"


def read_options() -> argparse.Namespace:
    """Options, with llama.cpp's interpreter filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--llama-python", type=Path, help="an interpreter that has llama-cpp-python already")
    parser.add_argument("--golden", action="store_true", help="keep llama.cpp's logits for the tests")
    options = parser.parse_args()
    if unknown := set(options.name) - set(CASES):
        parser.error(f"{', '.join(sorted(unknown))}: no such model; use {', '.join(CASES)}")
    if options.llama_python is None:
        options.llama_python = speed_setup.llama_python(speed_setup.cache_folder())
    return options


def compared(case: Case, python: Path) -> Compared | str:
    """One model, in a process of its own: llama.cpp ends it where a file is not as it takes for granted."""
    llama = LlamaProcess(python)
    try:
        return Compared(case, llama)
    except LlamaEndedError as error:
        return str(error)
    finally:
        llama.close()


def main() -> int:
    """Print the table; 1 where something differs."""
    options = read_options()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.disable(logging.WARNING)
    about = LlamaProcess(options.llama_python)
    print(f"llama-cpp-python {about.ask(do='about')['version']}, torch {torch.__version__}")
    about.close()
    print(f"{'model':20} {'architecture':14} {'difference':>10} {'spread':>8} {'same':>8}")
    wrong, golden = 0, json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for name in options.name or CASES:
        case = CASES[name]
        both = compared(case, options.llama_python)
        print(f"{name:20} {case.architecture:14} {both if isinstance(both, str) else both.row()}", flush=True)
        difference = None if isinstance(both, str) else both.difference()
        wrong += difference is None or difference > tolerance(case)
        if not isinstance(both, str) and both.theirs is not None:
            golden[name] = [[float(f"{value:.6g}") for value in both.theirs[at].tolist()] for at in KEPT]
    if options.golden:
        lines = [f"{json.dumps(name)}: {json.dumps(golden[name])}" for name in CASES if name in golden]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{wrong} of {len(options.name or CASES)} differ by more than rounding")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
