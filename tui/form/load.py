"""What the Load pane asks. How it is typed is in `load_fields`, which the first paint does not wait for."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tui.form.serving import Limit

ARRIVALS = ("poisson", "constant")
LIMITS: tuple[Limit, ...] = (("ttft", 0.5), ("tpot", 0.05))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadAsked:
    """Requests that come over time. Lengths are as they are written on the command line; limits are in seconds."""

    prompt: str = "1024"
    new: str = "256"
    prefix_hit: Fraction | None = None
    limits: tuple[Limit, ...] = LIMITS
    tp: int = 1
    arrivals: str = ARRIVALS[0]
