"""A run's speculation, measured and predicted: calc's expectation for that acceptance, from timed steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from calc.speed.drafts import acceptance_that_pays, step_tokens
from engine.measure.own import OwnTimes
from engine.speculation import Drafted
from tui.live.own_times import interpolated, step_s

NS_PER_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculated:
    """The prediction for the measured acceptance.

    `without_s`: the time per token without speculation. `tpot_s`: with it, using the measured drafting time.
    `step_tokens`: the mean over all steps. `pays_from`: the acceptance above which full drafts are faster; None if none
    is.
    """

    without_s: float
    tpot_s: float
    step_tokens: float
    pays_from: float | None
    slowdown: float = 1.0
    """Slowdown of everything because of other processes."""

    @property
    def gain(self) -> float:
        """Tokens per second relative to those without it."""
        return self.without_s / self.tpot_s

    def measured_gain(self, tpot_s: float | None) -> float | None:
        """The same for a measured time per token, relative to the predicted one without speculation on an equally busy
        machine."""
        return self.without_s * self.slowdown / tpot_s if tpot_s else None


def _ratios(own: OwnTimes) -> Callable[[float], float]:
    """Time of a step over several tokens relative to one token: linear between timed values."""
    points = [(1.0, 1.0)]
    for text in sorted(own.texts, key=lambda text: text.tokens):
        one_s = step_s(own, 1, text.context)
        if one_s:
            points.append((float(text.tokens), text.seconds / one_s))
    return lambda tokens: interpolated(points, tokens)


def speculated(own: OwnTimes, drafted: Drafted, context: float) -> Speculated | None:
    """The prediction at the middle of a run; None if steps of several tokens were not timed, or there were none."""
    without_s, acceptance, n_steps = step_s(own, 1, context), drafted.acceptance, len(drafted.by_step)
    if without_s is None or not own.texts or not n_steps:
        return None
    ratio = _ratios(own)
    each_s = drafted.drafting_ns / NS_PER_S / n_steps
    counts = Counter(drafted.by_step)
    made = sum(n * step_tokens(k, acceptance or 0.0) for k, n in counts.items())
    took_s = sum(n * (without_s * ratio(1 + k) + each_s) for k, n in counts.items())
    full = ratio(1 + drafted.tokens) + each_s / without_s
    return Speculated(
        without_s=without_s,
        tpot_s=took_s / made,
        step_tokens=made / n_steps,
        pays_from=acceptance_that_pays(drafted.tokens, full),
        slowdown=own.slowdown,
    )
