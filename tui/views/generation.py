"""The numbers beside a generation, as rich text: rates, the measured and predicted cache, both ways compared."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import wrap

from rich.text import Text

from calc.commands.tables import Table
from calc.model.cache import kv_bytes_per_request
from calc.units import format_bytes_exact, format_count, format_decimal, format_duration_s, format_flops, format_rate
from engine.commands.summary import drafted_text
from engine.measure.timing import Timing
from engine.speculation import Drafted
from tui.form.sampling import new_tokens_text
from tui.live.generation import Generation
from tui.live.predict import (
    Bounds,
    cache_token_term,
    generation_work,
    predicted_cache_bytes,
    predicted_times,
    spec_of,
)
from tui.live.run_times import RunTimes, run_times
from tui.live.speculated import Speculated

MEASURED = "●"
FULL, EMPTY = "█", "░"
WIDTH = 50
"""Columns of the numbers beside a run."""
EIGHTHS = " ▏▎▍▌▋▊▉"


def seconds(value: float | None) -> str:
    """A time, or a dash if there is none."""
    return "–" if value is None else format_duration_s(value)


def rate(value: float | None) -> str:
    """Tokens per second, or a dash."""
    return "–" if value is None else format_rate(value, "tokens/s")


def meter_text(run: Generation | None, rates: Timing | None, width: int = WIDTH) -> Text:
    """The rates of a run, three lines; sentences below them are wrapped to at most `width` cells."""
    if run is None or rates is None:
        return Text("tokens/s, TTFT and TPOT appear here, measured", style="dim")
    text = Text(no_wrap=True)
    text.append(f"{MEASURED} {rate(rates.tokens_per_s)}", "bold").append(f"   TTFT {seconds(rates.ttft_s)}\n")
    text.append(f"{MEASURED} TPOT {seconds(rates.tpot_s)}  p50 {seconds(rates.tpot_p50_s)}")
    text.append(f"  p95 {seconds(rates.tpot_p95_s)}\n")
    text.append(_beside_text(run, rates, min(width, WIDTH)))
    of = f"{rates.n_tokens:,} of {new_tokens_text(run.request.max_new_tokens)}"
    reused = f", {run.reused_tokens:,} reused" if run.reused_tokens else ""
    text.append(f"  {of} tokens · prompt of {len(run.prompt_ids):,}{reused}", "dim")
    note = "; ".join(filter(None, (*run.model.notes, run.model.step_note))) if run.model is not None else ""
    return text.append(f"\n  {note}", "dim") if note else text


def bounds_of(run: Generation) -> Bounds | None:
    """The least times of a run, by calc with this machine's rates; None without a cache."""
    if run.model is None or not run.request.use_cache:
        return None
    return predicted_times(
        run.model,
        run.request.cache,
        prompt_tokens=len(run.prompt_ids),
        new_tokens=len(run.ids),
        reused_tokens=run.reused_tokens,
    )


def predicted_of(run: Generation) -> RunTimes | None:
    """The prediction from the model's own operators; None without a cache, or before they are timed."""
    if not run.request.use_cache:
        return None
    return run_times(
        run.own,
        run.request.cache,
        prompt_tokens=len(run.prompt_ids),
        new_tokens=len(run.ids),
        reused_tokens=run.reused_tokens,
        drafted=run.drafted,
    )


def _beside_text(run: Generation, rates: Timing, width: int) -> str:
    """Measured and predicted times as columns with their ratio, why they differ, and the bytes read per token."""
    predicted, bounds = predicted_of(run), bounds_of(run)
    if bounds is None and predicted is None:
        return ""
    beside = predicted or bounds
    assert beside is not None
    heading = "predicted" if predicted is not None else "at least"
    lines = [f"  {'':<5}{MEASURED + ' measured':>11}{heading:>11}{'ratio':>8}"]
    for name, measured, expected in (
        ("TTFT", rates.ttft_s, beside.ttft_s),
        ("TPOT", rates.tpot_s, beside.tpot_s),
    ):
        share = "–" if measured is None else f"{measured / expected:,.2f}"
        lines.append(f"  {name:<5}{seconds(measured):>11}{seconds(expected):>11}{share:>8}")
    found = predicted.speculated if predicted is not None else None
    if run.drafted is not None:
        lines += _drafted_lines(run.drafted, found, rates.tpot_s, width)
    if predicted is not None and (reason := predicted.why(rates.ttft_s, rates.tpot_s)):
        lines += wrap(f"differ: {reason}", width, initial_indent="  ", subsequent_indent="    ")
    if bounds is not None:
        read = f"{format_decimal(bounds.step_bytes)} per token at {format_rate(bounds.read_bytes_per_s)}"
        lines.append(f"  {read}: {seconds(bounds.tpot_s)}")
    return "\n".join(lines) + "\n"


