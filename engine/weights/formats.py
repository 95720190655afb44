"""Weight formats: how a linear layer's matrix is kept, and what a format costs in accuracy.

float32, bfloat16 and float16 are plain tensors (`engine.model.layers.Linear`). int8 and int4 keep the weights of 32
neighbouring columns as whole numbers of one step, as fine as GGUF's Q8_0 and Q4_1, which they hold without loss:

    int8: w = q d          q in -127..127 (-128 where a Q8_0 file has it), 34 bytes per group
    int4: w = q d + m      q in 0..15, 20 bytes per group    (d, m: float16)

Activations, norms, biases and the table of embeddings stay floating. An int4 model keeps its output matrix in
int8, as llama.cpp does. A matrix whose columns are not divisible by 32 stays as it is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.layers import MLP, Attention, Linear, LinearLike, Weights, join
from engine.weights.lazy import Groups

if TYPE_CHECKING:
    from engine.model.decoder import Decoder

WeightFormat = Literal["float32", "bfloat16", "float16", "int8", "int4"]
QuantizedFormat = Literal["int8", "int4"]
QUANTIZED: tuple[QuantizedFormat, ...] = get_args(QuantizedFormat)
CODES: dict[WeightFormat, int] = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4}  # of records.h
GROUP = 32
_PACKED_AT_ONCE = 1 << 20  # weights
_WIDENED_AT_ONCE = 1 << 20
SCALE_SLACK = 16  # float16 numbers after the last scale that products.h may read and ignores
FLOATING: dict[torch.dtype, WeightFormat] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_HEADS = ("lm_head", "model.embed_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A linear layer as the compiled step reads it; see `Linear` in records.h."""

    format: WeightFormat
    rows: int
    cols: int
    values: Tensor
    scales: Tensor | None = None
    bias: Tensor | None = None


class Unpack(Protocol):
    """Widens rows ``start`` to ``stop`` of one packed matrix: see `unpack`."""

    def __call__(self, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Tensor: ...


class GroupedLinear:
    """y = x W^T + b with W in int8 or int4, widened to the dtype of x for each product.

    That is right for prefill, where one widening serves many rows; decode steps read the packed form itself
    (`engine.compiled`, which brings a faster ``unpack`` too).
    """

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self.unpack: Unpack = partial(unpack, packed)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The matrix (outputs, inputs) that the packed numbers stand for."""
        return self.unpack(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        kept = self.packed
        if kept.rows * kept.cols <= _WIDENED_AT_ONCE:
            return F.linear(x, self.weight(x.dtype), kept.bias)
        # A head of 50,000 rows, widened whole, would take as much memory as all layers as they are kept.
        at_once = max(1, _WIDENED_AT_ONCE // kept.cols)
        y = x.new_empty(len(x), kept.rows)
        for start in range(0, kept.rows, at_once):
            y[:, start : start + at_once] = F.linear(x, self.unpack(x.dtype, start, start + at_once))
        return y if kept.bias is None else y.add_(kept.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x W^T + b."""
        return self(x).add_(residual)


class PrepackedLinear:
    """A bfloat16 matrix in the order that oneDNN's kernels read; the plain order costs half as much again a step."""

    def __init__(self, linear: Linear) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight, 1)
        self._bias = linear.bias

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x W^T + b."""
        return self(x).add_(residual)


def prepack(decoder: "Decoder") -> int:
    """Reorder the bfloat16 layers of a decoder on the CPU in place; how many. For where nothing is compiled.

    Matrices of attention, plain MLPs and the head. Of a tied model the table of embeddings then lies beside the
    head: more memory, for the largest matrix of a small model read as fast as the others.
    """
    fast = decoder.device.type == "cpu" and torch._C._has_mkldnn
    if not fast or decoder.dtype != torch.bfloat16 or not torch.cpu._is_avx512_bf16_supported():
        return 0
    parts = [part for block in decoder.blocks for part in (block.attention, block.mlp)]
    owners: list[object] = [*(part for part in parts if isinstance(part, Attention | MLP)), decoder]
    return sum(_prepack_in(owner) for owner in owners)


def _prepack_in(owner: object) -> int:
    layers = [(name, value) for name, value in vars(owner).items() if isinstance(value, Linear)]
    for name, layer in layers:
        setattr(owner, name, PrepackedLinear(layer))
    return len(layers)


@runtime_checkable
class InPieces(Protocol):
    """Weights that can be had some rows at a time, in order; as groups where they are stored in those of a format."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def pieces(self, name: str) -> Iterator[Tensor]: ...

    def groups(self, name: str, kind: QuantizedFormat) -> Iterator[Groups] | None: ...


