"""Sizes and counts, read from text and written as text: the only place that distinguishes GB from GiB and k from Ki.

Parsing is exact (Fractions, never floats); a size that is not a whole number of bytes is rounded down.
Formatting takes int, Fraction or float and rounds the exact value once, half to even.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from fractions import Fraction
from itertools import islice

from calc.errors import QuantityError

Number = int | Fraction | float

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

MAX_BYTES = 10**18
"""An exabyte: no device or model is near it, so a larger size is a typo."""
MAX_COUNT = 10**12
"""No model has a dimension near this: a larger number is a typo."""
MAX_LIST = 256
MAX_TEXT = 64

# Compiled on first use (re keeps it): a start that reads no text pays nothing.
_NUMBER = (
    r"(?P<digits>[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?P<exponent>[eE][+-]?[0-9]{1,2})?\s*(?P<unit>[A-Za-z]*)"
)
_SIZE_UNITS = {
    "b": 1, "kb": KB, "mb": MB, "gb": GB, "tb": TB, "pb": 10**15,
    "kib": KIB, "mib": MIB, "gib": GIB, "tib": TIB, "pib": 2**50,
    "ki": KIB, "mi": MIB, "gi": GIB, "ti": TIB, "pi": 2**50,
}  # fmt: skip
_COUNT_UNITS = {
    "": 1, "k": KB, "m": MB, "g": GB, "t": TB, "ki": KIB, "mi": MIB, "gi": GIB, "ti": TIB,
}  # fmt: skip


def whole(value: Fraction) -> int | Fraction:
    """The same number, as an int if it is whole."""
    return value.numerator if value.denominator == 1 else value


def rounded_up(value: Fraction) -> int:
    """The next whole number."""
    return -(-value.numerator // value.denominator)


def largest(holds: Callable[[int], bool], most: int) -> int:
    """The largest number up to `most` that `holds`, which every smaller one does too; 0 where none does.

    >>> largest(lambda n: n * n <= 50, 1000)
    7
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


# Reading


def parse_size(text: str, *, what: str = "size") -> int:
    """Bytes in a size such as ``80GB`` (80 x 10^9) or ``79.19 GiB`` (rounded down to whole bytes).

    `what` names the field in the message of the QuantityError that anything else raises.

    >>> parse_size("80GB"), parse_size("80 gib"), parse_size("1,024 KiB")
    (80000000000, 85899345920, 1048576)
    >>> parse_size("80")
    Traceback (most recent call last):
    calc.errors.QuantityError: size 80 has no unit: 80GB is 80,000,000,000 B, 80GiB is 85,899,345,920 B
    """
    number, unit = _split(text, what=what, example="80GB or 80GiB")
    if number <= 0:
        raise QuantityError(f"{what} must be more than zero, not {text.strip()}")
    if unit not in _SIZE_UNITS:
        raise QuantityError(_bad_size_unit(text.strip(), number, unit, what=what))
    size = number * _SIZE_UNITS[unit]
    if size < 1:
        raise QuantityError(f"{what} {text.strip()} is less than one byte")
    if size > MAX_BYTES:
        raise QuantityError(f"{what} {text.strip()} is too large: the maximum is 1,000,000 TB")
    return int(size)


def parse_count(text: str, *, what: str = "count", minimum: int = 1, maximum: int = MAX_COUNT) -> int:
    """A whole number such as ``8192``, ``8k`` (8000), ``8Ki`` (8192), ``1.5k``, ``1e3``, ``4_096``, ``4,096``.

    Raises QuantityError naming `what` for anything that is not a whole number from `minimum` to `maximum`.

    >>> [parse_count(t) for t in ("8192", "8k", "8Ki", "1e3", "4_096", "4,096", "1.5k", "128Ki")]
    [8192, 8000, 8192, 1000, 4096, 4096, 1500, 131072]
    """
    number, unit = _split(text, what=what, example="8192, 8k (8000) or 8Ki (8192)")
    if unit not in _COUNT_UNITS:
        raise QuantityError(_bad_count_unit(text, unit, what=what))
    value = number * _COUNT_UNITS[unit]
    if value < minimum:
        raise QuantityError(f"{what} must be at least {minimum:,}, not {text.strip()}")
    if value > maximum:
        raise QuantityError(f"{what} must be at most {maximum:,}, not {text.strip()}")
    if value.denominator != 1:
        raise QuantityError(f"{what} must be a whole number, not {text.strip()}")
    return value.numerator


