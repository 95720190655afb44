"""Predictions compared with measurements: decode steps and prompts of a model, by format, threads and compilation.

    python bench/predictions.py [--models bundled,smollm2,1b] [--dtypes float32,bfloat16,int8,int4] [--threads 1,2]
                                [--compile on,off] [--rounds 3] [--quick]

Every round times the model's own operators (`engine.measure.own_timer`) and then every step and prompt that is
predicted. With one thread, predictions and measurements both use CPU time, so that other processes do not count; with
more threads they use wall time, and the fastest fifth of the runs is compared. A row that misses the goal (15 % for
steps, 20 % for prompts) states the reason. The last lines are the share of rows within the goal.

smollm2 is SmolLM2-135M, which the tests fetch; 1b has the sizes of Llama-3.2-1B, and random weights.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout
from engine.compiled.attach import attach
from engine.machine import cpu_name, load_average, usable_cores
from engine.measure.own import Needs, OwnTimes
from engine.measure.own_plan import filled_cache, step_run
from engine.measure.own_timer import OwnTimer
from engine.measure.rates import prefill_chunk, probe
from engine.measure.turns import Turns
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.layers import Linear
from engine.model.shapes import parameter_shapes
from engine.text import duration, table
from engine.weights.checkpoint import load_checkpoint
from engine.weights.formats import FormatMaker, compute_dtype
from tests.engine.smollm2 import fetch
from tui.live.own_times import beyond, prompt_s, step_s, why

STEPS = ((1, 64), (1, 512), (1, 2000), (2, 128), (4, 128), (8, 256), (16, 128))
PROMPTS = (32, 128, 512, 1000)
WALL_TIMES = 20
"""As on a quiet machine the budget is one of computing, however long other processes make it."""
STEP_GOAL, PROMPT_GOAL = 0.15, 0.20
FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Case = tuple[str, int, int]
"""("step", rows, context) or ("prompt", tokens, 0)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One step or prompt."""

    case: Case
    measured_s: float
    predicted_s: float | None
    reason: str

    @property
    def off(self) -> float | None:
        """Predicted over measured, less one."""
        return None if self.predicted_s is None else self.predicted_s / self.measured_s - 1

    @property
    def kept(self) -> bool:
        """Whether it is within the goal."""
        goal = STEP_GOAL if self.case[0] == "step" else PROMPT_GOAL
        return self.off is not None and abs(self.off) <= goal


def main() -> None:
    """Print a table per model, dtype, threads and way, and how many rows kept the goal."""
    args = options()
    load = load_average()
    print(f"{cpu_name()}, {usable_cores()} cores, torch {torch.__version__}, load average {load or 0:.1f} at the start")
    kept: dict[str, list[bool]] = {"step": [], "prompt": []}
    for name in args.models.split(","):
        for dtype in args.dtypes.split(","):
            decoder = load_model(name, dtype)
            for compiled in (word == "on" for word in args.compile.split(",")):
                for threads in map(int, args.threads.split(",")):
                    head = f"{name} {dtype}, {'compiled' if compiled else 'layers'}, {threads} threads"
                    rows, own = measured(decoder, compiled=compiled, threads=threads, args=args)
                    show(head, rows, own)
                    for row in rows:
                        kept[row.case[0]].append(row.kept)
            del decoder
            gc.collect()
    for kind, goal in (("step", STEP_GOAL), ("prompt", PROMPT_GOAL)):
        if kept[kind]:
            print(f"{kind}s within {100 * goal:.0f} %: {sum(kept[kind])} of {len(kept[kind])}")


def options() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="bundled,smollm2,1b")
    parser.add_argument("--dtypes", default="float32,bfloat16,int8,int4")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--compile", default="off,on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer steps and prompts")
    return parser.parse_args()


def measured(decoder: Decoder, *, compiled: bool, threads: int, args: argparse.Namespace) -> tuple[list[Row], OwnTimes]:
    """All cases of one way to run a model, its own operators timed in the same rounds."""
    torch.set_num_threads(threads)
    decoder.decode_step = None
    if compiled:
        attach(decoder, "on")
    rates = probe(decoder)
    chunk = prefill_chunk(decoder, rates)
    timer = OwnTimer(
        decoder=decoder,
        needs=Needs(),
        chunk=chunk,
        flops_per_s=rates.matmul_flops_per_s if rates else 0.0,
        wall_times=WALL_TIMES,
    )
    clock = time.thread_time if threads == 1 else time.perf_counter
    turns = Turns(dict(cases(decoder, chunk, quick=args.quick)), clock=clock, each_s=0.05)
    for _ in range(1 + args.rounds):
        timer.round()
        with torch.inference_mode():
            turns.round()
    own = timer.times()
    assert own is not None
    return [row(case, turns, own) for case in turns.seconds], own


def cases(decoder: Decoder, chunk: int | None, *, quick: bool) -> Iterator[tuple[Case, Callable[[], object]]]:
    """The steps and prompts that are predicted, as runs."""
    most = decoder.config.max_positions - 1
    for rows, context in STEPS[:: 3 if quick else 1]:
        context = min(context, most)
        yield ("step", rows, context), step_run(decoder, filled_cache(decoder, context + 1, rows), context)
    for tokens in PROMPTS[1:3] if quick else PROMPTS:
        if tokens <= most:
            yield ("prompt", tokens, 0), prompt_run(decoder, tokens, chunk)


def prompt_run(decoder: Decoder, tokens: int, chunk: int | None) -> Callable[[], object]:
    """A prompt in passes of at most a chunk, as a generation runs it."""
    ids, cache = torch.zeros(1, tokens, dtype=torch.int64), filled_cache(decoder, tokens, 1)

    def run() -> None:
        cache.reset()
        for part in torch.split(ids, chunk or tokens, 1):
            decoder.forward(part, cache, last_only=True)

    return run


def row(case: Case, turns: Turns[Case], own: OwnTimes) -> Row:
    """What was measured beside what is predicted."""
    kind, n, context = case
    seconds = turns.quiet_s(case)
    if kind == "step":
        predicted, reach = step_s(own, n, context), beyond(own, batch=n, context=context)
    else:
        predicted, reach = prompt_s(own, n), beyond(own, prompt=n)
    return Row(case, seconds, predicted, why(own, seconds, predicted, reach))


def show(head: str, rows: list[Row], own: OwnTimes) -> None:
    """One table."""
    print(f"\n{head}: {own.layers_timed} of {own.n_layers} layers timed, own times took {duration(own.took_s)} in all")
    print(f"everything took {own.slowdown:.1f} times as long as alone; prompts in passes of {own.chunk}")
    cells = [
        (
            f"{each.case[0]} {each.case[1]}" + (f" x {each.case[2]}" if each.case[0] == "step" else ""),
            duration(each.measured_s),
            "-" if each.predicted_s is None else duration(each.predicted_s),
            "-" if each.off is None else f"{100 * each.off:+.0f} %",
            "" if each.kept else each.reason,
        )
        for each in rows
    ]
    print("\n".join(table(("case", "measured", "predicted", "off", "why"), cells)), flush=True)


def load_model(name: str, dtype: str) -> Decoder:
    """One of the three models in a dtype."""
    if name == "1b":
        return one_billion(dtype)
    path = None if name == "bundled" else fetch(platformdirs.user_cache_path("kvscope") / "test-models")
    return load_checkpoint(path, dtype=dtype, device=torch.device("cpu")).decoder


def one_billion(dtype: str) -> Decoder:
    """A decoder with the sizes of Llama-3.2-1B, whose weights repeat the same million random numbers."""
    config = ModelConfig(
        n_layers=16, n_heads=32, n_kv_heads=8, head_dim=64, hidden_size=2048, intermediate_size=8192,
        vocab_size=128_256, max_positions=4096, norm="rmsnorm", norm_eps=1e-5, positions="rope", activation="silu",
        gated_mlp=True, qkv_bias=False, o_bias=False, mlp_bias=False, head_bias=False, qk_norm=False, tied=True,
        attention_scale=0.125,
    )  # fmt: skip
    kept = FLOATS.get(dtype) or compute_dtype(torch.device("cpu"))
    numbers = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).to(kept)
    shapes = parameter_shapes(config)
    weights = {name: _repeated(numbers, shape) for name, shape in shapes.items()}
    maker = Linear.of if dtype in FLOATS else FormatMaker("int8" if dtype == "int8" else "int4", weights)
    return Decoder(config, weights, linear=maker)


def _repeated(numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return numbers.repeat(-(-count // len(numbers)))[:count].view(shape)


if __name__ == "__main__":
    main()
