"""Bytes per element as stored: exact, as whole blocks."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from calc.errors import QuantityError


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """`block_elems` elements are stored in `block_bytes` bytes (scales and zero points included)."""

    name: str
    block_elems: int
    block_bytes: int

    @property
    def bytes_per_element(self) -> int | Fraction:
        """Exact bytes per element: an int where it is whole, else a Fraction (Q8_0: 34/32)."""
        return whole(Fraction(self.block_bytes, self.block_elems))


def whole(value: Fraction) -> int | Fraction:
    """The same number as an int where it is one."""
    return value.numerator if value.denominator == 1 else value


# Block layouts of the ggml types: ggml-common.h (Q8_0: one fp16 scale for 32 int8; Q4_K: 256 elements in 144 B).
FORMATS: dict[str, StorageFormat] = {
    f.name: f
    for f in (
        StorageFormat("fp32", 1, 4),
        StorageFormat("bf16", 1, 2),
        StorageFormat("fp16", 1, 2),
        StorageFormat("fp8", 1, 1),
        StorageFormat("int8", 1, 1),
        StorageFormat("int4", 2, 1),
        StorageFormat("q8_0", 32, 34),
        StorageFormat("q6_k", 256, 210),
        StorageFormat("q5_k", 256, 176),
        StorageFormat("q5_1", 32, 24),
        StorageFormat("q5_0", 32, 22),
        StorageFormat("q4_k", 256, 144),
        StorageFormat("q4_1", 32, 20),
        StorageFormat("q4_0", 32, 18),
        StorageFormat("iq4_nl", 32, 18),
        StorageFormat("mxfp4", 32, 17),
        StorageFormat("nvfp4", 16, 9),
    )
}


def storage_format(name: str) -> StorageFormat:
    """The format called `name` (any case, ``-`` or ``_``). Raises QuantityError with the known names."""
    key = name.strip().lower().replace("-", "_")
    key = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}.get(key, key)
    if key in FORMATS:
        return FORMATS[key]
    raise QuantityError(f"unknown storage format {name!r}; known: {', '.join(FORMATS)}")


def bytes_format(text: str) -> StorageFormat:
    """A format from bytes per element typed as a number: ``2``, ``0.5``, ``9/16``."""
    try:
        value = Fraction(_short(text.strip()))
    except (ValueError, ZeroDivisionError):
        raise QuantityError(f"bytes per element must be a number such as 2 or 0.5, not {text[:40]!r}") from None
    if not 0 < value <= 64 or value.denominator > 4096:
        raise QuantityError(f"bytes per element must lie between 1/4096 and 64, not {text!r}")
    return StorageFormat(f"{text.strip()} B", value.denominator, value.numerator)


def _short(text: str) -> str:
    """`text` unless it is long or has a big exponent: Fraction("1e999999999") would work for hours."""
    if len(text) > 24 or len(text.lower().partition("e")[2]) > 3:
        raise ValueError(text)
    return text


def parse_format(text: str) -> StorageFormat:
    """A format by name, or by bytes per element when the text starts like a number."""
    stripped = text.strip()
    if stripped.lstrip("+-")[:1].isdigit() or stripped.lstrip("+-").startswith("."):
        return bytes_format(stripped)
    return storage_format(stripped)