def parse_counts(
    text: str, *, what: str = "count", minimum: int = 1, maximum: int = MAX_COUNT, most: int = MAX_LIST
) -> tuple[int, ...]:
    """Counts in a list ``1,2,4,8``, in ranges ``64..16384`` that double, in ranges with a step, or all mixed.

    A range holds both its ends: ``1..6`` is 1, 2, 4, 6. Repeats are dropped. A comma separates here: write 4_096 or
    4096, not 4,096. Raises QuantityError, also for more than `most` numbers.

    >>> parse_counts("1,2,4,8"), parse_counts("64..1Ki"), parse_counts("1..6"), parse_counts("100..1000:300")
    ((1, 2, 4, 8), (64, 128, 256, 512, 1024), (1, 2, 4, 6), (100, 400, 700, 1000))
    """
    found: dict[int, None] = {}
    for part in text.split(",", most + 1):
        span, colon, by = part.partition(":")
        low, dots, high = span.partition("..")
        if colon and not dots:
            raise QuantityError(f"{what} {part.strip()} has a step but no range: write 1..256:16")
        first = parse_count(low, what=what, minimum=minimum, maximum=maximum)
        last = parse_count(high, what=what, minimum=minimum, maximum=maximum) if dots else first
        step = parse_count(by, what=f"step of {what}") if colon else None
        if first > last:
            raise QuantityError(f"{what} range {first}..{last} goes down: write {last}..{first}")
        if first == 0 and last > 0 and step is None:
            raise QuantityError(f"{what} range 0..{last} cannot double from 0: start at 1")
        found.update(dict.fromkeys(islice(_span(first, last, step), most + 1)))
        if len(found) > most:
            raise QuantityError(f"{what} has more than {most:,} numbers")
    return tuple(found)


def _span(first: int, last: int, step: int | None) -> Iterable[int]:
    """From `first` to `last`, both included, by steps, or doubling."""
    if step is not None:
        yield from range(first, last, step)
    else:
        while first < last:
            yield first
            first *= 2
    yield last


def parse_share(text: str) -> Fraction:
    """A share such as ``0.9`` or ``90%``, more than 0 and at most 1. Raises QuantityError.

    >>> parse_share("0.9") == parse_share("90 %")
    True
    """
    stripped = text.strip()
    try:
        value = Fraction(stripped.removesuffix("%")[:MAX_TEXT].strip()) / (100 if stripped.endswith("%") else 1)
    except (ValueError, ZeroDivisionError):
        raise QuantityError(f"expected a share such as 0.9 or 90%, not {_shown(stripped)}") from None
    if not 0 < value <= 1:
        raise QuantityError(f"a share must be more than 0 and at most 1, not {_shown(stripped)}")
    return value


def parse_rate(text: str) -> float:
    """A number per second such as ``2.5`` or ``40``, more than 0. Raises QuantityError."""
    number, unit = _split(text, what="rate", example="2.5")
    if unit or number <= 0:
        raise QuantityError(f"a rate is a number per second, more than 0, such as 2.5, not {_shown(text.strip())}")
    return float(number)


_SECONDS = {"s": 1, "ms": 10**-3, "us": 10**-6, "µs": 10**-6, "min": 60}


def parse_duration(text: str) -> float:
    """Seconds in a time such as ``500ms``, ``1.5 s`` or ``2min``, more than 0. Raises QuantityError.

    >>> parse_duration("500ms"), parse_duration("1.5 s")
    (0.5, 1.5)
    """
    number, unit = _split(text, what="time", example="500ms")
    if unit not in _SECONDS:
        raise QuantityError(f"a time needs a unit: 500ms or 1.5s, not {_shown(text.strip())}")
    if number <= 0:
        raise QuantityError(f"a time must be more than 0, not {_shown(text.strip())}")
    return float(number) * _SECONDS[unit]


