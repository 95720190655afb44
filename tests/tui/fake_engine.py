"""An engine without torch: speaks the protocol with made-up, repeatable results. Run as a script by the tests.

``python fake_engine.py [--rate TOKENS_PER_S] [--no-tokenizer] [--evaluate-fails] [--crash-after N]
[--start-gate FILE] [--row-gate FILE] [--row-s S]``

A gate is a file that the engine waits for: before it says that it is ready, or before the third row of a measurement.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import msgspec

from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.measure.kinds.batch import Batch, BatchFinished, BatchResult, BatchRow, BatchRowMeasured
from engine.measure.kinds.benchmark import (
    Benchmark,
    BenchmarkFinished,
    BenchmarkResult,
    BenchmarkRow,
    BenchmarkRowMeasured,
)
from engine.measure.kinds.evaluate import CaseEvaluated, CaseResult, Evaluate, EvaluationFinished, EvaluationResult
from engine.measure.kinds.formats import FormatMeasured, FormatRow, Formats, FormatsFinished, FormatsResult
from engine.measure.kinds.machine import MachineFinished, MachineRowMeasured, MeasureMachine
from engine.measure.machine_result import MachineResult, MachineRow
from engine.measure.own import MeasureOwnTimes, OwnTimes, OwnTimesMeasured, PromptTime, StepTime
from engine.process.events import Cancel, Failed, Generate, Loaded, Ready, Shutdown, decode_request, encode
from engine.records import Cancelled, Event, Load, Machine, ModelInfo, Progress, Request

WORDS = ("the ", "cache ", "keeps ", "what ", "was ", "read ", "before, ", "so ", "nothing ", "is ", "twice.\n")
TOKEN_BYTES = 2 * 2 * 2 * 64 * 4
STEP_NS = 1_000_000
RATED = "rated.gguf"
"""The model for which the fake has measured the machine."""
MACHINE = Machine(
    cpu="fake cpu", cores=2, threads=1, device="cpu", dtype="float32", torch="0", python="3", system="test"
)


WEIGHT_BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 34 / 32, "int4": 20 / 32}


def model(path: str | None, *, tokenizer: bool, dtype: str = "auto", tp: int = 1) -> ModelInfo:
    """A two-layer model; its numbers agree with calc's formulas. Auto runs as float32; only one rank has rates."""
    held = "float32" if dtype == "auto" else dtype
    weight_bytes = int(3_638_400 * WEIGHT_BYTES[held])
    return ModelInfo(
        name="fake" if path is None else Path(path).name,
        path=path or "bundled",
        n_layers=2,
        n_heads=6,
        n_kv_heads=2,
        head_dim=64,
        hidden_size=384,
        intermediate_size=896,
        vocab_size=2048,
        max_positions=4_000_000,
        n_parameters=3_638_400,
        weight_bytes=weight_bytes,
        rank_weight_bytes=weight_bytes // tp if tp > 1 else None,
        tp=tp,
        read_bytes_per_s=1e9 if tp == 1 and path == RATED else None,
        matmul_flops_per_s=1e12 if tp == 1 and path == RATED else None,
        dtype=held,
        cache_dtype="float32" if held in ("int8", "int4") else "",
        kv_bytes_per_token=TOKEN_BYTES,
        has_tokenizer=tokenizer,
        gated_mlp=True,
        tied=True,
        norm="rmsnorm",
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        head_bias=False,
        qk_norm=False,
        learned_positions=False,
    )


