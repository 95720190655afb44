"""Checks of counts."""

from __future__ import annotations

from calc.errors import SpecError
from calc.units import MAX_COUNT


def check_count(name: str, value: object, *, minimum: int = 1, maximum: int = MAX_COUNT) -> None:
    """Raise SpecError, naming the field, unless `value` is a whole number from `minimum` to `maximum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(name, f"{name} must be a whole number, not {value!r}")
    if value < minimum:
        raise SpecError(name, f"{name} must be at least {minimum:,}, not {_shown(value)}")
    if value > maximum:
        raise SpecError(name, f"{name} must be at most {maximum:,}, not {_shown(value)}")


def _shown(value: int) -> str:
    """An integer in a sentence: all digits, or only their number if there are too many to read or print."""
    if abs(value) < 10**18:
        return f"{value:,}"
    return f"a {'negative ' if value < 0 else ''}number of more than 18 digits"


def check_heads(n_heads: int, n_kv_heads: int) -> None:
    """Raise SpecError unless each KV head serves a whole number of query heads."""
    if n_heads % n_kv_heads:
        raise SpecError(
            "n_kv_heads",
            f"n_heads {n_heads} is not divisible by n_kv_heads {n_kv_heads}: each KV head serves a whole number of "
            f"query heads ({_near_divisors(n_heads, n_kv_heads)})",
        )


def _near_divisors(n: int, wanted: int) -> str:
    divisors = [d for d in range(1, min(n, 4096) + 1) if n % d == 0]
    near = sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:3])
    return "try " + ", ".join(map(str, near))
