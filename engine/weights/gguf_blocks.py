"""GGUF blocks of 32 weights that the engine's formats hold as they are: Q8_0 as int8, Q4_0 and Q4_1 as int4.

    Q8_0: d, 32 whole numbers     w = q d
    Q4_0: d, 16 pairs             w = (q - 8) d, which is q d + m with m = -8 d, exact in float16
    Q4_1: d, m, 16 pairs          w = q d + m

A pair holds columns i and i + 16 of its block, as `engine.weights.formats` has them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.weights.formats import GROUP, Packed, QuantizedFormat, unpack
from engine.weights.lazy import Groups

GROUPED: dict[int, QuantizedFormat] = {2: "int4", 3: "int4", 8: "int8"}
"""Formats by GGUF's numbers for its types."""
BLOCK_BYTES = {2: 18, 3: 20, 8: 34}
_SCALE_BYTES = {2: 2, 3: 4, 8: 2}


def repack(data: bytearray, kind: int, n_rows: int) -> Groups:
    """The blocks of ``n_rows`` rows with their numbers side by side; the numbers themselves stay as they are."""
    blocks = torch.frombuffer(data, dtype=torch.uint8).view(n_rows, -1, BLOCK_BYTES[kind])
    head = _SCALE_BYTES[kind]
    values = blocks[..., head:].flatten(1)
    scales = blocks[..., :head].contiguous().view(torch.float16)  # (rows, groups, 1 or 2)
    if kind == 2:
        scales = torch.cat((scales, scales * -8), -1)
    if GROUPED[kind] == "int8":
        values = values.view(torch.int8)
    return Groups(values, scales.transpose(1, 2).flatten(1))


def widen(groups: Groups, kind: int, shape: Sequence[int]) -> Tensor:
    """The weights in float32, as the gguf package gives them."""
    rows, numbers = groups.scales.shape
    form = GROUPED[kind]
    cols = numbers * GROUP // (1 if form == "int8" else 2)
    packed = Packed(format=form, rows=rows, cols=cols, values=groups.values, scales=groups.scales.flatten())
    return unpack(packed).view(*shape)