def _split(text: str, *, what: str, example: str) -> tuple[Fraction, str]:
    """The exact number at the start of `text`, and the letters after it in lower case."""
    stripped = text.strip()
    if not stripped:
        raise QuantityError(f"{what} is empty: write a number such as {example}")
    match = re.fullmatch(_NUMBER, stripped) if len(stripped) <= MAX_TEXT else None
    if match is None:
        raise QuantityError(f"{what} must be a number such as {example}, not {_shown(stripped)}")
    digits = match["digits"].replace(",", "").replace("_", "")
    number = Fraction(digits + (match["exponent"] or ""))
    return number, match["unit"].lower()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _bad_size_unit(text: str, number: Fraction, unit: str, *, what: str) -> str:
    if unit not in {"", "k", "m", "g", "t"}:
        return f"{what} has an unknown unit in {_shown(text)}: use B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"
    if not unit and number >= 10**6:
        return f"{what} {text} has no unit: {text}B is {format_bytes(number)}"
    digits = text[: len(text) - len(unit)].strip()
    prefix = unit.upper() or "G"
    decimal, binary = (int(number * _SIZE_UNITS[prefix.lower() + end]) for end in ("b", "ib"))
    return (
        f"{what} {text} has no {'B' if unit else 'unit'}: {digits}{prefix}B is {decimal:,} B, "
        f"{digits}{prefix}iB is {binary:,} B"
    )


def _bad_count_unit(text: str, unit: str, *, what: str) -> str:
    stripped = text.strip()
    digits = stripped[: len(stripped) - len(unit)].strip()
    if unit == "b":
        return f"{what} {stripped} could mean bytes or billions: write {digits}e9 for billions"
    return f"{what} has an unknown suffix in {_shown(stripped)}: use k (1000), Ki (1024), M or Mi"


# Writing


class Quantity(str):
    """A number as text, with its exact `value` and its `unit` for CSV columns."""

    __slots__ = ("unit", "value")
    value: Number
    unit: str

    def __new__(cls, text: str, value: Number, unit: str = "") -> Quantity:
        """`text` with what it stands for; `unit` is that of `value` ("B", "s", "FLOP", or "" for a plain number)."""
        made = super().__new__(cls, text)
        made.value, made.unit = value, unit
        return made


class Interval(str):
    """Two quantities of one unit as ``6.33 ms to 12.4 ms``: what two CSV columns hold instead."""

    __slots__ = ("high", "low")
    low: Quantity
    high: Quantity

    def __new__(cls, low: Quantity, high: Quantity) -> Interval:
        """From `low` to `high`."""
        made = super().__new__(cls, f"{low} to {high}")
        made.low, made.high = low, high
        return made


def format_bytes(n_bytes: Number) -> str:
    """A size in both units, never mixed: decimal first, binary in brackets.

    >>> format_bytes(16_060_522_496), format_bytes(131_072), format_bytes(512)
    ('16.06 GB (14.96 GiB)', '131.07 kB (128.00 KiB)', '512 B')
    """
    if -KB < n_bytes < KB:
        return format_bytes_exact(n_bytes)
    return f"{format_decimal(n_bytes)} ({format_binary(n_bytes)})"


