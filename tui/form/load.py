"""What the Load pane asks. Its typed form is in `load_fields`, for which the first paint does not wait."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tui.form.serving import Limit

ARRIVALS = ("poisson", "constant")
LIMITS: tuple[Limit, ...] = (("ttft", 0.5), ("tpot", 0.05))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAsked:
    """Requests that arrive over time. Lengths are written as on the command line; limits are in seconds."""

    prompt: str = "1024"
    new: str = "256"
    prefix_hit: Fraction | None = None
    limits: tuple[Limit, ...] = LIMITS
    tp: int = 1
    arrivals: str = ARRIVALS[0]