def _drafted_lines(drafted: Drafted, found: Speculated | None, tpot_s: float | None, width: int) -> list[str]:
    """The gain of speculation as a row of that table, then the acceptance."""
    lines, said = [], drafted_text(drafted)
    if found is not None and (gain := found.measured_gain(tpot_s)) is not None:
        lines.append(f"  {'gain':<5}{f'{gain:.2f}x':>11}{f'{found.gain:.2f}x':>11}{gain / found.gain:>8.2f}")
        pays = (
            "not faster at any acceptance" if found.pays_from is None else f"faster from {found.pays_from:.2f} upwards"
        )
        said += f" (predicted {found.step_tokens:.2f} at acceptance {drafted.acceptance or 0:.2f}; {pays})"
    return lines + wrap(said, width, initial_indent="  ", subsequent_indent="    ")


def bar(value: float, *, whole: float, width: int, filled: str = FULL) -> str:
    """A bar of at most `width` characters, with eighths of a character at its end."""
    share = 0.0 if whole <= 0 else max(0.0, min(1.0, value / whole))
    cells, rest = divmod(round(share * width * 8), 8)
    end = EIGHTHS[rest] if rest and filled == FULL else ""
    return filled * cells + end


def cache_text(run: Generation | None, *, width: int, colour: str = "") -> Text:
    """Allocated and used bytes, measured, above calc's figures, with their ratio and the formula."""
    if run is None or run.model is None:
        return Text("the cache appears here, measured and predicted", style="dim")
    if not run.request.use_cache:
        return _no_cache_text(run)
    term = cache_token_term(run.model, run.request.cache)
    predicted = predicted_cache_bytes(run.model, run.capacity, run.request.cache)
    ratio = f"{run.cache_bytes / predicted:.3f}" if predicted else "–"
    whole = max(float(predicted), run.cache_bytes, 1)
    room = max(6, width - 24)
    text = Text(no_wrap=True, overflow="ellipsis")
    for mark, name, value, filled in (
        (MEASURED, "used", run.cache_used_bytes, FULL),
        (MEASURED, "allocated", run.cache_bytes, FULL),
        (" ", "predicted", predicted, EMPTY),
    ):
        text.append(f"{mark} {name:<9} {format_decimal(value):>10} ", "bold" if mark == MEASURED else "")
        drawn = bar(float(value), whole=whole, width=room, filled=filled)
        text.append(drawn + "\n", colour if mark == MEASURED else "")
    tokens = f"{run.cache_tokens:,} of {run.capacity:,} tokens"
    text.append(f"  {tokens} · measured/predicted {ratio}\n")
    text.append(f"  {term.formula} = {format_bytes_exact(term.value)} per token", "dim")
    return text


def _no_cache_text(run: Generation) -> Text:
    assert run.model is not None
    n_tokens = len(run.prompt_ids) + len(run.ids)
    spared = kv_bytes_per_request(kv_token_bytes=cache_token_term(run.model).value, context=n_tokens)
    text = Text(f"{MEASURED} no cache: 0 B\n", style="bold")
    text.append(f"every token recomputes all {n_tokens:,} tokens before it; a cache\n", "not bold")
    return text.append(f"of {format_decimal(spared)} (predicted) would avoid that", "not bold")


@dataclass(frozen=True, slots=True)
class Pair:
    """The latest runs with and without the cache."""

    cached: Generation | None = None
    uncached: Generation | None = None

    def with_run(self, run: Generation) -> Pair:
        """The pair with `run` replaced; the other run stays if it had the same prompt and model."""
        cached, uncached = (run, self.uncached) if run.request.use_cache else (self.cached, run)
        other = uncached if cached is run else cached
        if other is None or (other.prompt_ids == run.prompt_ids and other.model == run.model):
            return Pair(cached, uncached)
        return Pair(run, None) if cached is run else Pair(None, run)

    @property
    def comparable(self) -> bool:
        """Whether both exist and generated the same number of tokens."""
        a, b = self.cached, self.uncached
        return a is not None and b is not None and len(a.ids) == len(b.ids) > 0


