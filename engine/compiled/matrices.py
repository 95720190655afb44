"""Single matrices in the compiled library: multiplied by few or many vectors, or dequantized."""

import ctypes
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from engine.weights.formats import CODES, Packed, Unpack, unpack

CODES_OF_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
_Pointer, _Int, _Code = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32


class LinearRecord(ctypes.Structure):
    """`Linear` of records.h."""

    _fields_ = [
        ("weight", _Pointer), ("scales", _Pointer), ("bias", _Pointer), ("next", _Pointer), ("rows", _Int),
        ("cols", _Int), ("format", _Code),
    ]  # fmt: skip


class Scratch:
    """Memory for one matrix at a time. Allocating it for every product would fault its pages in each time."""

    def __init__(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8)

    def matrix(self, rows: int, cols: int, dtype: torch.dtype) -> Tensor:
        """Room for a matrix, with undefined content."""
        n_bytes = rows * cols * dtype.itemsize
        if n_bytes > self._room.numel():
            self._room = torch.empty(n_bytes, dtype=torch.uint8)
        return self._room[:n_bytes].view(dtype).view(rows, cols)


class CompiledProduct:
    """A packed layer times some vectors, without dequantizing it in memory: rows of all parts side by side.

    A few vectors are multiplied by the packed numbers directly, with two bytes per activation. More vectors are
    multiplied in their own dtype, with weights dequantized piece by piece into the nearest caches.
    """

    def __init__(self, parts: Sequence[Packed], library: ctypes.CDLL, scratch: Scratch) -> None:
        self._few: int = library.multiply_at_most()
        self._many: dict[torch.dtype, int] = {
            dtype: library.multiply_many_at_most(code) for dtype, code in CODES_OF_DTYPES.items()
        }
        self._parts = parts
        self._biases = [part.bias.float() if part.bias is not None else None for part in parts]
        self._records = [
            record_of(part, bias.data_ptr() if bias is not None else None)
            for part, bias in zip(parts, self._biases, strict=True)
        ]
        self._scratch = scratch
        self._library = _typed(library)

    def takes(self, x: Tensor) -> bool:
        """Whether it is faster than dequantizing the layer for these vectors (N, inputs)."""
        return len(x) <= max(self._few, self._many.get(x.dtype, 0))

    def __call__(self, x: Tensor) -> Tensor:
        """x (N, inputs) -> (N, outputs)."""
        few = len(x) <= self._few
        vectors = (x.float() if few else x).contiguous()
        y, at = vectors.new_empty(len(x), sum(part.rows for part in self._parts)), 0
        multiply = self._multiply_few if few else self._multiply_many
        for record in self._records:
            multiply(record, vectors, y, at)
            at += record.rows
        return y.to(x.dtype)

    def _multiply_few(self, record: LinearRecord, x: Tensor, y: Tensor, at: int) -> None:
        address, library, threads = ctypes.addressof(record), self._library, torch.get_num_threads()
        room = self._scratch.matrix(1, library.multiply_floats(address, len(x), threads), torch.float32)
        out = y.data_ptr() + at * y.itemsize
        library.multiply(address, x.data_ptr(), len(x), out, y.size(1), room.data_ptr(), threads)

    def _multiply_many(self, record: LinearRecord, x: Tensor, y: Tensor, at: int) -> None:
        address, library, threads = ctypes.addressof(record), self._library, torch.get_num_threads()
        code, out = CODES_OF_DTYPES[x.dtype], y.data_ptr() + at * y.itemsize
        room = self._scratch.matrix(1, library.multiply_many_bytes(address, len(x), code, threads), torch.uint8)
        library.multiply_many(address, x.data_ptr(), len(x), out, y.size(1), code, room.data_ptr(), threads)


def _typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """The same, with the argument types."""
    library.multiply.restype = library.multiply_many.restype = None
    library.multiply_floats.restype = library.multiply_many_bytes.restype = _Int
    library.multiply.argtypes = [_Pointer, _Pointer, _Int, _Pointer, _Int, _Pointer, _Code]
    library.multiply_floats.argtypes = [_Pointer, _Int, _Code]
    library.multiply_many.argtypes = [_Pointer, _Pointer, _Int, _Pointer, _Int, _Code, _Pointer, _Code]
    library.multiply_many_bytes.argtypes = [_Pointer, _Int, _Code, _Code]
    return library


def compiled_unpack(part: Packed, library: ctypes.CDLL, scratch: Scratch) -> Unpack:
    """The fastest way to dequantize a matrix; for plain numbers, torch's own."""
    return partial(unpack, part) if part.scales is None else CompiledUnpack(part, library, scratch)


class CompiledUnpack:
    """`engine.weights.formats.unpack` for one matrix, in one pass by all threads, rounded once.

    The result belongs to ``scratch`` and is valid until the next call that shares it.
    """

    def __init__(self, packed: Packed, library: ctypes.CDLL, scratch: Scratch) -> None:
        self._packed = packed
        self._scratch = scratch
        self._record = record_of(packed, None)
        self._address = ctypes.addressof(self._record)
        self._call = library.unpack_matrix
        self._call.restype = None
        self._call.argtypes = [ctypes.c_void_p, _Int, _Int, ctypes.c_void_p, _Code, _Code]

    def __call__(self, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Tensor:
        last = self._packed.rows if stop is None else min(stop, self._packed.rows)
        narrow = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
        out = self._scratch.matrix(last - start, self._packed.cols, narrow)
        code = CODES_OF_DTYPES[out.dtype]
        self._call(self._address, start, last, out.data_ptr(), code, torch.get_num_threads())
        return out.to(dtype)


def record_of(weight: Packed, bias: int | None) -> LinearRecord:
    """A record with pointers into a matrix, which the caller must keep alive."""
    return LinearRecord(
        weight=weight.values.data_ptr(),
        scales=weight.scales.data_ptr() if weight.scales is not None else None,
        bias=bias,
        rows=weight.rows,
        cols=weight.cols,
        format=CODES[weight.format],
    )
