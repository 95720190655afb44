"""Time from a Cancel to the event that ends the request, through the client, in every kind of long task.

    python bench/cancel_latency.py MODEL [--prompt-tokens 2000] [--repeats 9] [--dtype auto] [--tp 1]

Each request runs for a different time (up to --within seconds after it has reached the task), then it is cancelled.
The client is polled every 2 ms. Prints medians and maxima in milliseconds; the goal is 200 ms.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.measure.kinds.benchmark import Benchmark
from engine.measure.kinds.formats import Formats
from engine.process.client import EngineClient
from engine.process.events import Generate, Loaded
from engine.records import Cancelled, Event, LastEvent, Load, Progress, Request

POLL_S = 0.002
TERMINAL_EVENTS = (LastEvent, Loaded)
"""What ends a request."""
PATIENCE_S = 600.0


@dataclass(frozen=True)
class Case:
    """A request, and the event after which it is where it is to be cancelled; ``warm``: its model is loaded before."""

    name: str
    request: Request
    reached: Callable[[Event], bool]
    within_s: float
    warm: bool = True


def cases(options: argparse.Namespace) -> list[Case]:
    """All kinds of work."""
    how = {"model": options.model, "dtype": options.dtype, "tp": options.tp}
    ids = tuple(100 + i % 1000 for i in range(options.prompt_tokens))
    prompt = Generate(prompt_ids=ids, max_new_tokens=400, **how)
    without = Generate(prompt_ids=ids, max_new_tokens=400, use_cache=False, **how)
    short = Generate(prompt_ids=ids[:16], max_new_tokens=2000, **how)
    sweep = Benchmark(lengths=(options.prompt_tokens,), new_tokens=8, **how)
    within = options.within
    found = [
        Case("loading", Load(**how), _stage("load"), within, warm=False),
        Case("prefill with the cache", prompt, lambda event: isinstance(event, GenerationStarted), within),
        Case("prefill without the cache", without, lambda event: isinstance(event, GenerationStarted), within),
        Case("a token without the cache", without, lambda event: isinstance(event, TokenGenerated), within),
        Case("decoding", short, lambda event: isinstance(event, TokenGenerated), within),
        Case("benchmark", sweep, _stage("benchmark"), within),
    ]
    if options.tp == 1:
        formats = Formats(model=options.model)
        found.append(Case("formats", formats, _stage("formats"), 8 * within, warm=False))
    return found


def _stage(name: str) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Progress) and event.stage == name


def wait(client: EngineClient, number: int, wanted: Callable[[Event], bool]) -> Event:
    """The first event of a request that is wanted, or its last."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for event in client.poll():
            if event.request_id == number and (wanted(event) or isinstance(event, TERMINAL_EVENTS)):
                return event
        time.sleep(POLL_S)
    raise SystemExit("the engine does not answer")


def latency_s(client: EngineClient, case: Case, after_s: float) -> float | None:
    """Seconds from the Cancel to the end; None where the work was over before."""
    number = client.submit(case.request)
    if isinstance(wait(client, number, case.reached), TERMINAL_EVENTS):
        return None
    time.sleep(after_s)
    start = time.perf_counter()
    client.cancel(number)
    last = wait(client, number, lambda event: isinstance(event, Loaded) and isinstance(case.request, Load))
    took_s = time.perf_counter() - start
    stopped = isinstance(last, Cancelled) or (isinstance(last, GenerationFinished) and last.reason == "cancelled")
    return took_s if stopped else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt-tokens", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--within", type=float, default=0.5, metavar="S", help="cancel at the latest so long after")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tp", type=int, default=1)
    options = parser.parse_args()
    print(f"{'':28}{'stopped':>9}{'median ms':>11}{'most ms':>9}")
    with EngineClient() as client:
        list(client.stream(Load()))  # torch is imported, the bundled model is there
        for case in cases(options):
            if case.warm:
                list(client.stream(Load(model=options.model, dtype=options.dtype, tp=options.tp)))
            times_s = [latency_s(client, case, case.within_s * i / options.repeats) for i in range(options.repeats)]
            stopped = [1000 * took_s for took_s in times_s if took_s is not None]
            figures = f"{statistics.median(stopped):11.0f}{max(stopped):9.0f}" if stopped else ""
            print(f"{case.name:28}{len(stopped):5} / {options.repeats}{figures}", flush=True)


if __name__ == "__main__":
    main()
