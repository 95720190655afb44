"""Generations as plain text without colours. Pure, without torch."""

from engine.generation_events import GenerationFinished
from engine.measure.timing import timing
from engine.speculation import Drafted
from engine.text import duration, plural

ENDS = {
    "positions": "positions: the model's context limit is reached",
    "cache": "cache: it is full",
    "stop": "stop text",
}
"""Explanations of finish reasons."""


def generation_text(finished: GenerationFinished) -> str:
    """The rates of a run in one line."""
    rates = timing(finished.start_ns, finished.token_times_ns)
    parts = [f"{plural(rates.n_tokens, 'token')} ({ENDS.get(finished.reason, finished.reason)})"]
    if rates.ttft_s is not None:
        parts.append(f"first after {duration(rates.ttft_s)}")
    if rates.tpot_s is not None:
        parts.append(f"then {duration(rates.tpot_s)} each")
    if rates.tokens_per_s is not None:
        parts.append(f"{rates.tokens_per_s:,.1f} tokens/s")
    if finished.drafted is not None:
        parts.append(drafted_text(finished.drafted))
    parts.append(f"KV cache {finished.kv_cache_bytes:,} B" if finished.kv_cache_bytes else "no KV cache")
    return " · ".join(parts)


def drafted_text(drafted: Drafted) -> str:
    """ "accepted 42 of 70 drafted tokens, 2.4 tokens per step"."""
    if not drafted.n_drafted:
        return "nothing was drafted"
    alone = "" if drafted.compiled else " (drafting gains nothing without the compiled step)"
    return (
        f"accepted {drafted.n_accepted:,} of {plural(drafted.n_drafted, 'drafted token')}, "
        f"{drafted.tokens_per_step:.2f} tokens per step{alone}"
    )
