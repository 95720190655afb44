"""A real server under a Poisson load, and its simulation with the step times measured on that server.

    python bench/simulate_server.py PYTHON MODEL.gguf [--slots 4] [--requests 40] [--rates 0.25,0.5] [--threads 1]

PYTHON has xllamacpp (pip install xllamacpp). llama.cpp's server runs on 127.0.0.1 for a few minutes. It batches as
vLLM does: every generating slot adds a token to each step, prompts fill the rest of the step (``--batch-size`` 2,048).
It has slots instead of blocks: nothing is preempted, and a request waits for a slot, not for memory.

Other work on the machine varies, so the simulation of a load uses the mean step times of that same load: by the number
of sequences that generate, and for steps that end with the first token of a prompt. The simulation then has to predict
how long requests wait and which latencies they see.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import linear_regression, mean

from calc.commands.simulate import rates
from calc.simulate.lengths import parse_lengths
from calc.simulate.run import simulate
from calc.simulate.scheduler import Server
from calc.simulate.step_times import Chunk
from calc.simulate.summary import Spread, outcome
from calc.simulate.workload import Arrival, Listed, Mix, poisson

BATCH_TOKENS = 2048
CONTEXT = 1024
PROMPT, NEW = parse_lengths("16..96"), parse_lengths("8..32")
SAME_S = 0.004
"""Tokens of one step come within so many seconds."""
VOCABULARY = range(1000, 40_000)
HELD = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90)


@dataclass
class Seen:
    """One request: when it was due and sent, and when tokens came (those within a character come together)."""

    due_s: float
    begun_s: float
    prompt_tokens: int
    new_tokens: int
    stamps: tuple[float, ...]

    @property
    def first_s(self) -> float:
        """The first token."""
        return self.stamps[0]

    @property
    def last_s(self) -> float:
        """The last one."""
        return self.stamps[-1]


class LlamaServer:
    """The server as a process of its own."""

    def __init__(self, python: str, model: Path, slots: int, threads: int) -> None:
        script = str(Path(__file__).with_name("llama_server.py"))
        words = [python, script, str(model), str(slots), str(threads), str(CONTEXT)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip().removeprefix("http://")
        self._random = random.Random(0)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def ask(self, prompt_tokens: int, new_tokens: int, due_s: float | None = None) -> Seen:
        """One request, streamed: a stamp when each token has come."""
        ids = self._random.choices(VOCABULARY, k=prompt_tokens)
        body = {
            "prompt": ids, "n_predict": new_tokens, "ignore_eos": True, "stream": True, "cache_prompt": False,
            "temperature": 0,
        }  # fmt: skip
        connection = http.client.HTTPConnection(self.address, timeout=120)
        begun_s = time.perf_counter()
        connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        stamps = []
        for line in response:
            if line.startswith(b"data:") and not json.loads(line[5:]).get("stop"):
                stamps.append(time.perf_counter())
        connection.close()
        if len(stamps) < 2 or response.status != 200:
            raise RuntimeError(f"{len(stamps)} of {new_tokens} tokens, status {response.status}")
        return Seen(begun_s if due_s is None else due_s, begun_s, prompt_tokens, new_tokens, tuple(stamps))

    def together(self, asked: Sequence[tuple[int, int, float]]) -> list[Seen]:
        """Requests (prompt, new tokens, seconds from now), each in a thread of its own."""
        found: list[Seen | None] = [None] * len(asked)
        start_s = time.perf_counter() + 0.1

        def one(i: int, prompt: int, new: int, at_s: float) -> None:
            time.sleep(max(0.0, start_s + at_s - time.perf_counter()))
            found[i] = self.ask(prompt, new, start_s + at_s)

        threads = [threading.Thread(target=one, args=(i, *each)) for i, each in enumerate(asked)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [seen for seen in found if seen is not None]


@dataclass
class Measured:
    """Step times: of so many sequences that make a token, and with a prompt among them by the tokens of the step."""

    decode_s: dict[int, float]
    prompt_s: tuple[float, float]
    """Seconds of an empty one, and per token."""

    def step_s(self, decoding: int, context: float, chunks: Sequence[Chunk]) -> float:
        """The context of a small model changes less than the machine does."""
        if chunks:
            fixed_s, each_s = self.prompt_s
            return fixed_s + each_s * (decoding + sum(new for new, _ in chunks))
        return self.decode_s[min(self.decode_s, key=lambda n: abs(n - decoding))]

    def straight_until(self, context: float) -> float:
        """Always."""
        return float("inf")


def measured(seen: Sequence[Seen]) -> Measured:
    """The steps of a load: gaps between tokens, and the first tokens that came where nothing else was under way."""
    decode: dict[int, list[float]] = {}
    prompts: list[tuple[float, float]] = []
    for one in seen:
        at_start = [other for other in seen if other.begun_s < one.begun_s < other.last_s]
        if not at_start:
            prompts.append((one.prompt_tokens, one.first_s - one.begun_s))
        for a, b in pairwise(one.stamps):
            others = sum(other.first_s <= a and b <= other.last_s + SAME_S for other in seen)
            new = sum(other.prompt_tokens for other in seen if abs(other.first_s - b) < SAME_S)
            if new:
                prompts.append((new + others, b - a))
            elif not any(other.begun_s < b and other.first_s > b for other in seen):
                decode.setdefault(others, []).append(b - a)
    fixed_s, each_s = linear_regression(*zip(*prompts, strict=True))[::-1]
    return Measured({n: mean(gaps) for n, gaps in decode.items()}, (max(0.0, fixed_s), max(0.0, each_s)))


def spreads(seen: Sequence[Seen]) -> dict[str, Spread]:
    """What users saw."""
    times = {
        "ttft": [one.first_s - one.due_s for one in seen],
        "tpot": [(one.last_s - one.first_s) / (one.new_tokens - 1) for one in seen],
        "e2e": [one.last_s - one.due_s for one in seen],
    }
    return {name: Spread(tuple(sorted(values))) for name, values in times.items()}


def main() -> None:
    """Measure, load, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("model", type=Path)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--rates", type=rates, default=(0.25, 0.5))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    limits = Server(step_tokens=BATCH_TOKENS, sequences=args.slots, blocks=10**6, caching=False)
    requests = Mix(prompt=PROMPT, new=NEW).drawn(args.requests, args.seed)
    server = LlamaServer(args.python, args.model, args.slots, args.threads)
    try:
        server.ask(64, 8)
        print(f"{args.model.name}, {args.slots} slots, {args.threads} threads, load average {os.getloadavg()[0]:.1f}")
        print(f"{args.requests} requests per load")
        print("| load | time | p50 measured | simulated | ratio | p90 measured | simulated | ratio |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for rate in args.rates:
            arrivals = poisson(requests, rate, args.seed)
            seen = server.together([(one.prompt_tokens, one.new_tokens, one.at_s) for one in arrivals])
            _compare(rate, seen, arrivals, limits)
    finally:
        server.close()


def _compare(rate: float, seen: Sequence[Seen], arrivals: list[Arrival], limits: Server) -> None:
    times = measured(seen)
    simulated = outcome(simulate(Listed(arrivals), limits, times))
    found = spreads(seen)
    for name in HELD:
        predicted = simulated.spread(name)
        assert predicted is not None
        cells = []
        for percent in PERCENTILES:
            real, expected = found[name].percentile(percent), predicted.percentile(percent)
            cells += [f"{real * 1e3:,.0f} ms", f"{expected * 1e3:,.0f} ms", f"{expected / real:.2f}"]
        print(f"| {rate:g}/s | {name} | {' | '.join(cells)} |", flush=True)
    fixed, each = (1e3 * value for value in times.prompt_s)
    steps = ", ".join(f"{n}: {value * 1e3:.0f} ms" for n, value in sorted(times.decode_s.items()))
    print(f"steps by sequences {steps}; a prompt {fixed:.0f} ms + {each:.1f} per token")


if __name__ == "__main__":
    sys.exit(main())
