"""A quantization_config as a value, typed access to its fields, and arithmetic that several methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calc.errors import SourceError
from calc.model.count import LM_HEAD

MAX_PATTERNS = 20_000
MAX_PATTERN = 500

Size = Callable[[int, int], int]
"""(rows, columns) -> bytes of one quantized matrix with its scales."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How matrices are stored: `matrix_bytes` for all except the `ignored` ones, which are not quantized.

    `groups` are (targets, size) for modules that are stored differently; the first match counts. With `others_too` off,
    a matrix that no group names is not quantized. Names are module names, ``re:`` patterns or globs. Each name in
    `every` must be a module of the model; otherwise our names differ from those in the list, and something would be
    missed. `embedding_too` and `routers_too`: the embedding and the routers are quantized like the linear layers (MLX).
    """

    name: str
    matrix_bytes: Size
    experts_alone: bool = False
    ignored: tuple[str, ...] = (LM_HEAD,)
    groups: tuple[tuple[tuple[str, ...], Size], ...] = ()
    others_too: bool = True
    every: tuple[str, ...] = ()
    embedding_too: bool = False
    routers_too: bool = False


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def integer_bytes(rows: int, columns: int, *, bits: int, group: int, zeros: bool, order: bool, scale: int) -> int:
    """Packed integers of `bits`, a scale of `scale` bytes and a zero point per group of inputs, an index with `order`.

    >>> integer_bytes(4096, 4096, bits=4, group=128, zeros=True, order=False, scale=2)
    8716288
    """
    groups = cdiv(columns, group) if group > 0 else 1
    words = cdiv(columns * bits, 32) * rows * 4
    zero_words = groups * cdiv(rows * bits, 32) * 4 if zeros else 0
    return words + groups * rows * scale + zero_words + (4 * columns if order else 0)


def grouped(name: str, group: int) -> str:
    """`name` with the groups of its scales."""
    return f"{name}, groups of {group}" if group > 0 else f"{name}, by row"


class Quant:
    """Typed access to a quantization_config."""

    def __init__(self, raw: Mapping[str, Any], where: str, dtype: str = "") -> None:
        self.raw = raw
        self.where = where
        self.dtype = dtype

    def fail(self, what: str) -> SourceError:
        return SourceError(f"{self.where}: {what}")

    def count(self, *keys: str, default: int | None = None, lowest: int = 1) -> int:
        for key in keys:
            value = self.raw.get(key)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= 2**20:
                    raise self.fail(f"{key} must be a whole number, not {str(value)[:40]!r}")
                return value
        if default is None:
            raise self.fail(f"{keys[0]} missing")
        return default

    def section(self, key: str) -> Quant | None:
        """A nested object; None if there is none."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
            raise self.fail(f"{key} must be an object")
        return Quant(value, f"{self.where}: {key}", self.dtype)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key, default)
        return default if value is None else bool(value)

    def names(self, *keys: str) -> tuple[str, ...]:
        found: list[str] = []
        for key in keys:
            value = self.raw.get(key) or []
            if not isinstance(value, list) or len(value) > MAX_PATTERNS:
                raise self.fail(f"{key} must be a list of names")
            found += [str(name)[:MAX_PATTERN] for name in value]
        return tuple(found)