def format_decimal(n_bytes: Number) -> Quantity:
    """A size in the decimal unit that suits it: ``16.06 GB``, ``524.80 kB``."""
    text = _scaled(n_bytes, base=1000, names=("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    return Quantity(text, n_bytes, "B")


def format_binary(n_bytes: Number) -> Quantity:
    """A size in the binary unit that suits it: ``14.96 GiB``."""
    text = _scaled(n_bytes, base=1024, names=("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    return Quantity(text, n_bytes, "B")


def format_gb(n_bytes: Number, digits: int = 2) -> Quantity:
    """Bytes in units of 10^9: ``16.06 GB``."""
    return Quantity(f"{_fixed(Fraction(n_bytes) / GB, digits)} GB", n_bytes, "B")


def format_gib(n_bytes: Number, digits: int = 2) -> Quantity:
    """Bytes in units of 2^30: ``14.96 GiB``."""
    return Quantity(f"{_fixed(Fraction(n_bytes) / GIB, digits)} GiB", n_bytes, "B")


def format_bytes_exact(n_bytes: Number) -> Quantity:
    """All bytes, with separators; parts of a byte to three places.

    >>> format_bytes_exact(131_072), format_bytes_exact(Fraction(17, 16))
    ('131,072 B', '1.062 B')
    """
    return Quantity(f"{format_count(n_bytes)} B", n_bytes, "B")


def format_count(value: Number) -> Quantity:
    """A count with separators: ``8,030,261,248``; fractions to at most three places."""
    text = _fixed(Fraction(value), 3)
    return Quantity(text.rstrip("0").rstrip("."), value)


def format_flops(flops: Number) -> Quantity:
    """Floating-point operations: ``542.1 MFLOP``."""
    return Quantity(_si(flops, "FLOP", digits=1), flops, "FLOP")


def format_rate(per_second: Number, unit: str = "B/s") -> Quantity:
    """A rate: prefixes for bytes and FLOPs, separators and three figures for anything else.

    >>> format_rate(2.039e12), format_rate(312e12, "FLOP/s"), format_rate(59.318, "tokens/s")
    ('2.04 TB/s', '312.0 TFLOP/s', '59.3 tokens/s')
    """
    digits = {"B/s": 2, "FLOP/s": 1}.get(unit)
    if digits is None:
        return Quantity(f"{_significant(Fraction(per_second))} {unit}", per_second, unit)
    return Quantity(_si(per_second, unit, digits=digits), per_second, unit)


def format_number(value: float, unit: str = "", *, figures: int = 3) -> Quantity:
    """A number without its unit: to so many figures, or all of the whole part.

    >>> [format_number(value) for value in (0.05, 5.0, 59.318, 25_234.6)], format_number(1234.5, figures=4)
    (['0.05', '5', '59.3', '25,235'], '1,234')
    """
    return Quantity(f"{value:,.0f}" if abs(value) >= 10 ** (figures - 1) else f"{value:.{figures}g}", value, unit)


def format_duration_s(seconds: Number) -> Quantity:
    """A time to three figures in its natural unit.

    >>> [format_duration_s(s) for s in (0, 2.5e-7, 0.00257, 21.05, 125, 3725)]
    ['0 s', '250 ns', '2.57 ms', '21.1 s', '2 min 05 s', '1 h 02 min']
    """
    return Quantity(_duration(Fraction(seconds)), seconds, "s")


def _duration(exact: Fraction) -> str:
    if exact == 0:
        return "0 s"
    if abs(exact) >= Fraction(1199, 20):  # 59.95 s would print as 60.0 s
        return _clock(round(exact))
    # 999.5 us would print as 1000 us, so the next unit starts a little early.
    for scale, unit in ((1, "s"), (10**3, "ms"), (10**6, "µs")):
        if abs(exact) * scale >= Fraction(9995, 10_000):
            return f"{_significant(exact * scale)} {unit}"
    return f"{_significant(exact * 10**9)} ns"


def _clock(seconds: int) -> str:
    if abs(seconds) >= 3600:
        hours, rest = divmod(seconds, 3600)
        return f"{hours:,} h {rest // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s"


def _si(value: Number, unit: str, *, digits: int) -> str:
    if -1000 < value < 1000:
        return f"{_significant(Fraction(value))} {unit}"
    return _scaled(value, base=1000, names=tuple(p + unit for p in ("", "k", "M", "G", "T", "P", "E")), digits=digits)


def _scaled(value: Number, *, base: int, names: tuple[str, ...], digits: int = 2) -> str:
    """`value` in the largest unit that keeps what is printed under `base`."""
    exact, power = Fraction(value), 0
    while power < len(names) - 1 and round(abs(exact), digits) >= base:
        exact, power = exact / base, power + 1
    return f"{_fixed(exact, digits)} {names[power]}"


def _significant(value: Fraction) -> str:
    """Three figures, or all of the whole part: 0.993, 59.3, 1,234."""
    bounds = ((100, 0), (10, 1), (1, 2))
    digits = next((digits for bound, digits in bounds if round(abs(value), digits) >= bound), 3)
    text = _fixed(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and value.denominator == 1 else text


def _fixed(value: Fraction, digits: int) -> str:
    """`value` with `digits` decimals and thousands separators, rounded once from the exact number."""
    scaled = round(value * 10**digits)
    whole, rest = divmod(abs(scaled), 10**digits)
    sign = "-" if scaled < 0 else ""
    return f"{sign}{whole:,}.{rest:0{digits}d}" if digits else f"{sign}{whole:,}"


def requests(n: int) -> str:
    """``one request``, ``2 requests``."""
    return "one request" if n == 1 else f"{n:,} requests"