class FormatMaker:
    """A `LinearMaker` that packs; ``source`` gives the weights as stored, before any rounding to 16 bits."""

    def __init__(self, kind: QuantizedFormat, source: Weights) -> None:
        self.kind = kind
        self.source = source

    def __call__(self, weights: Weights, *names: str) -> LinearLike:
        kind: QuantizedFormat = "int8" if names[0] in _HEADS else self.kind
        shapes = [self._shape(f"{name}.weight") for name in names]
        cols = shapes[0][1]
        if cols % GROUP:
            return Linear.of(weights, *names)
        biases = [f"{name}.bias" for name in names if f"{name}.bias" in weights]
        bias = join(weights, *biases) if biases else None
        pieces = chain.from_iterable(self._pieces(f"{name}.weight", kind) for name in names)
        return GroupedLinear(fill(pieces, kind, sum(shape[0] for shape in shapes), cols, bias))

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name) if isinstance(self.source, InPieces) else tuple(self.source[name].shape)

    def _pieces(self, name: str, kind: QuantizedFormat) -> Iterable[Groups]:
        """Rows of a matrix in order: of a large one some at a time, where the source can do that."""
        if not isinstance(self.source, InPieces):
            return group_pieces(_split(self.source[name]), kind)
        return self.source.groups(name, kind) or group_pieces(self.source.pieces(name), kind)


def held_bytes(decoder: "Decoder") -> int:
    """Bytes of all weights in memory, packed ones as they are packed."""
    total = decoder.weight_bytes
    for layer in linear_layers(decoder):
        if isinstance(layer, GroupedLinear):
            kept = layer.packed
            assert kept.scales is not None
            plain = kept.rows * kept.cols * decoder.dtype.itemsize
            tied = layer is decoder.head and decoder.config.tied  # the table of embeddings stays beside it
            total += kept.values.nbytes + kept.scales.nbytes - (0 if tied else plain)
    return total


def read_bytes(decoder: "Decoder") -> int:
    """Bytes of the weights that a decode step reads: all but tables of embeddings that serve for look-ups alone."""
    config = decoder.config
    is_head = config.tied and not isinstance(decoder.head, GroupedLinear)
    n_rows = (0 if is_head else config.vocab_size) + (config.max_positions if config.positions == "learned" else 0)
    return held_bytes(decoder) - n_rows * config.hidden_size * decoder.dtype.itemsize


def linear_layers(decoder: "Decoder") -> Iterator[LinearLike]:
    """Every linear layer of a decoder, the head first, in whatever format it is kept."""
    seen: set[int] = set()
    todo: list[object] = [decoder.head, *decoder.blocks]
    while todo:
        part = todo.pop(0)
        if isinstance(part, Linear | GroupedLinear | PrepackedLinear):
            yield part
        elif type(part).__module__.startswith("engine.") and hasattr(part, "__dict__") and id(part) not in seen:
            seen.add(id(part))
            todo += [each for value in vars(part).values() for each in (value if isinstance(value, list) else [value])]


def packed(layer: object) -> Packed:
    """Any linear layer as the compiled step reads it, without copying."""
    if isinstance(layer, GroupedLinear):
        return layer.packed
    if not isinstance(layer, Linear) or layer.weight.dtype not in FLOATING:
        raise TypeError(f"a {type(layer).__name__} has no packed form")
    rows, cols = layer.weight.shape
    return Packed(
        format=FLOATING[layer.weight.dtype], rows=rows, cols=cols, values=layer.weight.contiguous(), bias=layer.bias
    )


