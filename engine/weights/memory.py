"""Memory for weights in pages of 2 MB, where the system has such.

A decode step reads all weights once: with pages of 4 KB the processor spends a third of that on finding them (21 and 30
GB/s of one thread, docs/LOG.md). Systems give large pages only to memory that asks for it, and in whole ones: matrices
lie in common blocks.
"""

import contextlib
import ctypes
import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_PAGE = 2 << 20
_BLOCK = 32 << 20
_LINE = 64  # bytes that the processor reads at once
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)


class WeightMemory:
    """Gives out memory from blocks. A block is freed with the last tensor in it."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU, whatever is in it."""
        n_bytes = prod(shape) * dtype.itemsize
        if n_bytes > len(self._rest):
            self._rest = _block(max(n_bytes, _BLOCK))
        taken = self._rest[:n_bytes].view(dtype).view(*shape)
        self._rest = self._rest[-(-n_bytes // _LINE) * _LINE :]
        return taken


def _block(n_bytes: int) -> Tensor:
    """Whole large pages, from the start of one."""
    size = -(-n_bytes // _PAGE) * _PAGE
    raw = torch.empty(size + _PAGE, dtype=torch.uint8)
    whole = raw[-raw.data_ptr() % _PAGE :][:size]
    if _MADV_HUGEPAGE is not None:
        with contextlib.suppress(OSError, AttributeError):  # another C library: pages as they come
            madvise = ctypes.CDLL(None).madvise
            madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            madvise(whole.data_ptr(), size, _MADV_HUGEPAGE)
    return whole
