"""Check stored weights and convert them to the target dtype and device, one by one as the decoder takes them."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.weights.lazy import Stored, StoredTensor, file_bytes, loaded
from engine.weights.loading import Watch
from engine.weights.memory import WeightMemory
from engine.weights.panels import Groups, PanelForm, Piece

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_PIECE = 1 << 18
"""Elements of a weight that are converted at once."""
_GROUPS_PIECE = 1 << 19  # a byte format; the others are floats


class Taken:
    """Reports every weight to the watch once, in bytes of its file, however often it is taken."""

    def __init__(self, tensors: Mapping[str, Stored], watch: Watch) -> None:
        self._tensors = tensors
        self._watch = watch
        self._elements: dict[str, int] = {}

    def add(self, name: str, n_elements: int) -> None:
        """Count some more elements of a weight. Raises Stopped."""
        stored = self._tensors[name]
        before = self._elements.get(name, 0)
        after = min(before + n_elements, math.prod(stored.shape))
        self._elements[name] = after
        self._watch.add(file_bytes(stored, after) - file_bytes(stored, before))


class Converted(Mapping[str, Tensor]):
    """Weights in the target dtype, converted when the decoder takes them: never two copies of a model in memory."""

    def __init__(
        self,
        tensors: Mapping[str, Stored],
        dtype: torch.dtype,
        device: torch.device,
        taken: Taken,
        *,
        select: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        self._tensors = tensors
        self._taken = taken
        self._select = select
        self._dtype = dtype
        self._device = device
        self._memory = WeightMemory()

    def __getitem__(self, name: str) -> Tensor:
        if self._select is None:
            return self.joined(name)
        tensor = loaded(self._tensors[name])
        self._taken.add(name, tensor.numel())
        if tensor.shape != self.shape(name):
            raise _wrong_shape(name, self.shape(name))
        part = self._select(name, tensor)
        _check_values(name, part, self._dtype)
        return torch.empty(part.shape, dtype=self._dtype, device=self._device).copy_(part)

    def joined(self, *names: str) -> Tensor:
        """Weights concatenated by rows; they are read and converted piece by piece, so little extra memory is needed.

        Always a copy: aligned for the vector units, and safe if the mapped file changes.
        """
        if self._select is not None:
            return torch.cat([self[name] for name in names])
        shapes = [self.shape(name) for name in names]
        n_rows, at = sum(shape[0] for shape in shapes), 0
        whole = self._empty((n_rows, *shapes[0][1:]))
        for piece in chain.from_iterable(map(self.pieces, names)):
            whole[at : at + len(piece)] = piece
            at += len(piece)
        return whole

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        if self._device.type == "cpu":
            return self._memory.empty(shape, self._dtype)
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file declares."""
        return tuple(self._tensors[name].shape)

    def pieces(self, name: str) -> Iterator[Tensor]:
        """The checked rows of a weight in order, in their stored dtype; a large weight comes in several pieces."""
        stored, n_rows = self._tensors[name], 0
        for piece in stored.pieces(_PIECE) if isinstance(stored, StoredTensor) else [stored]:
            n_rows += len(piece)
            if piece.shape[1:] != stored.shape[1:] or n_rows > stored.shape[0]:
                raise _wrong_shape(name, self.shape(name))
            _check_values(name, piece, self._dtype)
            self._taken.add(name, piece.numel())
            yield piece
        if n_rows != stored.shape[0]:
            raise _wrong_shape(name, self.shape(name))

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype."""
        return self._tensors[name].dtype

    def as_stored(self, name: str) -> Tensor:
        """A matrix in the dtype it is stored in."""
        return Converted(self._tensors, self.dtype(name), self._device, self._taken)[name]

    def form(self, name: str) -> PanelForm | None:
        """The packed format in whose groups a matrix is stored, or None."""
        stored = self._tensors[name]
        return stored.groups.kind if isinstance(stored, StoredTensor) and stored.groups is not None else None

    def groups(self, name: str) -> Iterator[Piece]:
        """The rows of such a matrix in order, still packed, in pieces."""
        stored = self._tensors[name]
        assert isinstance(stored, StoredTensor)
        assert stored.groups is not None
        width, part = math.prod(stored.shape[1:]), stored.groups.part
        for start, stop in stored.spans(_GROUPS_PIECE):
            self._taken.add(name, (stop - start) * width)
            yield Piece(stop - start, partial(_finite_part, name, part, start, stop))

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _check_values(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """Raise CheckpointError unless all values are numbers that ``dtype`` can hold."""
    if tensor.dtype not in DTYPES.values():
        stored = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{name} is stored as {stored}; {', '.join(DTYPES)} can be loaded")
    # A value that is not finite makes the sum so too; the sum takes an eighth of the time of minimum and maximum.
    if dtype.itemsize >= max(4, tensor.dtype.itemsize) and bool(tensor.sum(dtype=dtype).isfinite()):
        return
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise _not_finite(name)
    limit = torch.finfo(dtype).max
    if max(-low.item(), high.item()) > limit:
        raise CheckpointError(f"{name} holds values beyond {limit:g}, the largest of {dtype}")


def _finite_part(name: str, part: Callable[[int, int], Groups], start: int, stop: int) -> Groups:
    groups = part(start, stop)
    if not _all_finite(groups.scales):
        raise _not_finite(name)
    return groups


def _all_finite(halves: Tensor) -> bool:
    """Whether all values are finite: infinities and NaN have all exponent bits set. torch's own test takes ten times
    as long for float16."""
    bits = halves.view(torch.int16).bitwise_and(0x7FFF)
    return bits.numel() == 0 or int(bits.amax()) < 0x7C00


def _not_finite(name: str) -> CheckpointError:
    return CheckpointError(f"{name} holds values that are not finite numbers")


def _wrong_shape(name: str, declared: tuple[int, ...]) -> CheckpointError:
    return CheckpointError(f"{name} does not have the shape {list(declared)} that its file declares")