class FakeEngine:
    """Answers one request at a time; `stop` is asked between its pieces."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.held: tuple[str | None, str, int] = ("nothing", "auto", 1)

    def answer(self, request: Request, stop: Callable[[], bool]) -> Iterator[Event]:
        if isinstance(request, Load | Generate | Batch) and (request.model, request.dtype, request.tp) != self.held:
            if request.model == "missing.pt":
                yield Failed(kind="input", message="missing.pt: no such file")
                return
            self.held = ("nothing", "auto", 1)
            name = request.model or "bundled"
            yield Progress(stage="load", done=0, total=0, elapsed_ns=0, detail=name)
            for done in range(30, 100) if name == "slow.gguf" else ():
                if stop():
                    yield Cancelled()
                    return
                yield Progress(stage="load", done=done, total=100, elapsed_ns=done, remaining_s=1.0, detail=name)
                time.sleep(0.1)
            self.held = (request.model, request.dtype, request.tp)
            yield self.loaded()
        elif isinstance(request, Load):
            yield self.loaded()
        if isinstance(request, Generate):
            yield from self.generate(request, stop)
        elif isinstance(request, Evaluate):
            yield from self.evaluate(request, stop)
        elif isinstance(request, Benchmark):
            yield from self.benchmark(request, stop)
        elif isinstance(request, Batch):
            yield from self.batch(request, stop)
        elif isinstance(request, Formats):
            yield from self.formats(request, stop)
        elif isinstance(request, MeasureOwnTimes):
            yield self.own_times(request)
        elif isinstance(request, MeasureMachine):
            yield from self.machine(request)

    def machine(self, request: MeasureMachine) -> Iterator[Event]:
        """Two dtypes, as a machine of two cores has them."""
        rows = tuple(
            MachineRow(dtype=dtype, read_bytes_per_s=read, matmul_flops_per_s={"1": read, "512": 10 * read})
            for dtype, read in (("fp32", 8e9), ("bf16", 10e9))
        )
        yield from (MachineRowMeasured(row=row) for row in rows)
        result = MachineResult(
            cpu="a made-up machine",
            cores=2,
            threads=1,
            memory_bytes=24 * 10**9,
            last_cache_bytes=None,
            gpus=(),
            rows=rows,
            operator_overhead_s=2e-6,
            load_average=1.5,
            spread=0.1,
            rounds=5,
            measured_at="2026-12-01T12:00:00+00:00",
            versions={"torch": "2"},
            machine=MACHINE,
            notes=("This machine was busy.",) if request.measure else (),
        )
        yield MachineFinished(result=result)

    def own_times(self, request: MeasureOwnTimes) -> OwnTimesMeasured:
        """Steps as the fake engine takes them, prompts of three steps; nothing of a model without rates."""
        if request.model != RATED:
            return OwnTimesMeasured(times=None, note="nothing was timed")
        times = OwnTimes(
            compiled=False,
            max_rows=None,
            threads=1,
            n_layers=2,
            layers_timed=2,
            chunk=None,
            steps=tuple(StepTime(batch=1, context=n, seconds=STEP_NS / 1e9) for n in (1, 200)),
            prompts=(PromptTime(tokens=6, past=0, seconds=3 * STEP_NS / 1e9),),
        )
        return OwnTimesMeasured(times=times)

    def loaded(self) -> Loaded:
        """The model held."""
        path, dtype, tp = self.held
        return Loaded(model=model(path, tokenizer=self.options.tokenizer, dtype=dtype, tp=tp))

    def generate(self, request: Generate, stop: Callable[[], bool]) -> Iterator[Event]:
        """Tokens at the asked rate; their timestamps are exactly STEP_NS apart, so rates can be checked."""
        prompt_ids = request.prompt_ids or tuple(range(len((request.prompt or "").split())))
        capacity = (len(prompt_ids) + request.max_new_tokens) * TOKEN_BYTES if request.use_cache else 0
        step = STEP_NS if request.use_cache else 3 * STEP_NS
        yield GenerationStarted(
            prompt_ids=prompt_ids,
            start_ns=0,
            kv_cache_bytes=capacity,
            kv_bytes_per_token=TOKEN_BYTES,
            prompt_text=request.prompt,
        )
        times: list[int] = []
        words: list[str] = []
        began = time.perf_counter()
        while len(times) < request.max_new_tokens and not stop():
            if len(times) == self.options.crash_after:
                sys.stderr.write("the fake was told to crash\n")
                sys.stderr.flush()
                os._exit(7)
            index = len(times)
            times.append(10 * STEP_NS + index * step)
            words.append(WORDS[index % len(WORDS)] if self.options.tokenizer else "")
            kept = len(prompt_ids) + index if request.use_cache else 0
            yield TokenGenerated(
                index=index,
                token_id=index % 2048,
                text=words[-1],
                time_ns=times[-1],
                kv_tokens=kept,
                kv_used_bytes=kept * TOKEN_BYTES,
            )
            ahead = (index + 1) / self.options.rate - (time.perf_counter() - began)
            if ahead > 0.002:
                time.sleep(ahead)
        yield GenerationFinished(
            reason="length" if len(times) == request.max_new_tokens else "cancelled",
            prompt_ids=prompt_ids,
            ids=tuple(i % 2048 for i in range(len(times))),
            text="".join(words) if self.options.tokenizer else None,
            start_ns=0,
            token_times_ns=tuple(times),
            kv_cache_bytes=capacity,
        )

    def evaluate(self, request: Evaluate, stop: Callable[[], bool]) -> Iterator[Event]:
        """Four cases; the third is over the tolerance when told to fail."""
        atol = request.atol or 1e-4
        cases = []
        for number in range(4):
            if stop():
                yield Cancelled()
                return
            error = 2 * atol if self.options.evaluate_fails and number == 2 else 1e-12 * 10**number
            others = (error, error, error) if request.cached else (None, None, None)
            cases.append(
                CaseResult(
                    case=number,
                    prompt_tokens=8 * (number + 1),
                    passed=error <= atol,
                    max_abs_error=error,
                    cache_max_abs_error=others[0],
                    sequential_max_abs_error=others[1],
                    chunked_max_abs_error=others[2],
                    cache_max_abs_difference=others[0],
                )
            )
            yield CaseEvaluated(case=cases[-1])
            yield Progress(stage="evaluate", done=number + 1, total=4, elapsed_ns=number, remaining_s=0.5)
        yield EvaluationFinished(
            result=EvaluationResult(
                command="kv-evaluate" if request.cached else "evaluate",
                weights=request.weights or "bundled",
                dtype=request.dtype,
                atol=atol,
                passed=all(c.passed for c in cases),
                cases=tuple(cases),
            )
        )

    def benchmark(self, request: Benchmark, stop: Callable[[], bool]) -> Iterator[Event]:
        """A row every `row_s` seconds: n milliseconds with the cache, n times 1 + n / 100 without."""
        rows = []
        for done, n in enumerate(request.lengths):
            yield Progress(
                stage="benchmark",
                done=done,
                total=len(request.lengths),
                elapsed_ns=done * 10**8,
                remaining_s=0.1 * (len(request.lengths) - done),
                detail=f"{n} prompt tokens",
            )
            if self.wait(done, stop):
                yield Cancelled()
                return
            fast, slow = n / 1000, n / 1000 * (1 + n / 100)
            rows.append(
                BenchmarkRow(
                    prompt_tokens=n,
                    with_cache_s=fast,
                    without_cache_s=slow,
                    with_cache_min_s=fast,
                    with_cache_max_s=fast,
                    without_cache_min_s=slow,
                    without_cache_max_s=slow,
                    speedup=slow / fast,
                    prefill_s=fast / 2,
                    tpot_s=fast / 2 / request.new_tokens,
                    kv_cache_bytes=(n + request.new_tokens) * TOKEN_BYTES,
                )
            )
            yield BenchmarkRowMeasured(row=rows[-1])
        yield BenchmarkFinished(
            result=BenchmarkResult(
                model="fake",
                new_tokens=request.new_tokens,
                repeats=request.repeats,
                warmup=request.warmup,
                rows=tuple(rows),
                machine=MACHINE,
                notes=("The fake engine made these numbers up.",),
            )
        )

    def batch(self, request: Batch, stop: Callable[[], bool]) -> Iterator[Event]:
        """Two rounds: a step takes 10 ms, and 1 ms more for each row; twice that in the first round."""
        rows: dict[int, BatchRow] = {}
        total = 2 * len(request.batches)
        for done in range(total):
            batch, slower = request.batches[done % len(request.batches)], 2 if done < len(request.batches) else 1
            yield Progress(stage="batch", done=done, total=total, elapsed_ns=done, detail=f"{batch} rows")
            if self.wait(done, stop):
                yield Cancelled()
                return
            step_s = slower * (0.010 + batch / 1000)
            rows[batch] = BatchRow(
                batch=batch,
                context_tokens=float(request.context),
                step_p50_s=step_s,
                step_min_s=step_s / 2,
                step_max_s=step_s * 2,
                tokens_per_s=batch / step_s,
                kv_cache_bytes=batch * (request.context + request.new_tokens) * TOKEN_BYTES,
                weight_bytes=14_553_600,
            )
            yield BatchRowMeasured(row=rows[batch], prefill_tokens=256, prefill_s=0.256)
        yield BatchFinished(
            result=BatchResult(
                model="fake",
                context=request.context,
                new_tokens=request.new_tokens,
                repeats=request.repeats,
                ragged=request.ragged,
                rows=tuple(rows.values()),
                prefill_tokens=256,
                prefill_s=0.256,
                machine=MACHINE,
                notes=("The fake engine made these batches up.",),
            )
        )

    def wait(self, row: int, stop: Callable[[], bool]) -> bool:
        """Let `row_s` pass, and from row 2 on wait for the gate; True where it is to stop."""
        until = time.perf_counter() + self.options.row_s
        while time.perf_counter() < until or (row >= 2 and closed(self.options.row_gate)):
            if stop():
                return True
            time.sleep(0.01)
        return False

    def formats(self, request: Formats, stop: Callable[[], bool]) -> Iterator[Event]:
        """Row n (from 0): (n + 1) times the speed for n of three, n hundredths of error, n tokens that differ."""
        if not self.options.tokenizer:
            yield Failed(kind="input", message="the model fake has no tokenizer, but formats are measured on text")
            return
        choices = [("float32", "full"), *((choice.dtype, choice.cache) for choice in request.choices)]
        rows = []
        for n, (dtype, cache) in enumerate(choices):
            yield Progress(stage="formats", done=n, total=len(choices), elapsed_ns=n * 10**8, detail=dtype)
            if self.wait(n, stop):
                yield Cancelled()
                return
            rows.append(
                FormatRow(
                    dtype="float32" if dtype == "auto" else dtype,
                    cache=cache,
                    weight_bytes=(60 - 10 * n) * 10**6,
                    kv_bytes_per_token=TOKEN_BYTES,
                    load_s=0.1,
                    tpot_p50_s=0.010 if n == 0 else 0.005,
                    tpot_p95_s=0.006,
                    tokens_per_s=100.0 if n == 0 else 200.0,
                    n_tokens=99,
                    n_same=99 - n,
                    mean_error=n / 100,
                    max_error=n / 10,
                    perplexity=10.0 + n,
                    compiled=True,
                )
            )
            yield FormatMeasured(row=rows[-1])
        notes = ("The fake engine made these formats up.",)
        self.held = (request.model, request.choices[-1].dtype, 1)
        yield self.loaded()
        yield FormatsFinished(result=FormatsResult(model="fake", rows=tuple(rows), machine=MACHINE, notes=notes))


def closed(gate: Path | None) -> bool:
    """Whether there is a gate whose file is not there yet."""
    return gate is not None and not gate.exists()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--no-tokenizer", action="store_false", dest="tokenizer")
    parser.add_argument("--evaluate-fails", action="store_true")
    parser.add_argument("--crash-after", type=int, default=-1)
    parser.add_argument("--row-s", type=float, default=0.02)
    parser.add_argument("--start-gate", type=Path)
    parser.add_argument("--row-gate", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    while closed(options.start_gate):
        time.sleep(0.01)
    out = sys.stdout.buffer
    todo: queue.Queue[Request | None] = queue.Queue()
    cancelled: set[int] = set()

    def read() -> None:
        for line in sys.stdin.buffer:
            request = decode_request(line)
            if isinstance(request, Cancel):
                cancelled.add(request.target_id)
            else:
                todo.put(None if isinstance(request, Shutdown) else request)
        todo.put(None)

    threading.Thread(target=read, daemon=True).start()
    out.write(encode(Ready(pid=os.getpid(), torch_version="0", device="cpu", threads=1)))
    out.flush()
    engine = FakeEngine(options)
    while (request := todo.get()) is not None:
        for event in engine.answer(request, lambda r=request: r.request_id in cancelled):
            out.write(encode(msgspec.structs.replace(event, request_id=request.request_id)))
            out.flush()


if __name__ == "__main__":
    main()
