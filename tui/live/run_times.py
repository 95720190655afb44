"""A generation's times, measured and predicted from the model's own operators, and the least that memory allows."""

from __future__ import annotations

from dataclasses import dataclass

from engine.measure.own import BUDGET_S, MeasureOwnTimes, Needs, OwnTimes
from engine.process.events import Generate
from engine.records import CacheKind, OnModel
from engine.speculation import Drafted
from tui.live.own_times import beyond, generation_s, why
from tui.live.speculated import NS_PER_S, Speculated, speculated

MODEL_FIELDS = tuple(name for name in OnModel.__struct_fields__ if name != "request_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """The prediction for a run with the cache, in seconds."""

    ttft_s: float
    tpot_s: float
    own: OwnTimes
    notes: tuple[str, ...]
    """Known reasons for a difference."""
    speculated: Speculated | None = None
    """The basis of `tpot_s` if tokens were drafted."""

    def why(self, ttft_s: float | None, tpot_s: float | None) -> str:
        """Why the measurement differs from this; empty if it does not."""
        first = why(self.own, ttft_s, self.ttft_s, *self.notes)
        later = why(self.own, tpot_s, self.tpot_s, *self.notes)
        if first == later or not (first and later):
            return first or later
        return f"TTFT: {first}; TPOT: {later}"


def own_request(
    request: Generate, *, prompt_tokens: int, new_tokens: int, budget_s: float = BUDGET_S
) -> MeasureOwnTimes:
    """The request for the times that a run like this needs: single steps and its prompt."""
    text = 1 if request.speculate is None else 1 + request.speculate.most
    needs = Needs(rows=1, context=prompt_tokens + new_tokens + 1, prompt=prompt_tokens, text=text)
    return MeasureOwnTimes(needs=needs, budget_s=budget_s, **{name: getattr(request, name) for name in MODEL_FIELDS})


def run_times(
    own: OwnTimes | None,
    cache: CacheKind,
    *,
    prompt_tokens: int,
    new_tokens: int,
    reused_tokens: int = 0,
    drafted: Drafted | None = None,
) -> RunTimes | None:
    """The times of a run; None if nothing was timed. `reused_tokens` of the prompt were cached.

    `drafted`: the result of drafting; the time per token is predicted for its acceptance.
    """
    if own is None or prompt_tokens <= reused_tokens:
        return None
    both = generation_s(own, prompt_tokens - reused_tokens, new_tokens, past=reused_tokens)
    if both is None:
        return None
    kept = "" if cache == "full" else f"steps were timed with a full cache, but this run used the kind {cache}"
    reach = beyond(own, context=prompt_tokens + new_tokens, prompt=prompt_tokens)
    notes, (ttft_s, tpot_s) = tuple(filter(None, (kept, reach))), both
    if drafted is None:
        return RunTimes(ttft_s=ttft_s, tpot_s=tpot_s, own=own, notes=notes)
    found = speculated(own, drafted, prompt_tokens + max(1, new_tokens) / 2)
    return RunTimes(
        ttft_s=ttft_s + drafted.reading_ns / NS_PER_S,
        tpot_s=tpot_s if found is None else found.tpot_s,
        own=own,
        notes=notes,
        speculated=found,
    )
