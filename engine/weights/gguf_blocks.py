"""Repack GGUF blocks into the engine's formats: unpack their integers, and multiply out their steps and minima.

Blocks of 32 weights and IQ4_NL, IQ4_XS and MXFP4 are repacked exactly. A K-quant's step is a product of two numbers,
which is rounded to float16. Layouts: ggml-common.h, and the gguf package's `quants`, against which the tests compare.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.weights.panels import Groups, PanelForm, widened


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """A GGUF type: the engine's format for it, weights and bytes per block, and whether repacking is exact.

    ``read`` maps blocks (rows, blocks, bytes) to integers, steps and, if any, minima, each (rows, blocks, ..).
    """

    form: PanelForm
    weights: int
    size: int
    exact: bool
    read: Callable[[Tensor], tuple[Tensor, ...]]


def repack(data: Tensor, kind: int, n_rows: int) -> Groups:
    """Convert the blocks of ``n_rows`` rows, given as bytes, to the engine's groups."""
    blocks = data.view(n_rows, -1, GROUPED[kind].size)
    values, *numbers = GROUPED[kind].read(blocks)
    return Groups(values.flatten(1), torch.cat([number.half().flatten(1) for number in numbers], 1))


def widen(groups: Groups, kind: int, shape: Sequence[int]) -> Tensor:
    """The weights in float32, equal to those of the gguf package; for exact types."""
    return widened(groups, GROUPED[kind].form).view(*shape)


def _floats(part: Tensor) -> Tensor:
    """The float16 numbers of every block, as float32."""
    return part.contiguous().view(torch.float16).float()


def _halves(part: Tensor) -> Tensor:
    """The low 4 bits of each byte, then the high 4 bits."""
    return torch.cat((part & 15, part >> 4), -1)


def _shifted(part: Tensor, shifts: Sequence[int], width: int, mask: int) -> Tensor:
    """For every ``width`` bytes, the bits at each shift: (rows, blocks, weights)."""
    units = part.reshape(*part.shape[:2], -1, 1, width)
    return (units >> torch.tensor(shifts, dtype=torch.uint8)[:, None] & mask).flatten(2)


def _q8_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return blocks[..., 2:] ^ 128, _floats(blocks[..., :2])


def _q4_0(blocks: Tensor) -> tuple[Tensor, ...]:
    return _halves(blocks[..., 2:]), _floats(blocks[..., :2])


def _q4_1(blocks: Tensor) -> tuple[Tensor, ...]:
    return _halves(blocks[..., 4:]), _floats(blocks[..., :2]), _floats(blocks[..., 2:4])


def _fifth_bits(part: Tensor) -> Tensor:
    """The fifth bit of each weight: bit i of four bytes belongs to weight i."""
    return (part[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(2) << 4


def _q5_0(blocks: Tensor) -> tuple[Tensor, ...]:
    steps = _floats(blocks[..., :2])
    return _halves(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6]), steps, -16 * steps


def _q5_1(blocks: Tensor) -> tuple[Tensor, ...]:
    whole = _halves(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return whole, _floats(blocks[..., :2]), _floats(blocks[..., 2:4])


def _q2_k(blocks: Tensor) -> tuple[Tensor, ...]:
    both, step, least = blocks[..., :16], _floats(blocks[..., 80:82]), _floats(blocks[..., 82:84])
    return _shifted(blocks[..., 16:80], (0, 2, 4, 6), 32, 3), step * (both & 15), -least * (both >> 4)


def _q3_k(blocks: Tensor) -> tuple[Tensor, ...]:
    high, packed = _shifted(blocks[..., :32], range(8), 32, 1), blocks[..., 96:108]
    whole = _shifted(blocks[..., 32:96], (0, 2, 4, 6), 32, 3) | high << 2
    low = _shifted(packed[..., :8], (0, 4), 8, 15)
    scales = low | _shifted(packed[..., 8:], (0, 2, 4, 6), 4, 3) << 4
    return whole, _floats(blocks[..., 108:]) * (scales.float() - 32)


def _of_eight(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Scales and minima of the eight groups of Q4_K and Q5_K: 6 bits each in 12 bytes."""
    first, second, rest = torch.split(packed, 4, -1)
    scales = torch.cat((first & 63, rest & 15 | first >> 2 & 48), -1)
    return scales, torch.cat((second & 63, rest >> 4 | second >> 2 & 48), -1)


def _q4_k(blocks: Tensor) -> tuple[Tensor, ...]:
    scales, minima = _of_eight(blocks[..., 4:16])
    whole = _shifted(blocks[..., 16:], (0, 4), 32, 15)
    return whole, _floats(blocks[..., :2]) * scales, -_floats(blocks[..., 2:4]) * minima


def _q5_k(blocks: Tensor) -> tuple[Tensor, ...]:
    scales, minima = _of_eight(blocks[..., 4:16])
    whole = _shifted(blocks[..., 48:], (0, 4), 32, 15) | _shifted(blocks[..., 16:48], range(8), 32, 1) << 4
    return whole, _floats(blocks[..., :2]) * scales, -_floats(blocks[..., 2:4]) * minima


def _q6_k(blocks: Tensor) -> tuple[Tensor, ...]:
    whole = _shifted(blocks[..., :128], (0, 4), 64, 15) | _shifted(blocks[..., 128:192], (0, 2, 4, 6), 32, 3) << 4
    return whole, _floats(blocks[..., 208:]) * blocks[..., 192:208].view(torch.int8)


def _iq4_xs(blocks: Tensor) -> tuple[Tensor, ...]:
    low = _shifted(blocks[..., 4:8], (0, 4), 1, 15)
    high = _shifted(blocks[..., 2:4], (0, 2, 4, 6), 1, 3)
    scales = (low | high << 4).float() - 32
    return _shifted(blocks[..., 8:], (0, 4), 16, 15), _floats(blocks[..., :2]) * scales


def _mxfp4(blocks: Tensor) -> tuple[Tensor, ...]:
    return _halves(blocks[..., 1:]), torch.exp2(blocks[..., :1].float() - 128)


GROUPED: dict[int, Blocks] = {
    2: Blocks(form="int4-zero", weights=32, size=18, exact=True, read=_q4_0),
    3: Blocks(form="int4", weights=32, size=20, exact=True, read=_q4_1),
    6: Blocks(form="int5", weights=32, size=22, exact=True, read=_q5_0),
    7: Blocks(form="int5", weights=32, size=24, exact=True, read=_q5_1),
    8: Blocks(form="int8", weights=32, size=34, exact=True, read=_q8_0),
    10: Blocks(form="int2", weights=256, size=84, exact=False, read=_q2_k),
    11: Blocks(form="int3", weights=256, size=110, exact=False, read=_q3_k),
    12: Blocks(form="int4", weights=256, size=144, exact=False, read=_q4_k),
    13: Blocks(form="int5", weights=256, size=176, exact=False, read=_q5_k),
    14: Blocks(form="int6", weights=256, size=210, exact=False, read=_q6_k),
    20: Blocks(form="iq4", weights=32, size=18, exact=True, read=_q4_0),
    23: Blocks(form="iq4", weights=256, size=136, exact=False, read=_iq4_xs),
    39: Blocks(form="fp4", weights=32, size=17, exact=False, read=_mxfp4),
}
"""Block types by their GGUF type number."""
