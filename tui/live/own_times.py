"""Predictions from the times of the loaded model's own operators on this machine: steps and prompts of any size. Pure.

A step of B rows with n tokens each is interpolated between the measured batches and contexts: its time is linear in n
(attention reads the cache) and piecewise linear in B. A prompt runs in passes of at most one chunk; the time of a pass
follows a power law of its tokens between measured lengths, and later chunks take longer because they attend to earlier
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from calc.units import format_duration_s
from engine.measure.own import OwnTimes, RowsTime
from engine.text import plural

EXTRAPOLATED = 1.1
"""Beyond this multiple of the largest timed size, a figure counts as extrapolated."""
CLOSE = 0.15
"""A measured time this close to the predicted one needs no reason."""
BUSY = 1.2
"""From this slowdown compared with an idle machine, other processes are named as the reason."""
Points = Sequence[tuple[float, float]]
"""Pairs of x and y, sorted by x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of a one-row step in seconds, as shown with a prediction."""

    linears_s: float
    head_s: float
    attention_s: float
    overhead_per_layer_s: float


def step_s(times: OwnTimes, batch: float, context: float) -> float | None:
    """Seconds per decode step; None for more rows than the compiled step supports, which run differently."""
    if not times.steps or (times.max_rows is not None and batch > times.max_rows):
        return None
    lines = {point.batch: _line(times, point.batch) for point in times.steps}
    return interpolated([(b, line(context)) for b, line in sorted(lines.items())], batch)


def _line(times: OwnTimes, batch: int) -> Callable[[float], float]:
    """Seconds of a step with measured rows by context; noise never makes a longer context cheaper."""
    points = sorted((p.context, p.seconds) for p in times.steps if p.batch == batch)
    (short, base), (long, far) = points[0], points[-1]
    slope = max(0.0, (far - base) / (long - short)) if long > short else 0.0
    return lambda context: max(0.0, base + slope * (context - short))


def prompt_s(times: OwnTimes, tokens: int, *, past: int = 0) -> float | None:
    """Seconds for `tokens` of a prompt after `past` cached tokens, in passes of at most one chunk."""
    if not times.prompts or tokens < 1:
        return None
    chunk = min(times.chunk or tokens, tokens)
    starts = range(past, past + tokens, chunk)
    return sum(pass_s(times, min(chunk, past + tokens - start), past=start) for start in starts)


def pass_s(times: OwnTimes, tokens: int, *, past: int = 0) -> float:
    """Seconds of one pass over `tokens`. Raises ValueError if no prompt was measured."""
    first = sorted((p.tokens, p.seconds) for p in times.prompts if not p.past)
    later = sorted((p.past, p.seconds, p.tokens) for p in times.prompts if p.past)
    if tokens == 1 and past:
        return step_s(times, 1, past + 1) or power_law(first, 1)
    seconds = power_law(first, tokens)
    if not past:
        return seconds
    if not later:
        return seconds * (tokens + past) / tokens if not times.chunk else seconds
    extra = [(float(at), max(0.0, each - power_law(first, n)) / n) for at, each, n in later]
    return seconds + tokens * max(0.0, interpolated([(0.0, 0.0), *extra] if len(extra) < 2 else extra, past))


def generation_s(times: OwnTimes, prompt: int, new_tokens: int, *, past: int = 0) -> tuple[float, float] | None:
    """TTFT and TPOT of a run with the cache: the prompt, then steps at the middle of the run."""
    first = prompt_s(times, prompt, past=past)
    each = step_s(times, 1, past + prompt + max(1, new_tokens) / 2)
    return None if first is None or each is None else (first, each)


def run_s(times: OwnTimes, prompt: int, new_tokens: int, *, cached: bool) -> float | None:
    """Seconds for a prompt and its new tokens, with the cache or recomputing everything for each token."""
    if cached:
        parts = generation_s(times, prompt, new_tokens)
        return None if parts is None else parts[0] + (new_tokens - 1) * parts[1]
    if not times.prompts:
        return None
    return sum(pass_s(times, prompt + i) for i in range(new_tokens))


def parts(times: OwnTimes) -> Parts | None:
    """The parts of a one-row step over the short context; None if they were not timed separately."""
    linears, heads = dict(_rows(times.linears)), dict(_rows(times.heads))
    steps = sorted((p.context, p.seconds) for p in times.steps if p.batch == 1)
    if 1 not in linears or 1 not in heads or len(steps) < 2:
        return None
    (short, base), (long, far) = steps[0], steps[-1]
    attention_s = max(0.0, (far - base) / (long - short)) * short
    rest = base - linears[1] - heads[1] - attention_s
    return Parts(
        linears_s=linears[1],
        head_s=heads[1],
        attention_s=attention_s,
        overhead_per_layer_s=max(0.0, rest) / times.n_layers,
    )


def _rows(points: Sequence[RowsTime]) -> list[tuple[int, float]]:
    return [(point.rows, point.seconds) for point in points]


def interpolated(points: Points, x: float) -> float:
    """Linear between neighbours; beyond the ends, extrapolated from the last two; constant for a single point."""
    if len(points) == 1:
        return points[0][1]
    at = next((i for i, (known, _) in enumerate(points) if known >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(at, 1) - 1], points[max(at, 1)]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def power_law(points: Points, x: float) -> float:
    """A power law through neighbours; beyond the ends, through the nearest two; proportional for a single point.

    Raises ValueError if there is none.
    """
    if not points:
        raise ValueError("no prompt was measured")
    if len(points) == 1 or points[0][1] <= 0:
        return points[0][1] * x / points[0][0]
    at = next((i for i, (known, _) in enumerate(points) if known >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(at, 1) - 1], points[max(at, 1)]
    exponent = min(2.0, max(0.0, log(y1 / y0) / log(x1 / x0)))
    near_x, near_y = (x0, y0) if x < x1 else (x1, y1)
    return near_y * float((x / near_x) ** exponent)


# --- why measured and predicted differ ----------------------------------------------------------------------


def why(times: OwnTimes, measured_s: float | None, predicted_s: float | None, *known: str) -> str:
    """The reason why a measured time differs from the predicted one; `known` facts come first.

    Empty if they agree, or if nothing measured explains the difference: no cause is guessed.
    """
    if measured_s is None or not predicted_s or abs(measured_s / predicted_s - 1) <= CLOSE:
        return ""
    reasons = [fact for fact in known if fact]
    if times.slowdown >= BUSY:
        share = f"other processes had {100 * (1 - 1 / times.slowdown):.0f} % of the cores"
        expected = format_duration_s(predicted_s * times.slowdown)
        waiting = "" if times.threads == 1 else f", and {times.threads} threads wait for each other"
        reasons.append(f"{share}{waiting}: {expected} expected with that")
    return "; ".join(reasons)


def beyond(times: OwnTimes, *, batch: int = 1, context: float = 0, prompt: int = 0) -> str:
    """The remark that a figure was extrapolated, and from where; empty if it was not."""
    largest = max((p.batch for p in times.steps), default=0)
    longest = max((p.context for p in times.steps if p.batch == min(batch, largest)), default=context)
    read = max((p.tokens + p.past for p in times.prompts), default=prompt)
    said = []
    if batch > largest:
        said.append(f"steps were only timed up to {largest} rows")
    if context > EXTRAPOLATED * longest:
        said.append(f"steps were only timed up to {longest:,} tokens")
    if prompt > EXTRAPOLATED * read:
        said.append(f"prompts were only timed up to {read:,} tokens")
    return ", ".join(said)


def basis(times: OwnTimes) -> str:
    """Where predictions come from, in a sentence."""
    how = "the compiled step" if times.compiled else "its own layers"
    some = "" if times.layers_timed == times.n_layers else f" ({times.layers_timed} of {times.n_layers} layers)"
    busy = "" if times.slowdown < BUSY else f" Meanwhile everything took {times.slowdown:.1f} times as long."
    return (
        f"Predicted from the times of {how}{some} on an idle machine, timed in {plural(times.rounds, 'round')} "
        f"between the measurements.{busy}"
    )
