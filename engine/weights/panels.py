"""Packed weights: integers of a few bits with one step (scale) per group of columns, in panels of 16 rows.

    w = d (q - zero), or w = d q + m     q: the bits, or the table entry at that index; d, m: float16

| form | bits | group | stores without loss |
|---|---|---|---|
| int8 | 8 | 32 | Q8_0 |
| int6 | 6 | 16 | Q6_K |
| int5 | 5 | 32, minima | Q5_0, Q5_1, Q5_K |
| int4 | 4 | 32, minima | Q4_1, Q4_K |
| int4-zero | 4 | 32 | Q4_0 |
| iq4, fp4 | 4, by a table | 32 | IQ4_NL and IQ4_XS; MXFP4 |
| int3 | 3 | 16 | Q3_K |
| int2 | 2 | 16, minima | Q2_K |

K-quants have two levels of scales; their product is rounded to float16 (a relative error of at most 1/4096, while the
weights themselves were rounded to 1/64 at best). `engine/compiled/panels.h`, which reads panels, describes the bit
layout; this module writes panels, and reads them if nothing is compiled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

PanelForm = Literal["int8", "int4", "int4-zero", "int2", "int3", "int5", "int6", "iq4", "fp4"]
PANEL_FORMS: tuple[PanelForm, ...] = get_args(PanelForm)
ROWS = 16  # of a panel
BLOCK = 32  # columns
_QUADS = BLOCK // 4


class Groups(NamedTuple):
    """Some rows of a matrix: one byte per weight, and in float16 the steps of each row's groups, then their minima."""

    values: Tensor  # (rows, cols) uint8
    scales: Tensor  # (rows, numbers of a row)


class Piece(NamedTuple):
    """Some rows of a matrix, whole panels except in the last piece; ``make`` reads or quantises them, in any thread."""

    n_rows: int
    make: Callable[[], Groups]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A packed format. The ``low`` bits of a weight and the ``high`` bits above are in separate vectors.

    ``group``: columns that share one step.
    """

    low: int
    high: int = 0
    group: int = BLOCK
    minima: bool = False
    zero: int = 0
    table: tuple[int, ...] | None = None

    @property
    def block_bytes(self) -> int:
        """Bytes of 16 rows and 32 columns, without the steps."""
        return 64 * (self.low + self.high)

    def numbers(self, cols: int) -> int:
        """Steps and minima of a row."""
        return cols // self.group * (2 if self.minima else 1)


_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # E2M1 values, doubled
FORMS: dict[PanelForm, Form] = {
    "int8": Form(low=8, zero=128),
    "int4": Form(low=4, minima=True),
    "int4-zero": Form(low=4, zero=8),
    "int2": Form(low=2, group=16, minima=True),
    "int3": Form(low=2, high=1, group=16, zero=4),
    "int5": Form(low=4, high=1, minima=True),
    "int6": Form(low=4, high=2, group=16, zero=32),
    "iq4": Form(low=4, zero=128, table=tuple(number + 128 for number in _IQ4)),
    "fp4": Form(low=4, zero=12, table=tuple(number + 12 for number in _FP4)),
}


def to_panels(groups: Groups, name: PanelForm) -> Groups:
    """Rows of bytes as panels: (panels, bytes) and (panels, numbers). The last panel is padded with zeros."""
    form = FORMS[name]
    values, scales = (_filled_up(t) for t in groups)
    n_panels, cols = len(values) // ROWS, values.size(1)
    quads = values.view(torch.int32).view(n_panels, ROWS, cols // BLOCK, _QUADS)
    quads = quads.permute(0, 2, 3, 1).contiguous()  # (panels, blocks, quads, rows), four columns per number
    low = _joined(quads, form.low)
    packed = torch.cat((low, _joined(quads >> form.low, form.high)), 2) if form.high else low
    packed = packed.view(n_panels, -1).view(torch.uint8)
    numbers = scales.view(n_panels, ROWS, 2 if form.minima else 1, -1).permute(0, 3, 2, 1)
    return Groups(packed, numbers.reshape(n_panels, -1))


def from_panels(panels: Groups, name: PanelForm) -> Tensor:
    """The weights (16 rows for each panel, cols) in float32."""
    form = FORMS[name]
    values, scales = panels
    n_panels = len(values)
    blocks = values.view(n_panels, -1, form.low + form.high, 64)
    bits = _parted(blocks[:, :, : form.low], form.low)
    if form.high:
        bits |= _parted(blocks[:, :, form.low :], form.high) << form.low
    rows = n_panels * ROWS
    whole = bits.view(n_panels, -1, _QUADS, ROWS, 4).permute(0, 3, 1, 2, 4).reshape(rows, -1)
    numbers = scales.view(n_panels, -1, 2 if form.minima else 1, ROWS).permute(0, 3, 2, 1)
    return widened(Groups(whole, numbers.reshape(rows, -1)), name)


def widened(groups: Groups, name: PanelForm) -> Tensor:
    """The weights (rows, cols) in float32."""
    form, (rows, cols) = FORMS[name], groups.values.shape
    numbers = groups.scales.view(rows, 2 if form.minima else 1, -1, 1).float()
    whole = groups.values.view(rows, -1, form.group)
    if form.table is not None:
        whole = torch.tensor(form.table, dtype=torch.uint8)[whole.int()]
    wide = whole.float()
    wide = (
        torch.addcmul(numbers[:, 1], wide, numbers[:, 0]) if form.minima else wide.sub_(form.zero).mul_(numbers[:, 0])
    )
    return wide.view(rows, cols)


def _filled_up(rows: Tensor) -> Tensor:
    """The rows padded with zeros to whole panels."""
    missing = -len(rows) % ROWS
    return torch.cat((rows, rows.new_zeros(missing, rows.size(1)))) if missing else rows.contiguous()


def _joined(quads: Tensor, n_bits: int) -> Tensor:
    """Pack the lowest ``n_bits`` of eight quads into ``n_bits`` vectors: quad j goes into vector j mod ``n_bits``."""
    if n_bits == 8:
        return quads
    low = quads & _in_every_byte((1 << n_bits) - 1)
    joined = low[:, :, :n_bits].clone()
    for first in range(n_bits, _QUADS, n_bits):
        joined |= low[:, :, first : first + n_bits] << first // n_bits * n_bits
    return joined


def _parted(vectors: Tensor, n_bits: int) -> Tensor:
    """The inverse of `_joined`: the bits of each quad, (panels, blocks, quads, 64)."""
    mask = (1 << n_bits) - 1
    return torch.cat([vectors >> shift & mask for shift in range(0, 8, n_bits)], 2)


def _in_every_byte(byte: int) -> int:
    """The byte repeated four times, as a signed 32-bit number."""
    return int.from_bytes(bytes([byte] * 4), "little", signed=True)
