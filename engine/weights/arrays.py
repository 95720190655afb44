"""Weights that were saved as NumPy arrays: .npz, and pickles of nothing but arrays. Nothing in them is executed.

A pickle names functions to call. Here a few known names are mapped to records of this module, and all other names are
refused, so that only the data of the arrays is read.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from engine.errors import CheckpointError

MAX_PICKLE_BYTES = 4 << 30
_DTYPES = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8, "i2": torch.int16,
    "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool,
}  # fmt: skip


class NotArrays(Exception):
    """A pickle that contains anything but arrays; `args` says what."""


@dataclass(slots=True)
class _DType:
    """numpy.dtype: its code, and the byte order that its state names."""

    code: str
    order: str = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


class _Array:
    """numpy.ndarray: its shape, dtype, order and bytes are set as state."""

    def __init__(self, *_: object) -> None:
        self.tensor: Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.tensor = _tensor(_held(data), dtype, tuple(map(int, shape)), fortran=bool(fortran))


def _held(data: object) -> bytes:
    """The bytes from the file, type-checked: given a number, `bytes` would make that many zero bytes."""
    if not isinstance(data, bytes | bytearray | memoryview | pickle.PickleBuffer):
        raise NotArrays(f"an array of {type(data).__name__}")
    return bytes(data)


def _tensor(data: bytes, dtype: _DType, shape: tuple[int, ...], *, fortran: bool) -> Tensor:
    if dtype.code not in _DTYPES or dtype.order not in ("<", "=", "|"):
        raise NotArrays(f"an array of {dtype.order}{dtype.code}")
    flat = torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype.code]) if data else torch.empty(0)
    if fortran:
        return flat.view(*reversed(shape)).permute(*reversed(range(len(shape)))).contiguous()
    return flat.view(shape)


def _from_buffer(data: object, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    """numpy's way since pickle protocol 5."""
    made = _Array()
    made.tensor = _tensor(_held(data), dtype, tuple(shape), fortran=order == "F")
    return made


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise NotArrays(f"text as {encoding}")
    return text.encode("latin1")


def _empty(*given: object) -> bytes:
    """How old protocols write the bytes of an empty array."""
    if given:
        raise NotArrays("bytes of something")
    return b""


def _dtype(code: str, *_: object) -> _DType:
    return _DType(str(code).lstrip("<>=|"), ">" if str(code).startswith(">") else "<")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded,
    **{(module, "bytes"): _empty for module in ("__builtin__", "builtins")},
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _Array,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise NotArrays(f"{module}.{name}")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("tensors are torch's to read")


def unpickle(file: IO[bytes]) -> object:
    """The document in a pickle, its arrays as tensors. Raises NotArrays, and anything for a damaged file."""
    return _as_tensors(_Unpickler(file).load())


def _as_tensors(document: object) -> object:
    if isinstance(document, dict):
        return {key: _as_tensors(value) for key, value in document.items()}
    return document.tensor if isinstance(document, _Array) else document


def read_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of a .npz file by name. Raises CheckpointError."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged file can raise any exception inside numpy
        raise CheckpointError(f"{path} is damaged or not a file of NumPy arrays") from None
