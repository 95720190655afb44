"""Stored bytes per element: exact, as whole blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from calc.errors import QuantityError
from calc.units import whole

if TYPE_CHECKING:
    from calc.model.stored import StoredWeights


@dataclass(frozen=True, slots=True)
class StorageFormat:
    """`block_elems` elements are stored in `block_bytes` bytes (including scales and zero points).

    `stored` is given if the format describes all weights of one model, with tensors of several types; the block is then
    the whole model. `note` is a remark for readers. `pair` are the formats of K and V if they differ; the block is then
    their mean for one model (`calc.model.cache_pair`).
    """

    name: str
    block_elems: int
    block_bytes: int
    stored: StoredWeights | None = None
    note: str = field(default="", compare=False)
    pair: tuple[StorageFormat, StorageFormat] | None = None

    @property
    def bytes_per_element(self) -> int | Fraction:
        """Exact bytes per element: an int if it is whole, else a Fraction (Q8_0: 34/32)."""
        return whole(Fraction(self.block_bytes, self.block_elems))


def _ggml(name: str, block_elems: int, block_bytes: int) -> StorageFormat:
    mixes = f"Q{name[1]}_K_S and Q{name[1]}_K_M" if name in ("q4_k", "q5_k") else f"gguf-{name}"
    note = (
        f"Every weight is counted as {name}; a GGUF file stores some tensors in other types: use --weight-format "
        f"{mixes}."
    )
    return StorageFormat(name, block_elems, block_bytes, note=note)


# Block layouts of the ggml types: ggml-common.h (Q8_0: one fp16 scale for 32 int8; Q4_K: 256 elements in 144 B).
FORMATS: dict[str, StorageFormat] = {
    f.name: f
    for f in (
        StorageFormat("fp32", 1, 4),
        StorageFormat("bf16", 1, 2),
        StorageFormat("fp16", 1, 2),
        StorageFormat("fp8", 1, 1),
        StorageFormat("fp8_e4m3", 1, 1),
        StorageFormat("fp8_e5m2", 1, 1),
        StorageFormat("int8", 1, 1),
        StorageFormat("int4", 2, 1),
        _ggml("q8_0", 32, 34),
        _ggml("q6_k", 256, 210),
        _ggml("q5_k", 256, 176),
        _ggml("q5_1", 32, 24),
        _ggml("q5_0", 32, 22),
        _ggml("q4_k", 256, 144),
        _ggml("q4_1", 32, 20),
        _ggml("q4_0", 32, 18),
        _ggml("iq4_nl", 32, 18),
        StorageFormat("mxfp4", 32, 17),
        StorageFormat("nvfp4", 16, 9),
    )
}
GGML_FORMATS = frozenset(name for name, f in FORMATS.items() if f.note)
"""Formats that only GGUF files and llama.cpp have."""
ALIASES = {
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "f16": "fp16", "float32": "fp32", "float": "fp32",
    "f32": "fp32", "float8": "fp8", "fp8_e4m3fn": "fp8_e4m3",
}  # fmt: skip


def format_key(name: str) -> str:
    """How a format's name is matched: case, ``-``, ``_`` and spaces are ignored.

    >>> format_key("Q4-K-M") == format_key("q4_k_m") == format_key("Q4KM")
    True
    """
    return name.strip().lower().replace("-", "").replace("_", "").replace(" ", "")


def known_format(name: str) -> StorageFormat | None:
    """The fixed-size format called `name`; None if there is none."""
    key = format_key(name)
    return _BY_KEY.get(key)


_BY_KEY = {format_key(name): FORMATS[name] for name in FORMATS} | {
    format_key(other): FORMATS[name] for other, name in ALIASES.items()
}


def storage_format(name: str) -> StorageFormat:
    """The format called `name` (any case, ``-`` or ``_``). Raises QuantityError with near names, or all of them."""
    if (found := known_format(name)) is not None:
        return found
    raise unknown_format(name, tuple(FORMATS))


def unknown_format(name: str, known: tuple[str, ...], hint: str = "") -> QuantityError:
    """The error that no format of `known` is called `name`, with near names if there are any."""
    from difflib import get_close_matches  # only on failure

    keys = {format_key(each): each for each in known}
    near = [keys[key] for key in get_close_matches(format_key(name)[:40], keys, n=3, cutoff=0.6)]
    offered = f"did you mean {' or '.join(near)}? " if near else ""
    said = hint or f"{offered}known: {', '.join(known)}"
    return QuantityError(f"unknown storage format {name[:60]!r}; {said}")


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
    """`text` unless it is long or has a big exponent: Fraction("1e999999999") would run for hours."""
    if len(text) > 24 or len(text.lower().partition("e")[2]) > 3:
        raise ValueError(text)
    return text


def parse_format(text: str) -> StorageFormat:
    """A format by name, or by bytes per element if the text starts like a number."""
    stripped = text.strip()
    return bytes_format(stripped) if starts_as_number(stripped) else storage_format(stripped)


def starts_as_number(text: str) -> bool:
    """Whether `text` is meant as bytes per element, right or wrong."""
    unsigned = text.lstrip("+-")
    return unsigned[:1].isdigit() or unsigned.startswith(".")
