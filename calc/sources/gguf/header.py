"""The header of a GGUF file: metadata and the list of tensors. Untrusted input, bounded.

Format: ggml's docs/gguf.md. Block sizes: ggml-common.h.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calc.errors import SourceError
from calc.model.ggml import TYPES

MAX_ENTRIES = 100_000
MAX_TENSORS = 1_000_000
MAX_TEXT = 2**20
MAX_ARRAY = 2**28
MAX_DEPTH = 4
MAX_PARTS = 1_000
SPLIT_NAME = re.compile(r"-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf$")

SCALARS: Mapping[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
TEXT, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name, dimensions (innermost first) and ggml type."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    elements: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata (of long arrays and of texts only the length) and tensors."""

    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]


class _Bytes:
    """Reads a header from the front, never past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.at = 0

    def fail(self, what: str) -> SourceError:
        return SourceError(f"{self.path}: {what}")

    def take(self, n: int) -> bytes:
        end = self.at + n
        if n < 0 or end > len(self.data):
            raise self.fail("the GGUF header ends too early: the file is cut or damaged")
        part = self.data[self.at : end]
        self.at = end
        return part

    def skip(self, n: int) -> None:
        if n < 0 or self.at + n > len(self.data):
            raise self.fail("the GGUF header ends too early: the file is cut or damaged")
        self.at += n

    def number(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        length = self.number("<Q")
        if length > MAX_TEXT:
            # A long text (a chat template at most) is passed over.
            self.skip(length)
            return ""
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == TEXT:
            return self.text()
        if kind == ARRAY:
            return self.array(depth)
        if kind not in SCALARS:
            raise self.fail(f"metadata of type {kind}, which GGUF does not have")
        return self.number(SCALARS[kind])

    def array(self, depth: int) -> Any:
        """A short array of numbers as a list; of others, such as a vocabulary, their number."""
        kind, n = self.number("<I"), self.number("<Q")
        if n > MAX_ARRAY or depth > MAX_DEPTH:
            raise self.fail(f"an array of {n:,} entries")
        if kind in SCALARS:
            code = SCALARS[kind]
            size = struct.calcsize(code)
            if n > MAX_ENTRIES:
                self.skip(n * size)
                return Length(n)
            return list(struct.unpack(f"<{n}{code[1]}", self.take(n * size)))
        if kind == TEXT:
            self._skip_texts(n)
            return Length(n)
        if kind == ARRAY:
            for _ in range(min(n, MAX_ENTRIES)):
                self.value(ARRAY, depth + 1)
            return Length(n)
        raise self.fail(f"an array of type {kind}, which GGUF does not have")

    def _skip_texts(self, n: int) -> None:
        """Pass over `n` texts: a vocabulary of 128k in a few hundredths of a second."""
        data, at, end, unpack = self.data, self.at, len(self.data), struct.Struct("<Q").unpack_from
        for _ in range(n):
            if at + 8 > end:
                raise self.fail("the GGUF header ends too early: the file is cut or damaged")
            at += 8 + unpack(data, at)[0]
        if at > end:
            raise self.fail("the GGUF header ends too early: the file is cut or damaged")
        self.at = at


@dataclass(frozen=True, slots=True)
class Length:
    """How many entries an array had that was passed over."""

    n: int


def read_header(path: Path) -> Header:
    """Metadata and tensor list of a GGUF file. Raises SourceError, one sentence that starts with the path."""
    try:
        with path.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise SourceError(f"{path}: not a GGUF file: it does not start with GGUF")
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(_Bytes(data, path))
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (struct.error, ValueError, MemoryError):
        raise SourceError(f"{path}: the GGUF header is damaged") from None


def _header(source: _Bytes) -> Header:
    source.at = 4
    version = source.number("<I")
    if version not in (2, 3):
        raise source.fail(f"GGUF version {version}: kvscope reads 2 and 3 (little-endian)")
    n_tensors, n_entries = source.number("<Q"), source.number("<Q")
    if n_tensors > MAX_TENSORS or n_entries > MAX_ENTRIES:
        raise source.fail(f"a GGUF header of {n_tensors:,} tensors and {n_entries:,} entries")
    metadata = {}
    for _ in range(n_entries):
        key = source.text()
        metadata[key] = source.value(source.number("<I"))
    return Header(metadata, tuple(_tensor(source) for _ in range(n_tensors)))


def _tensor(source: _Bytes) -> Tensor:
    name = source.text()
    n_dims = source.number("<I")
    if n_dims > 8:
        raise source.fail(f"tensor {name[:60]!r} has {n_dims:,} dimensions")
    shape = tuple(source.number("<Q") for _ in range(n_dims))
    kind = source.number("<I")
    source.skip(8)
    if kind not in TYPES:
        raise source.fail(f"tensor {name[:60]!r} is of ggml type {kind}, which kvscope does not know")
    type_name, block, block_bytes = TYPES[kind]
    elements = 1
    for n in shape:
        elements *= n
        if elements > 2**60:
            raise source.fail(f"tensor {name[:60]!r} has too many elements")
    if shape and shape[0] % block:
        raise source.fail(f"tensor {name[:60]!r}: rows of {shape[0]:,} are no whole blocks of {block} ({type_name})")
    return Tensor(name, shape, type_name, elements, elements // block * block_bytes)


def parts_of(file: Path) -> list[Path]:
    """The files of a model that is split (``m-00001-of-00003.gguf``), in order; of any other the file itself."""
    found = SPLIT_NAME.search(file.name)
    count = int(found["count"]) if found is not None else 1
    if found is None or not 1 <= count <= MAX_PARTS:
        return [file]
    stem = file.name[: found.start()]
    return [file.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]


def read_parts(file: Path) -> Header:
    """The header of a file, or of all parts of a split model: the first part's metadata, the tensors of all.

    Raises SourceError that names a part that is not there.
    """
    parts = parts_of(file)
    if missing := [part.name for part in parts if not part.is_file()]:
        raise SourceError(f"{file}: {missing[0]} is not beside it: a model in {len(parts)} parts needs all of them")
    headers = [read_header(part) for part in parts]
    return Header(headers[0].metadata, tuple(tensor for header in headers for tensor in header.tensors))