def pack(weight: Tensor, kind: QuantizedFormat, bias: Tensor | None = None) -> Packed:
    """Round a matrix (rows, cols) to groups of 32 columns. cols must divide by 32."""
    rows, cols = weight.shape
    return fill(group_pieces(_split(weight), kind), kind, rows, cols, bias)


def _split(weight: Tensor) -> Sequence[Tensor]:
    return torch.split(weight, max(1, _PACKED_AT_ONCE // weight.size(1)))


def group_pieces(pieces: Iterable[Tensor], kind: QuantizedFormat) -> Iterator[Groups]:
    """Rows rounded to groups: a table of embeddings in float32 is large by itself."""
    make = _pack_int8 if kind == "int8" else _pack_int4
    for piece in pieces:
        rows, cols = piece.shape
        yield make(piece.float().view(rows, cols // GROUP, GROUP))


def fill(pieces: Iterable[Groups], kind: QuantizedFormat, rows: int, cols: int, bias: Tensor | None = None) -> Packed:
    """A packed matrix from its rows in order."""
    dtype, per_byte, per_group = (torch.int8, 1, 1) if kind == "int8" else (torch.uint8, 2, 2)
    values = torch.empty(rows, cols // per_byte, dtype=dtype)
    scales = torch.zeros(rows * per_group * cols // GROUP + SCALE_SLACK, dtype=torch.float16)
    by_row, at = scales[:-SCALE_SLACK].view(rows, -1), 0
    for piece in pieces:
        last = at + len(piece.values)
        values[at:last], by_row[at:last] = piece
        at = last
    assert at == rows, f"{at} rows of {rows}"
    return Packed(format=kind, rows=rows, cols=cols, values=values, scales=scales, bias=bias)


def unpack(packed: Packed, dtype: torch.dtype = torch.float32, start: int = 0, stop: int | None = None) -> Tensor:
    """The matrix (rows, cols) that packed numbers stand for; of rows ``start`` to ``stop`` where these are given."""
    assert packed.scales is not None
    last = packed.rows if stop is None else min(stop, packed.rows)
    n_rows, n_groups = last - start, packed.cols // GROUP
    if packed.format == "int8":
        scales = packed.scales[start * n_groups : last * n_groups].view(n_rows, n_groups, 1).to(dtype)
        values = packed.values[start:last].view(n_rows, n_groups, GROUP).to(dtype)
        return (values * scales).view(n_rows, packed.cols)
    scales = packed.scales[start * 2 * n_groups : last * 2 * n_groups].view(n_rows, 2, n_groups, 1).to(dtype)
    pairs = packed.values[start:last].view(n_rows, n_groups, GROUP // 2)
    whole = torch.cat((pairs & 15, pairs >> 4), -1).to(dtype)
    return torch.addcmul(scales[:, 1], whole, scales[:, 0]).view(n_rows, packed.cols)


def _pack_int8(groups: Tensor) -> Groups:
    """Values (rows, cols) int8, scales (rows, groups)."""
    scales = (groups.abs().amax(-1) / 127).half()
    whole = (groups / _divisor(scales)[..., None]).round_().clamp_(-127, 127)
    return Groups(whole.to(torch.int8).flatten(1), scales)


def _pack_int4(groups: Tensor) -> Groups:
    """Values (rows, cols / 2) uint8, scales and minima (rows, 2 groups)."""
    low, high = groups.aminmax(dim=-1)
    minima, scales = low.half(), ((high - low) / 15).half()
    whole = ((groups - minima.float()[..., None]) / _divisor(scales)[..., None]).round_().clamp_(0, 15).to(torch.uint8)
    first, second = whole.chunk(2, -1)  # columns 0..15 in the low halves of the bytes, 16..31 in the high ones
    return Groups((first | second << 4).flatten(1), torch.cat((scales, minima), 1))


def _divisor(scales: Tensor) -> Tensor:
    """Scales as numbers to divide by: a group of equal weights has scale 0, and any whole number will do."""
    wide = scales.float()
    return wide.where(wide != 0, 1.0)


def compute_dtype(device: torch.device) -> torch.dtype:
    """What activations and cache of a quantized model are kept in: bfloat16 where the device multiplies it fast."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