def comparison_table(pair: Pair) -> Table:
    """Both ways side by side: measured times with their ratio, and calc's FLOPs for the same run."""
    a = pair.cached.timing if pair.cached else None
    b = pair.uncached.timing if pair.uncached else None
    rows = [
        (f"{MEASURED} {name}", seconds(_get(a, key)), seconds(_get(b, key)), _ratio(_get(b, key), _get(a, key)))
        for name, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("total", "total_s"))
    ]
    alike = "" if pair.comparable or None in (pair.cached, pair.uncached) else "not alike"
    rows.append((f"{MEASURED} tokens", _count(pair.cached), _count(pair.uncached), alike))
    if (run := pair.cached or pair.uncached) is not None and run.model is not None and run.ids:
        work = generation_work(spec_of(run.model), prompt_tokens=len(run.prompt_ids), new_tokens=len(run.ids))
        flops = format_flops(work.with_cache_flops), format_flops(work.without_cache_flops)
        rows.append(("  work (calc)", *flops, f"{work.ratio:,.1f}x"))
    return Table(
        title="With and without the cache",
        columns=("", "with", "without", "ratio"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3}),
    )


def _get(rates: Timing | None, name: str) -> float | None:
    return None if rates is None else getattr(rates, name)


def _ratio(above: float | None, below: float | None) -> str:
    return "–" if not above or not below else f"{above / below:,.1f}x"


def _count(run: Generation | None) -> str:
    return "–" if run is None else format_count(len(run.ids))


def run_table(run: Generation) -> Table:
    """A finished or stopped run as a table, for copying and export."""
    rates = run.timing
    predicted = predicted_cache_bytes(run.model, run.capacity, run.request.cache) if run.model else 0
    rows = [
        ("Model", run.model.name if run.model else "–", ""),
        ("Cache", "on" if run.request.use_cache else "off", ""),
        ("Prompt", format_count(len(run.prompt_ids)), "tokens"),
        ("New tokens", format_count(len(run.ids)), "measured"),
        ("TTFT", seconds(_get(rates, "ttft_s")), "measured"),
        ("TPOT, mean", seconds(_get(rates, "tpot_s")), "measured"),
        ("TPOT, p50", seconds(_get(rates, "tpot_p50_s")), "measured"),
        ("TPOT, p95", seconds(_get(rates, "tpot_p95_s")), "measured"),
        *_predicted_rows(run, rates),
        *_speculation_rows(run, rates),
        *_bounds_rows(run),
        ("Rate", rate(_get(rates, "tokens_per_s")), "measured"),
        ("KV cache allocated", format_bytes_exact(run.cache_bytes), "measured"),
        ("KV cache used", format_bytes_exact(run.cache_used_bytes), "measured"),
        ("KV cache predicted", format_bytes_exact(predicted), f"for {run.capacity:,} tokens"),
        ("Ended", run.outcome, ""),
    ]
    return Table(title="Generation", columns=("Quantity", "Value", "Kind"), rows=tuple(rows), numeric=frozenset({1}))


def _predicted_rows(run: Generation, rates: Timing | None) -> list[tuple[str, str, str]]:
    """Predicted times, with the ratio measured / predicted and why they differ."""
    predicted = predicted_of(run)
    if predicted is None:
        return []
    ttft_s, tpot_s = _get(rates, "ttft_s"), _get(rates, "tpot_s")
    rows = [
        (f"{name}, predicted", seconds(expected), "" if not measured else f"● / predicted {measured / expected:.2f}")
        for name, measured, expected in (("TTFT", ttft_s, predicted.ttft_s), ("TPOT", tpot_s, predicted.tpot_s))
    ]
    reason = predicted.why(ttft_s, tpot_s)
    return [*rows, *([("Why they differ", "", reason)] if reason else [])]


def _speculation_rows(run: Generation, rates: Timing | None) -> list[tuple[str, str, str]]:
    """The result of drafting, with its measured and predicted gain."""
    if run.drafted is None:
        return []
    rows = [("Drafted tokens accepted", f"{run.drafted.n_accepted:,} of {run.drafted.n_drafted:,}", "measured")]
    predicted = predicted_of(run)
    found = None if predicted is None else predicted.speculated
    if found is None:
        return rows
    gain = found.measured_gain(_get(rates, "tpot_s"))
    return [
        *rows,
        ("Tokens per step", f"{run.drafted.tokens_per_step or 1:.2f}", f"predicted {found.step_tokens:.2f}"),
        ("Gain of speculation", "–" if gain is None else f"{gain:.2f}x", f"predicted {found.gain:.2f}x"),
    ]


def _bounds_rows(run: Generation) -> list[tuple[str, str, str]]:
    bounds = bounds_of(run)
    if bounds is None:
        return []
    read = f"{format_decimal(bounds.step_bytes)} per token at {format_rate(bounds.read_bytes_per_s)}"
    return [
        ("TTFT, at least", seconds(bounds.ttft_s), "roofline"),
        ("TPOT, at least", seconds(bounds.tpot_s), read),
    ]
