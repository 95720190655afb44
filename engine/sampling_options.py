"""Values of sampling and length options that mean nothing are refused: here, without torch, so that a command line
says so before an engine is started.
"""

import math
from collections.abc import Sequence

from engine.errors import OptionError

_MAX_SEED = 2**63
_MAX_PENALTY = 100.0


def check_sampling(
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    presence_penalty: float | None = None,
    seed: int | None = None,
) -> None:
    """Raise OptionError, naming the field, for values that mean nothing."""
    if not 0 <= temperature < math.inf:
        raise OptionError("temperature", f"temperature is {temperature}; it must be 0 (greedy) or above")
    if top_k is not None and top_k < 1:
        raise OptionError("top_k", f"top_k is {top_k}; it must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise OptionError("top_p", f"top_p is {top_p}; it must be above 0 and at most 1")
    if min_p is not None and not 0 <= min_p <= 1:
        raise OptionError("min_p", f"min_p is {min_p}; it must be from 0 to 1")
    if repetition_penalty is not None and not 0 < repetition_penalty <= _MAX_PENALTY:
        raise OptionError(
            "repetition_penalty", f"repetition_penalty is {repetition_penalty}; it must be above 0 (1 is off)"
        )
    if presence_penalty is not None and not -_MAX_PENALTY <= presence_penalty <= _MAX_PENALTY:
        raise OptionError(
            "presence_penalty",
            f"presence_penalty is {presence_penalty}; it must be from -{_MAX_PENALTY:g} to {_MAX_PENALTY:g}",
        )
    if seed is not None and not 0 <= seed < _MAX_SEED:
        raise OptionError("seed", f"seed is {seed}; it must be from 0 to 2^63 - 1")


def check_stop(stop: Sequence[str]) -> None:
    """Raise OptionError for a stop text that is empty."""
    if "" in stop:
        raise OptionError("stop", "a stop text is empty; it would end every run at once")


def check_at_least_one(**values: int | None) -> None:
    """Raise OptionError, naming the field, for a number below 1."""
    for field, value in values.items():
        if value is not None and value < 1:
            raise OptionError(field, f"{field} is {value}; it must be at least 1")
