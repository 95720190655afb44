"""Memory for weights in huge pages (2 MB), if the system has them.

A decode step reads all weights once: with pages of 4 KB, address translation takes a third of that time (21 GB/s
instead of 30 GB/s with one thread, docs/LOG.md). Systems give huge pages only on request, and only whole ones:
therefore matrices share blocks.
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
_LINE = 64  # bytes of a cache line
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)


class WeightMemory:
    """Allocates tensors from blocks. A block is freed together with the last tensor in it."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor on the CPU."""
        n_bytes = prod(shape) * dtype.itemsize
        if n_bytes > len(self._rest):
            self._rest = _block(max(n_bytes, _BLOCK))
        taken = self._rest[:n_bytes].view(dtype).view(*shape)
        self._rest = self._rest[-(-n_bytes // _LINE) * _LINE :]
        return taken


def _block(n_bytes: int) -> Tensor:
    """A block of whole huge pages, aligned to a page."""
    size = -(-n_bytes // _PAGE) * _PAGE
    raw = torch.empty(size + _PAGE, dtype=torch.uint8)
    whole = raw[-raw.data_ptr() % _PAGE :][:size]
    if _MADV_HUGEPAGE is not None:
        with contextlib.suppress(OSError, AttributeError):  # another C library: pages of the default size
            madvise = ctypes.CDLL(None).madvise
            madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            madvise(whole.data_ptr(), size, _MADV_HUGEPAGE)
    return whole
