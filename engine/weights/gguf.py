"""GGUF files: header, metadata, and tensors that are dequantized one at a time, as the decoder takes them.

This module reads the header with bounds, much faster than a general reader for vocabularies of 100,000 texts. The
`gguf` package dequantizes blocks that no format of the engine can hold.
Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import re
import struct
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.weights.gguf_blocks import GROUPED, repack, widen
from engine.weights.lazy import StoredGroups, StoredTensor
from engine.weights.panels import Groups
from engine.weights.pointers import NOT_FETCHED, is_pointer

_MAGIC = b"GGUF"
_MAX_ENTRIES = 1 << 20  # metadata entries, and tensors: the largest models have some thousands
_MAX_DIMS = 4
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32
_WIDENED_AT_ONCE = 1 << 15  # blocks
_PLAIN = {0: torch.float32, 1: torch.float16, 28: torch.float64, 30: torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFile:
    """Metadata by key; tensors by the file's names, with shapes in torch's order (outputs first)."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, "GGUFTensor"]

    @property
    def architecture(self) -> str:
        """llama, qwen2, ... Raises CheckpointError."""
        name = self.metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise CheckpointError(f"{self.path} has no general.architecture; it is not a model")
        return name

    def get(self, key: str) -> Any:
        """A metadata value under the architecture's prefix: ``get("block_count")`` is llama.block_count."""
        return self.metadata.get(f"{self.architecture}.{key}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFTensor:
    """The place of a tensor in the file, and how to read all of it or one slice of its first dimension."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    file: "_Source" = field(repr=False)

    def stored(self) -> StoredTensor:
        """The whole tensor."""
        held = GROUPED.get(self.kind) if len(self.shape) == 2 else None
        return StoredTensor(
            shape=self.shape,
            dtype=_PLAIN.get(self.kind, torch.float32),
            load=lambda: self._rows(0, self.shape[0]),
            part=self._rows if len(self.shape) > 1 else None,
            element_bytes=_element_bytes(self.kind),
            groups=StoredGroups(kind=held.form, part=self._groups) if held is not None else None,
        )

    def part(self, index: int) -> StoredTensor:
        """One entry of the first dimension (an expert), read alone."""
        size = _n_bytes(self.kind, self.shape[1:], self.name)
        return replace(self, shape=self.shape[1:], offset=self.offset + index * size).stored()

    def _rows(self, start: int, stop: int) -> Tensor:
        shape = (stop - start, *self.shape[1:])
        if self.kind in GROUPED and GROUPED[self.kind].exact:
            return widen(self._groups(start, stop), self.kind, shape)
        data = self._data(start, stop)
        if self.kind in _PLAIN:
            return data.view(_PLAIN[self.kind]).view(shape)
        return _dequantized(data, shape, self.kind)

    def _groups(self, start: int, stop: int) -> Groups:
        n_rows = (stop - start) * math.prod(self.shape[1:-1]) if len(self.shape) > 1 else 1
        return repack(self._data(start, stop), self.kind, n_rows)

    def _data(self, start: int, stop: int) -> Tensor:
        n_rows, size = self.shape[0], _n_bytes(self.kind, self.shape, self.name)
        return self.file.read(self.offset + size * start // n_rows, size * (stop - start) // n_rows)


def read_gguf(path: Path) -> GGUFFile:
    """Header and tensor table of a GGUF file, of all parts of a split one; the tensors stay mapped.

    Raises CheckpointError.
    """
    parts = [_read_part(part) for part in _parts(path)]
    first = parts[0]
    stated = first.metadata.get("split.count", 1)
    if stated not in (0, len(parts)):
        raise CheckpointError(f"{first.path} is one of {stated} parts; name them as llama-gguf-split does to read all")
    return replace(first, tensors={name: tensor for part in parts for name, tensor in part.tensors.items()})


_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")


def _parts(path: Path) -> list[Path]:
    """All files of a split model, given the name of any of them. Raises CheckpointError if one is missing."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return [path]
    stem, total = match.groups()
    paths = [path.with_name(f"{stem}-{i:05d}-of-{total}.gguf") for i in range(1, int(total) + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise CheckpointError(f"{path.parent} lacks {missing[0]} of {int(total)} parts")
    return paths


def _read_part(path: Path) -> GGUFFile:
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        source = _Source(file, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError:  # an empty file cannot be mapped
        file.close()
        raise CheckpointError(f"{path} is empty") from None
    return _header(source)


class _Source:
    """A file: the header is mapped and parsed in order, tensors are read. Raises OSError, ValueError.

    Reading leaves no pages behind; mapped pages would be faulted in, counted as memory of this process and released
    one by one.
    """

    def __init__(self, file: FileIO, path: Path) -> None:
        self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.path = path
        self.at = 0
        self._file = file
        self._lock = threading.Lock()  # one thread reads ahead
        weakref.finalize(self, file.close)

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged or not a GGUF file: {what}")

    def number(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        self.check(size)
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += size
        return value

    def check(self, size: int) -> None:
        if size < 0 or self.at + size > len(self.data):
            raise self.fail(f"it ends at byte {len(self.data):,}, where {size:,} bytes more were promised")

    def text(self) -> str:
        size = self.number("Q")
        self.check(size)
        value = self.data[self.at : self.at + size].decode("utf-8", "replace")
        self.at += size
        return value

    def value(self, kind: int, *, nested: bool = False) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or nested:
            raise self.fail(f"a value of unknown type {kind}")
        return self._array(self.number("I"), self.number("Q"))

    def _array(self, kind: int, n: int) -> list[Any]:
        code = _NUMBERS.get(kind)
        self.check(n * (struct.calcsize(f"<{code}") if code else 8))  # a text takes at least 8 bytes
        if code is None:
            return [self.value(kind, nested=True) for _ in range(n)]
        values = struct.unpack_from(f"<{n}{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{n}{code}")
        return list(values)

    def read(self, offset: int, size: int) -> Tensor:
        """The bytes of a tensor, in newly allocated memory."""
        if offset + size > len(self.data):
            raise self.fail(f"a tensor ends at byte {offset + size:,} of {len(self.data):,}")
        data = torch.empty(size, dtype=torch.uint8)
        room = memoryview(data.numpy().data)
        try:
            with self._lock:
                self._file.seek(offset)
                while room:
                    n_read = self._file.readinto(room)
                    if not n_read:
                        raise self.fail(f"it has become shorter than {offset + size:,} bytes")
                    room = room[n_read:]
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from None
        return data


def _dequantized(data: Tensor, shape: tuple[int, ...], kind: int) -> Tensor:
    """Dequantize blocks to float32 in pieces: numpy's temporaries are several times as large as the result."""
    import numpy as np
    from gguf import quants
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    wanted = GGMLQuantizationType(kind)
    block, size = GGML_QUANT_SIZES[wanted]
    blocks = data.numpy().reshape(-1, size)
    # All blocks of a part in one go: `dequantize` takes sixteen rows at a time.
    by_block = getattr(quants, wanted.name).dequantize_blocks if wanted.name.startswith("Q") else None
    wide = np.empty((len(blocks), block), dtype=np.float32)
    for start in range(0, len(blocks), _WIDENED_AT_ONCE):
        part = blocks[start : start + _WIDENED_AT_ONCE]
        result = by_block(part) if by_block is not None else quants.dequantize(part, wanted)
        wide[start : start + len(part)] = result.reshape(len(part), block)
    return torch.from_numpy(wide).view(shape)


def _element_bytes(kind: int) -> float | None:
    """Bytes per element of a block type; None for plain numbers, and for types that reading will refuse."""
    if kind in _PLAIN:
        return None
    from gguf.constants import GGML_QUANT_SIZES

    block, size = next((sizes for known, sizes in GGML_QUANT_SIZES.items() if known == kind), (1, 0))
    return size / block if size else None


def _n_bytes(kind: int, shape: tuple[int, ...], name: str) -> int:
    """Bytes of a tensor. Raises CheckpointError for a type that cannot be dequantized."""
    if kind in _PLAIN:
        return math.prod(shape) * _PLAIN[kind].itemsize
    if kind in GROUPED and shape[-1] % GROUPED[kind].weights == 0:
        return math.prod(shape) // GROUPED[kind].weights * GROUPED[kind].size
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import _type_traits

    known = {int(t): t for t in _type_traits}
    if kind not in known:
        names = ", ".join(t.name for t in sorted(_type_traits))
        stored = next((t.name for t in GGMLQuantizationType if t == kind), str(kind))
        raise CheckpointError(f"{name} is stored as {stored}; F32, F16, {names} can be loaded")
    block, size = GGML_QUANT_SIZES[known[kind]]
    if shape[-1] % block:
        raise CheckpointError(f"{name} has rows of {shape[-1]} values, which blocks of {block} do not fill")
    return math.prod(shape) // block * size


def _header(source: _Source) -> GGUFFile:
    if source.data[:4] != _MAGIC:
        raise source.fail(NOT_FETCHED if is_pointer(source.data[:64]) else "it does not begin with GGUF")
    source.at = 4
    version = source.number("I")
    if version not in (2, 3):
        raise CheckpointError(f"{source.path} is GGUF version {version}; 2 and 3 can be read")
    n_tensors, n_entries = source.number("Q"), source.number("Q")
    if max(n_tensors, n_entries) > _MAX_ENTRIES:
        raise source.fail(f"it promises {n_tensors:,} tensors and {n_entries:,} entries")
    metadata = {}
    for _ in range(n_entries):
        key = source.text()
        metadata[key] = source.value(source.number("I"))
    table = list(_table(source, n_tensors))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise source.fail(f"general.alignment is {alignment!r}")
    start = -(-source.at // alignment) * alignment
    tensors = {
        name: GGUFTensor(name=name, shape=shape, kind=kind, offset=start + offset, file=source)
        for name, shape, kind, offset in table
    }
    return GGUFFile(path=source.path, metadata=metadata, tensors=tensors)


def _table(source: _Source, n_tensors: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    for _ in range(n_tensors):
        name, n_dims = source.text(), source.number("I")
        if n_dims > _MAX_DIMS:
            raise source.fail(f"{name[:80]} has {n_dims} dimensions")
        dims = tuple(source.number("Q") for _ in range(n_dims))
        if any(not 1 <= dim < 1 << 40 for dim in dims):
            raise source.fail(f"{name[:80]} has shape {list(dims)}")
        kind, offset = source.number("I"), source.number("Q")
        yield name, tuple(reversed(dims)) or (1,), kind, offset
