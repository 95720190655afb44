"""How much vLLM pads MXFP4 experts: kernels need sides that are multiples of a tile.

Sources: mxfp4.py (0.11) and fused_moe/oracle/mxfp4.py (0.33) of vLLM. Marlin and the Blackwell kernels round the hidden
side up to a multiple of 256 and the inner side to 128: logs show 65.97 GiB for gpt-oss-120b (0.10) and 13.72 for
gpt-oss-20b. Triton's layout on Hopper is a fit to one log, 64.38 GiB for gpt-oss-120b (0.14): packed values are padded
to 256 along the multiplied side, scales to 128 along the other. The file of gpt-oss-120b has 60.77 GiB.
"""

from __future__ import annotations

from calc.model.layers import Experts
from calc.model.spec import ModelSpec
from calc.model.study import Study
from calc.servers.generations import HOPPER, generation
from calc.servers.versions import VLLM_TRITON_EXPERTS, Version

VALUE_BITS, SCALE_BITS, SCALED = 4, 8, 32
"""Bits per value, bits per scale, and values per scale."""


def round_up(value: int, multiple: int) -> int:
    """`value`, rounded up to a multiple."""
    return -(-value // multiple) * multiple


def matrix_bytes(rows: int, columns: int, *, scale_rows: int, scale_columns: int) -> int:
    """Packed values of rows x columns and their scales, one byte per 32 values along the columns."""
    return rows * columns * VALUE_BITS // 8 + scale_rows * (scale_columns // SCALED) * SCALE_BITS // 8


def expert_bytes(hidden: int, inner: int) -> int:
    """An expert's gate, up and down as stored in the file."""
    return _tiled_bytes(hidden, inner)


def marlin_bytes(hidden: int, inner: int) -> int:
    """As stored by Marlin and the Blackwell kernels.

    >>> marlin_bytes(2880, 2880) == expert_bytes(3072, 2944)
    True
    """
    return _tiled_bytes(round_up(hidden, 256), round_up(inner, 128))


def triton_bytes(hidden: int, inner: int) -> int:
    """As stored in Triton's Hopper layout."""
    inner = round_up(inner, 64)
    up = matrix_bytes(2 * inner, round_up(hidden, 256), scale_rows=round_up(2 * inner, 128), scale_columns=hidden)
    down = matrix_bytes(hidden, round_up(inner, 256), scale_rows=round_up(hidden, 128), scale_columns=inner)
    return up + down


def _tiled_bytes(hidden: int, inner: int) -> int:
    up = matrix_bytes(2 * inner, hidden, scale_rows=2 * inner, scale_columns=hidden)
    return up + matrix_bytes(hidden, inner, scale_rows=hidden, scale_columns=inner)


def is_triton(study: Study, version: Version) -> bool:
    """Whether vLLM uses Triton's kernels: on Hopper, since they come with it."""
    return generation(study.device) == HOPPER and version >= VLLM_TRITON_EXPERTS


def padding_bytes(study: Study, version: Version, *, tp: int, stage: tuple[int, int]) -> int:
    """Padding bytes of a rank's experts in a stage; 0 if the weights are not MXFP4."""
    if study.weight_format.name != "mxfp4":
        return 0
    held = triton_bytes if is_triton(study, version) else marlin_bytes
    return sum(
        part.n_experts * (held(hidden, part.expert_size // tp) - expert_bytes(hidden, part.expert_size // tp))
        for hidden, part in _experts(study.model, stage)
    )


def _experts(model: ModelSpec, stage: tuple[int, int]) -> list[tuple[int, Experts]]:
    layers = model.layers[stage[0] : stage[1]]
    parts = [(layer.hidden_size, part) for layer in layers for part in layer.feed_forwards]
    return [(part.input_size or hidden, part) for hidden, part in parts if isinstance(part, Experts)]
