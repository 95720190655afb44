"""A stand-in for the engine process in the tests of the report: fixed results at once, no torch.

The first argument says what goes wrong: "good" (nothing), "mismatch" (a case fails), "input" (weights refused),
"crash" (dies in the sweep), "cancel" (the sweep is stopped), "short" (a sweep without its model).
"""

import os
import sys

from engine.generation_events import GenerationFinished, GenerationStarted
from engine.measure.kinds.benchmark import Benchmark, BenchmarkFinished, BenchmarkResult
from engine.measure.kinds.evaluate import CaseResult, Evaluate, EvaluationFinished, EvaluationResult
from engine.process.events import Failed, Generate, Loaded, Shutdown, decode_request, encode
from engine.records import Cancelled, Progress
from tests.records import benchmark_row, machine, model_info

MODEL = model_info(
    name="tiny_model", path="/models/tiny_model", n_heads=4, head_dim=16, hidden_size=64, intermediate_size=128,
    vocab_size=256, max_positions=128, n_parameters=1, weight_bytes=4, kv_bytes_per_token=512, tied=False,
    read_bytes_per_s=1e9, matmul_flops_per_s=1e9,
)  # fmt: skip
MACHINE = machine("Test & Co 100%", torch="2.x", python="3.11")


def row(prompt_tokens, cached_s, plain_s):
    size = (prompt_tokens + 20) * 512
    tpot_s = cached_s * 0.75 / 19
    return benchmark_row(prompt_tokens, cached_s, plain_s, low=0.9, high=1.5, tpot_s=tpot_s, kv_cache_bytes=size)


ROWS = (row(10, 0.010, 0.030), row(1000, 0.080, 1.600))


def evaluation(cached, *, passed):
    ways = ("cache", "sequential", "chunked")
    errors = {
        f"{way}_max_abs_{what}": value for way in ways for what, value in (("error", 3e-9), ("difference", 4e-15))
    }
    case = CaseResult(case=7, prompt_tokens=12, passed=passed, max_abs_error=2.5e-8, **(errors if cached else {}))
    return EvaluationResult(
        command="kv-evaluate" if cached else "evaluate",
        weights="/models/my_weights.pt",
        dtype="float64",
        atol=1e-4,
        passed=passed,
        cases=(case,),
        expected_decimals=7,
        notes=("Rounded.",),
    )


def sample(number, request):
    capacity = (3 + request.max_new_tokens) * MODEL.kv_bytes_per_token
    return (
        GenerationStarted(
            request_id=number,
            prompt_ids=(1, 2, 3),
            start_ns=1_000,
            kv_cache_bytes=capacity,
            kv_bytes_per_token=MODEL.kv_bytes_per_token,
            prompt_text=request.prompt,
        ),
        GenerationFinished(
            request_id=number,
            reason="length",
            prompt_ids=(1, 2, 3),
            ids=(4, 5, 6),
            text=" of\nthe & `sea` ``` \\end{quote}",
            start_ns=1_000,
            token_times_ns=(2_001_000, 3_001_000, 4_001_000),
            kv_cache_bytes=capacity,
        ),
    )


def answers(kind, request):
    number = request.request_id
    if isinstance(request, Evaluate):
        if kind == "input":
            return [Failed(request_id=number, kind="input", message="w.pt: truncated.")]
        result = evaluation(request.cached, passed=kind != "mismatch")
        return [EvaluationFinished(request_id=number, result=result)]
    if isinstance(request, Generate):
        return list(sample(number, request))
    if kind == "crash":
        os._exit(9)
    if kind == "cancel":
        return [Cancelled(request_id=number)]
    result = BenchmarkResult(
        model="tiny_model",
        new_tokens=request.new_tokens,
        repeats=3,
        warmup=1,
        rows=ROWS,
        machine=MACHINE,
        notes=("So.",),
    )
    progress = Progress(request_id=number, stage="benchmark", done=1, total=4, elapsed_ns=1, remaining_s=2.6)
    loaded = [] if kind == "short" else [Loaded(request_id=number, model=MODEL)]
    return [*loaded, progress, BenchmarkFinished(request_id=number, result=result)]


def main(kind):
    for line in sys.stdin.buffer:
        request = decode_request(line)
        if isinstance(request, Shutdown):
            return
        if isinstance(request, Evaluate | Generate | Benchmark):
            sys.stdout.buffer.write(b"".join(map(encode, answers(kind, request))))
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1])
