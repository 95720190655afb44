"""Weight formats: how a linear layer's matrix is kept, and what a format costs in accuracy.

float32, bfloat16 and float16 are plain tensors (`engine.model.layers.Linear`). The others store integers with one step
(scale) per group of 32 or 16 adjacent columns (`engine.weights.panels`). Two of them can be requested:

    int8: w = q d          q in -127..127 (-128 where a Q8_0 file has it), 34 bytes per group
    int4: w = q d + m      q in 0..15, 20 bytes per group    (d, m: float16)

Activations, norms, biases and the embedding table stay in floating point. An int4 model has its output matrix in
int8, as in llama.cpp. A matrix whose number of columns is not divisible by 32 is not quantised.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.layers import Linear, LinearLike, Weights
from engine.weights.memory import WeightMemory
from engine.weights.panels import BLOCK, FORMS, PANEL_FORMS, ROWS, Groups, PanelForm, Piece, from_panels, to_panels
from engine.weights.workers import Workers, one_by_one

if TYPE_CHECKING:
    from engine.model.decoder import Decoder

FloatingFormat = Literal["float32", "bfloat16", "float16"]
QuantizedFormat = Literal["int8", "int4"]
WeightFormat = FloatingFormat | PanelForm
QUANTIZED: tuple[QuantizedFormat, ...] = get_args(QuantizedFormat)
CODES = {name: code for code, name in enumerate((*get_args(FloatingFormat), *PANEL_FORMS))}
"""The numbers of formats in records.h."""
GROUP = BLOCK
_PACKED_AT_ONCE = 1 << 20  # weights
_WIDENED_AT_ONCE = 1 << 20
FLOATING: dict[torch.dtype, FloatingFormat] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_HEADS = ("lm_head", "model.embed_tokens")
_HELD_BY: dict[QuantizedFormat, tuple[PanelForm, ...]] = {"int8": ("int8",), "int4": ("int4", "int4-zero")}


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
    """Dequantizes rows ``start`` to ``stop`` of one packed matrix: see `unpack`."""

    def __call__(self, dtype: torch.dtype, start: int = 0, stop: int | None = None) -> Tensor: ...


class Product(Protocol):
    """Multiplies by a packed layer without dequantizing it in memory."""

    def takes(self, x: Tensor) -> bool: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class GroupedLinear:
    """y = x W^T + b with W in packed formats, dequantized to the dtype of x for each product.

    ``parts``: matrices whose outputs are concatenated, each in its own format. `engine.compiled` reads the packed form
    directly, in its decode step and in ``product`` for the rows of a prompt. It also provides a faster ``unpack`` per
    part, for layers in which some part is not packed.
    """

    def __init__(self, *parts: Packed) -> None:
        self.parts = parts
        self.unpack: list[Unpack] = [partial(unpack, part) for part in parts]
        self.product: Product | None = None

    @property
    def rows(self) -> int:
        """Outputs."""
        return sum(part.rows for part in self.parts)

    @property
    def cols(self) -> int:
        """Inputs."""
        return self.parts[0].cols

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The dequantized matrix (outputs, inputs)."""
        return torch.cat([unpack(dtype).clone() for unpack in self.unpack])

    def bias(self) -> Tensor | None:
        """The bias of all outputs; None if no part has one."""
        biases = [part.bias for part in self.parts if part.bias is not None]
        return torch.cat(biases) if biases else None

    def __call__(self, x: Tensor) -> Tensor:
        if self.product is not None and self.product.takes(x):
            return self.product(x)
        y, at = x.new_empty(len(x), self.rows), 0
        at_once = max(1, _WIDENED_AT_ONCE // self.cols // ROWS) * ROWS
        for part, wide in zip(self.parts, self.unpack, strict=True):
            for start in range(0, part.rows, at_once):
                stop = min(start + at_once, part.rows)
                bias = part.bias[start:stop] if part.bias is not None else None
                y[:, at + start : at + stop] = F.linear(x, wide(x.dtype, start, stop), bias)
            at += part.rows
        return y

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x W^T + b."""
        return self(x).add_(residual)


class PrepackedLinear:
    """A bfloat16 matrix in the memory order of oneDNN's kernels; a step in plain order takes 1.5 times as long."""

    def __init__(self, linear: Linear) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight, 1)
        self._bias = linear.bias

    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return y

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + x W^T + b."""
        return self(x).add_(residual)


@runtime_checkable
class InPieces(Protocol):
    """Weights that can be read in pieces of rows; as groups if they are stored in a packed format."""

    def shape(self, name: str) -> tuple[int, ...]: ...

    def pieces(self, name: str) -> Iterator[Tensor]: ...

    def form(self, name: str) -> PanelForm | None: ...

    def groups(self, name: str) -> Iterator[Piece]: ...


class StoredWeights(InPieces, Protocol):
    """Weights that can be read in their stored dtype."""

    def dtype(self, name: str) -> torch.dtype: ...

    def as_stored(self, name: str) -> Tensor: ...


class FormatMaker:
    """A `LinearMaker` that quantises; ``source`` gives the weights as stored, before any rounding to 16 bits."""

    def __init__(self, kind: QuantizedFormat, source: Weights) -> None:
        self.kind = kind
        self.source = source
        self._memory, self._workers = WeightMemory(), Workers()

    def __call__(self, weights: Weights, *names: str) -> LinearLike:
        kind: QuantizedFormat = "int8" if names[0] in _HEADS else self.kind
        if self._shape(f"{names[0]}.weight")[1] % GROUP:
            return Linear.of(weights, *names)
        return GroupedLinear(*(self._packed(weights, name, kind) for name in names))

    def _packed(self, weights: Weights, name: str, kind: QuantizedFormat) -> Packed:
        rows, cols = self._shape(f"{name}.weight")
        form, pieces = self._pieces(f"{name}.weight", kind)
        bias = f"{name}.bias"
        return fill(pieces, form, rows, cols, weights.get(bias), memory=self._memory, workers=self._workers)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(name) if isinstance(self.source, InPieces) else tuple(self.source[name].shape)

    def _pieces(self, name: str, kind: QuantizedFormat) -> tuple[PanelForm, Iterable[Piece]]:
        """The rows of a matrix in order; a large one comes in pieces if the source supports that."""
        if not isinstance(self.source, InPieces):
            return kind, group_pieces(_split(self.source[name]), kind)
        stored = self.source.form(name)
        if stored in _HELD_BY[kind]:
            return stored, self.source.groups(name)
        return kind, group_pieces(self.source.pieces(name), kind)


class PackedTable:
    """An embedding table in any format; only the rows looked up are dequantized."""

    device = torch.device("cpu")

    def __init__(self, part: Packed, dtype: torch.dtype) -> None:
        self.part = part
        self.dtype = dtype
        self.unpack: Unpack = partial(unpack, part)

    def rows(self, ids: Tensor) -> Tensor:
        """The embeddings of ids of any shape, in ``dtype``."""
        flat = ids.flatten().tolist()
        wide = {i: self.unpack(self.dtype, i, i + 1).clone() for i in dict.fromkeys(flat)}
        return torch.cat([wide[i] for i in flat]).view(*ids.shape, self.part.cols)


class StoredMaker:
    """A `LinearMaker` that keeps the stored format of every matrix: packed forms, bfloat16, float16 or float32.

    A tied head and the embedding table share one matrix in memory.
    """

    def __init__(self, source: StoredWeights, dtype: torch.dtype) -> None:
        self.source = source
        self.dtype = dtype
        self._memory, self._workers = WeightMemory(), Workers()
        self._table: Packed | None = None

    def table(self) -> PackedTable:
        """The embedding table."""
        self._table = self._part("model.embed_tokens", {})
        return PackedTable(self._table, self.dtype)

    def __call__(self, weights: Weights, *names: str) -> LinearLike:
        if names == ("model.embed_tokens",) and self._table is not None:
            return GroupedLinear(self._table)
        stored = {self.source.form(f"{name}.weight") or self.source.dtype(f"{name}.weight") for name in names}
        return (
            Linear.of(weights, *names)
            if stored == {self.dtype}
            else GroupedLinear(*(self._part(name, weights) for name in names))
        )

    def _part(self, name: str, weights: Weights) -> Packed:
        weight, bias = f"{name}.weight", f"{name}.bias"
        rows, cols = self.source.shape(weight)
        of_rows = weights.get(bias)
        form = self.source.form(weight)
        if form is not None:
            return fill(
                self.source.groups(weight), form, rows, cols, of_rows, memory=self._memory, workers=self._workers
            )
        values = self.source.as_stored(weight)
        return Packed(format=FLOATING[values.dtype], rows=rows, cols=cols, values=values, bias=of_rows)


def held_bytes(decoder: "Decoder") -> int:
    """Bytes of all weights in memory, in their packed formats."""
    total = decoder.weight_bytes
    tied = decoder.config.tied  # the table of embeddings stays beside its head, unless it is packed itself
    for layer in linear_layers(decoder):
        if isinstance(layer, GroupedLinear):
            plain = layer.rows * layer.cols * decoder.dtype.itemsize
            total += sum(map(packed_bytes, layer.parts)) - (0 if layer is decoder.head and tied else plain)
    if isinstance(decoder.embedding, PackedTable):
        size = decoder.config.vocab_size * decoder.config.hidden_size * decoder.dtype.itemsize
        total += (0 if tied else packed_bytes(decoder.embedding.part)) - size
    return total


def read_bytes(decoder: "Decoder") -> int:
    """Bytes of the weights that a decode step reads: all except embedding tables used only for look-ups."""
    config, table = decoder.config, decoder.embedding
    positions = config.max_positions if config.positions == "learned" else 0
    read = held_bytes(decoder) - positions * config.hidden_size * decoder.dtype.itemsize
    if isinstance(table, PackedTable):
        return read if config.tied else read - packed_bytes(table.part)
    is_head = config.tied and not isinstance(decoder.head, GroupedLinear)
    return read if is_head else read - config.vocab_size * config.hidden_size * decoder.dtype.itemsize


def form_names(decoder: "Decoder") -> str:
    """The formats of the linear layers, sorted by bytes, the most first: "int4+int6"."""
    sizes: dict[str, int] = {}
    for layer in linear_layers(decoder):
        for part in () if isinstance(layer, PrepackedLinear) else packed(layer):
            sizes[part.format] = sizes.get(part.format, 0) + packed_bytes(part)
    return "+".join(sorted(sizes, key=lambda name: -sizes[name]))


def linear_layers(decoder: "Decoder") -> Iterator[LinearLike]:
    """Every linear layer of a decoder in any format, the head first."""
    seen: set[int] = set()
    todo: list[object] = [decoder.head, *decoder.blocks]
    while todo:
        part = todo.pop(0)
        if isinstance(part, Linear | GroupedLinear | PrepackedLinear):
            yield part
        elif type(part).__module__.startswith("engine.") and hasattr(part, "__dict__") and id(part) not in seen:
            seen.add(id(part))
            todo += [each for value in vars(part).values() for each in (value if isinstance(value, list) else [value])]


def packed_bytes(part: Packed) -> int:
    """Bytes of a matrix without its bias."""
    return part.values.nbytes + (part.scales.nbytes if part.scales is not None else 0)


def packed(layer: object) -> tuple[Packed, ...]:
    """Any linear layer as the compiled step reads it, without copying: matrices whose outputs are concatenated."""
    if isinstance(layer, GroupedLinear):
        return layer.parts
    if not isinstance(layer, Linear) or layer.weight.dtype not in FLOATING:
        raise TypeError(f"a {type(layer).__name__} has no packed form")
    rows, cols = layer.weight.shape
    values = layer.weight.contiguous()
    return (Packed(format=FLOATING[values.dtype], rows=rows, cols=cols, values=values, bias=layer.bias),)


def pack(weight: Tensor, kind: QuantizedFormat, bias: Tensor | None = None) -> Packed:
    """Quantise a matrix (rows, cols) in groups of 32 columns. cols must be divisible by 32."""
    rows, cols = weight.shape
    return fill(group_pieces(_split(weight), kind), kind, rows, cols, bias)


def _split(weight: Tensor) -> Sequence[Tensor]:
    return torch.split(weight, max(1, _PACKED_AT_ONCE // weight.size(1) // ROWS) * ROWS)


def group_pieces(pieces: Iterable[Tensor], kind: QuantizedFormat) -> Iterator[Piece]:
    """Quantise rows piece by piece, because a whole embedding table in float32 is large."""
    for piece in pieces:
        yield Piece(len(piece), partial(_rounded, piece, kind))


def _rounded(piece: Tensor, kind: QuantizedFormat) -> Groups:
    rows, cols = piece.shape
    groups = piece.float().view(rows, cols // GROUP, GROUP)
    return _pack_int8(groups) if kind == "int8" else _pack_int4(groups)


def fill(
    pieces: Iterable[Piece],
    kind: PanelForm,
    rows: int,
    cols: int,
    bias: Tensor | None = None,
    *,
    memory: WeightMemory | None = None,
    workers: Workers | None = None,
) -> Packed:
    """A packed matrix from its pieces in order; with ``workers``, pieces are packed in parallel."""
    form, n_panels = FORMS[kind], -(-rows // ROWS)
    empty = torch.empty if memory is None else memory.empty
    values = empty((n_panels, cols // BLOCK * form.block_bytes), dtype=torch.uint8)
    scales = empty((n_panels, ROWS * form.numbers(cols)), dtype=torch.float16)

    def put(first: int, last: int, make: Callable[[], Groups]) -> None:
        values[first:last], scales[first:last] = to_panels(make(), kind)

    def jobs() -> Iterator[Callable[[], None]]:
        at = 0
        for piece in pieces:
            first, at = at, at + -(-piece.n_rows // ROWS)
            yield partial(put, first, at, piece.make)
        assert at == n_panels, f"{at} panels of {n_panels}"

    run = one_by_one if workers is None else workers.run
    run(jobs())
    return Packed(format=kind, rows=rows, cols=cols, values=values, scales=scales, bias=bias)


def unpack(packed: Packed, dtype: torch.dtype = torch.float32, start: int = 0, stop: int | None = None) -> Tensor:
    """The dequantized matrix (rows, cols), or its rows ``start`` to ``stop``."""
    stop = packed.rows if stop is None else min(stop, packed.rows)
    if packed.scales is None:
        return packed.values[start:stop].to(dtype)
    first, last = start // ROWS, -(-stop // ROWS)
    wide = from_panels(Groups(packed.values[first:last], packed.scales[first:last]), panel_form(packed.format))
    return wide[start - first * ROWS : stop - first * ROWS].to(dtype)


def panel_form(name: WeightFormat) -> PanelForm:
    """The name, narrowed to the type of packed formats."""
    assert name in FORMS
    return name


def _pack_int8(groups: Tensor) -> Groups:
    """One byte per weight with an offset of 128, and steps (rows, groups)."""
    scales = (groups.abs().amax(-1) / 127).half()
    whole = (groups / _divisor(scales)[..., None]).round_().clamp_(-127, 127).add_(128)
    return Groups(whole.to(torch.uint8).flatten(1), scales)


def _pack_int4(groups: Tensor) -> Groups:
    """One byte per weight, and steps and minima (rows, 2 groups)."""
    low, high = groups.aminmax(dim=-1)
    minima, scales = low.half(), ((high - low) / 15).half()
    whole = ((groups - minima.float()[..., None]) / _divisor(scales)[..., None]).round_().clamp_(0, 15)
    return Groups(whole.to(torch.uint8).flatten(1), torch.cat((scales, minima), 1))


def _divisor(scales: Tensor) -> Tensor:
    """Scales as divisors: a group of equal weights has scale 0, for which any divisor will do."""
    wide = scales.float()
    return wide.where(wide != 0, 1.0)


def compute_dtype(device: torch.device) -> torch.dtype:
    """The dtype of activations and cache of a quantised model: bfloat16 if the device multiplies it fast."""
    fast = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
