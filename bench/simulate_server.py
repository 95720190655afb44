"""A real server under a Poisson load, and the simulation of it with the step times that were measured on it.

    python bench/simulate_server.py PYTHON MODEL.gguf [--slots 4] [--requests 60] [--threads 1]

PYTHON has xllamacpp (pip install xllamacpp). llama.cpp's server runs on 127.0.0.1 for a few minutes. It batches as
vLLM does: every slot that generates adds a token to each step, prompts fill the rest of it (``--batch-size`` 2,048).
It has slots instead of blocks: nothing is preempted, and a request waits for a slot, not for memory.

First its steps are measured: prompts of some lengths alone, and tokens of 1 to all slots at two contexts. Then requests
come at shares of the full load that is simulated with these times. Both are measured again after each load, since other
work on the machine comes and goes; the simulation takes the mean.
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
from statistics import median
from typing import Any

from calc.simulate.capacity import full_load
from calc.simulate.lengths import parse_lengths
from calc.simulate.run import simulate
from calc.simulate.scheduler import Server
from calc.simulate.step_times import Chunk
from calc.simulate.summary import Spread, outcome
from calc.simulate.workload import Arrival, Listed, Mix, poisson

BATCH_TOKENS = 2048
SHARES = (0.4, 0.8)
CONTEXT = 1024
PROMPT, NEW = parse_lengths("16..96"), parse_lengths("8..32")
PROMPTS, REPEATS = (8, 32, 128), 3
CONTEXTS, TOKENS = (32, 128), 24
VOCABULARY = range(1000, 40_000)
HELD = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90)


@dataclass
class Seen:
    """One request: when it was due, its first and last token, and how many it had."""

    due_s: float
    first_s: float = 0.0
    last_s: float = 0.0
    tokens: int = 0
    stamps: tuple[float, ...] = ()


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
        if len(stamps) < new_tokens - 1 or response.status != 200:
            raise RuntimeError(f"{len(stamps)} of {new_tokens} tokens, status {response.status}")
        return Seen(begun_s if due_s is None else due_s, stamps[0], stamps[-1], len(stamps), tuple(stamps))

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
    """Step times: of prompts by their tokens, of decoding by sequences at two contexts."""

    prompts_s: dict[int, float]
    decode_s: dict[tuple[int, int], float]

    def step_s(self, decoding: int, context: float, chunks: Sequence[Chunk]) -> float:
        """Tokens of sequences that decode beside a prompt count as tokens of it."""
        if chunks:
            return _between(self.prompts_s, decoding + sum(new for new, _ in chunks))
        low, high = CONTEXTS
        near, far = (self.decode_s[decoding, context] for context in CONTEXTS)
        return near + (far - near) * (context - low) / (high - low)

    def straight_until(self, context: float) -> float:
        """Always."""
        return float("inf")


def _between(known: dict[int, float], at: float) -> float:
    """In straight lines between what was measured, the last one going on."""
    for (a, low), (b, high) in pairwise(sorted(known.items())):
        if at <= b or b == max(known):
            return max(0.0, low + (high - low) * (at - a) / (b - a))
    raise ValueError("fewer than two lengths")


def measured(server: LlamaServer, slots: int) -> Measured:
    """Steps of the server, alone."""
    prompts = {}
    for tokens in PROMPTS:
        times = [(seen := server.ask(tokens, 2)).first_s - seen.due_s for _ in range(REPEATS)]
        prompts[tokens] = median(times)
    decode = {}
    for slot in range(1, slots + 1):
        for context in CONTEXTS:
            seen = server.together([(context, TOKENS, 0.0)] * slot)
            all_since = max(one.first_s for one in seen)
            until = min(one.last_s for one in seen)
            gaps = [b - a for one in seen for a, b in pairwise(one.stamps) if a >= all_since and b <= until]
            decode[slot, context] = median(gaps)
    return Measured(prompts, decode)


def mean(one: Measured, other: Measured) -> Measured:
    """Of two measurements."""
    return Measured(
        {n: (one.prompts_s[n] + other.prompts_s[n]) / 2 for n in one.prompts_s},
        {n: (one.decode_s[n] + other.decode_s[n]) / 2 for n in one.decode_s},
    )


def spreads(seen: Sequence[Seen]) -> dict[str, Spread]:
    """What users saw."""
    times = {
        "ttft": [one.first_s - one.due_s for one in seen],
        "tpot": [(one.last_s - one.first_s) / (one.tokens - 1) for one in seen],
        "e2e": [one.last_s - one.due_s for one in seen],
    }
    return {name: Spread(tuple(sorted(values))) for name, values in times.items()}


def main() -> None:
    """Measure, load, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python")
    parser.add_argument("model", type=Path)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    limits = Server(step_tokens=BATCH_TOKENS, sequences=args.slots, blocks=10**6, caching=False)
    requests = Mix(prompt=PROMPT, new=NEW).drawn(args.requests, args.seed)
    server = LlamaServer(args.python, args.model, args.slots, args.threads)
    try:
        server.ask(64, 8)
        before = measured(server, args.slots)
        full = full_load(requests, limits, before)
        print(f"{args.model.name}, {args.slots} slots, {args.threads} threads, load average {os.getloadavg()[0]:.1f}")
        print(f"prompts {_shown(before.prompts_s)}; tokens {_shown(before.decode_s)}")
        print(f"full load {full:.2f} requests per second; {args.requests} requests per load")
        print("| load | time | p50 measured | simulated | ratio | p90 measured | simulated | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for share in SHARES:
            arrivals = poisson(requests, share * full, args.seed)
            seen = server.together([(one.prompt_tokens, one.new_tokens, one.at_s) for one in arrivals])
            after = measured(server, args.slots)
            _compare(share, seen, arrivals, limits, mean(before, after))
            before = after
    finally:
        server.close()


def _compare(share: float, seen: Sequence[Seen], arrivals: list[Arrival], limits: Server, times: Measured) -> None:
    simulated = outcome(simulate(Listed(arrivals), limits, times))
    found = spreads(seen)
    for name in HELD:
        predicted = simulated.spread(name)
        assert predicted is not None
        cells = []
        for percent in PERCENTILES:
            real, expected = found[name].percentile(percent), predicted.percentile(percent)
            cells += [f"{real * 1e3:,.0f} ms", f"{expected * 1e3:,.0f} ms", f"{expected / real:.2f}"]
        print(f"| {share:.0%} | {name} | {' | '.join(cells)} |", flush=True)


def _shown(times: dict[Any, float]) -> str:
    return ", ".join(f"{name}: {value * 1e3:.1f} ms" for name, value in times.items())


if __name__ == "__main__":
    sys.exit(main())
