"""Tensors that are read from their file on demand, and the reader of safetensors files."""

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import CheckpointError
from engine.weights.panels import ROWS, Groups, PanelForm
from engine.weights.pointers import NOT_FETCHED, is_pointer

_MAX_HEADER_BYTES = 100 << 20  # of a safetensors file; the format's own limit
_SAFETENSORS = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredGroups:
    """Rows of a matrix whose blocks fit one of the engine's formats: ``part`` reads them without dequantizing."""

    kind: PanelForm
    part: Callable[[int, int], Groups]

    def then(self, change: Callable[[Tensor], Tensor], unit: int) -> "StoredGroups":
        """The same with rows permuted within every ``unit`` rows."""

        def part(start: int, stop: int) -> Groups:
            first, last = _units(start, stop, unit)
            values, scales = (change(t)[start - first : stop - first] for t in self.part(first, last))
            return Groups(values, scales)

        return StoredGroups(kind=self.kind, part=part)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor still in its file: ``load()`` reads it. ``dtype``: as stored, float32 for quantised blocks.

    ``copied``: `load` returns memory of its own; otherwise it returns the mapped file itself. ``part`` reads a slice
    of the first dimension, ``groups`` reads blocks without dequantizing; each is None if that is not possible.
    ``element_bytes``: bytes per element in the file, if that is not the size of the dtype.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    copied: bool = True
    part: Callable[[int, int], Tensor] | None = None
    element_bytes: float | None = None
    groups: StoredGroups | None = None

    def spans(self, n_elements: int) -> Iterator[tuple[int, int]]:
        """(start, stop) rows of consecutive parts of about ``n_elements`` each, in whole panels."""
        at_once = max(1, n_elements * self.shape[0] // math.prod(self.shape) // ROWS) * ROWS
        for start in range(0, self.shape[0], at_once):
            yield start, min(start + at_once, self.shape[0])

    def pieces(self, n_elements: int) -> Iterator[Tensor]:
        """The rows in order, about ``n_elements`` at a time; all at once if parts cannot be read separately."""
        if self.part is None or math.prod(self.shape) <= n_elements:
            yield self.load()
            return
        for start, stop in self.spans(n_elements):
            yield self.part(start, stop)

    def rows(self, start: int, stop: int) -> "StoredTensor":
        """Rows ``start`` to ``stop`` as a tensor still in its file."""
        part, groups = self.part, self.groups
        if part is None:
            return self.then(lambda t: t[start:stop], (stop - start, *self.shape[1:]))
        return StoredTensor(
            shape=(stop - start, *self.shape[1:]),
            dtype=self.dtype,
            load=lambda: part(start, stop),
            copied=self.copied,
            part=lambda a, b: part(start + a, start + b),
            groups=groups and StoredGroups(kind=groups.kind, part=lambda a, b: groups.part(start + a, start + b)),
        )

    def then(self, change: Callable[[Tensor], Tensor], shape: tuple[int, ...] | None = None) -> "StoredTensor":
        """The same tensor, with ``change`` applied after loading."""
        return StoredTensor(
            shape=shape or self.shape,
            dtype=self.dtype,
            load=lambda: change(self.load()),
            copied=self.copied,
            element_bytes=self.element_bytes,
        )

    def reordered(self, change: Callable[[Tensor], Tensor], unit: int) -> "StoredTensor":
        """The same with rows permuted within every ``unit`` rows, which also works on parts."""
        part, groups = self.part, self.groups
        if part is None or self.shape[0] % unit:
            return self.then(change)

        def reordered(start: int, stop: int) -> Tensor:
            first, last = _units(start, stop, unit)
            return change(part(first, last))[start - first : stop - first]

        return StoredTensor(
            shape=self.shape,
            dtype=self.dtype,
            load=lambda: change(self.load()),
            copied=self.copied,
            part=reordered,
            element_bytes=self.element_bytes,
            groups=groups and groups.then(change, unit),
        )


def _units(start: int, stop: int, unit: int) -> tuple[int, int]:
    """The row range of all units that overlap rows ``start`` to ``stop``."""
    return start - start % unit, -(-stop // unit) * unit


Stored = Tensor | StoredTensor


def loaded(stored: Stored) -> Tensor:
    """The tensor itself."""
    return stored if isinstance(stored, Tensor) else stored.load()


def file_bytes(stored: Stored, n_elements: int | None = None) -> int:
    """Bytes that a tensor, or some elements of it, take in the file."""
    each = stored.element_bytes if isinstance(stored, StoredTensor) else None
    n = math.prod(stored.shape) if n_elements is None else n_elements
    return round(n * (stored.dtype.itemsize if each is None else each))


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a .safetensors file. Raises CheckpointError.

    Each tensor is mapped only while it is loaded: a file that stays mapped counts as memory of this process, in
    addition to the weights converted from it.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: _stored(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None


def _stored(path: Path, name: str, view: Any) -> StoredTensor:
    kind = view.get_dtype()
    if kind not in _SAFETENSORS:
        raise CheckpointError(f"{path}: {name} is stored as {kind}, which cannot be loaded")
    return StoredTensor(
        shape=tuple(view.get_shape()),
        dtype=_SAFETENSORS[kind],
        load=partial(_load, path, name),
        copied=False,
        part=partial(_load, path, name),
    )


def _load(path: Path, name: str, *rows: int) -> Tensor:
    """The tensor, or its rows in the half-open range ``rows``."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensor: Tensor = file.get_slice(name)[rows[0] : rows[1]] if rows else file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} changed while it was being read: {error}") from None
    return tensor


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(64)
    if is_pointer(start):
        raise ValueError(NOT_FETCHED)
    header_bytes = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
    if not 0 < header_bytes <= min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError(f"its header would be {header_bytes:,} bytes in a file of {size:,}")
