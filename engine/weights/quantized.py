"""Checkpoints in few bits, widened as they are loaded: fp8 and int8 with scales, AWQ, GPTQ, packed integers.

Layouts as the libraries that write them define them: AutoAWQ's packing_utils, GPTQModel's qlinear, compressed-tensors'
pack_quantized, and DeepSeek's block scales.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError, UnsupportedArchitecture
from engine.families.keys import Keys
from engine.weights.lazy import Stored, StoredTensor, loaded

METHODS = ("fp8", "awq", "gptq", "compressed-tensors")
"""Values of quant_method that are widened here."""
_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
_WORD = 32  # bits of an integer that holds several weights
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where AutoAWQ's kernels want the eight numbers of a word


def widened(tensors: Mapping[str, Stored], quantization: Keys | None) -> dict[str, Stored]:
    """The same tensors with every quantized matrix under its plain name, ``stem.weight``. Raises CheckpointError."""
    out: dict[str, Stored] = {}
    used: set[str] = set()
    for name, stored in tensors.items():
        stem, _, kind = name.rpartition(".")
        parts = {part: tensors[f"{stem}.{part}"] for part in _PARTS if f"{stem}.{part}" in tensors}
        if kind == "qweight":
            out[f"{stem}.weight"] = _of_words(stem, parts, quantization)
        elif kind == "weight_packed":
            out[f"{stem}.weight"] = _of_rows(stem, parts, quantization)
        elif kind == "weight" and stored.dtype in _NARROW:
            out[name] = _scaled(stem, parts, quantization)
        else:
            out[name] = stored
            continue
        used |= {f"{stem}.{part}" for part in parts}
    return {name: stored for name, stored in out.items() if name not in used or name.endswith(".weight")}


_PARTS = (
    "weight", "weight_scale", "weight_scale_inv", "qweight", "qzeros", "scales", "g_idx",
    "weight_packed", "weight_zero_point", "weight_shape", "weight_g_idx",
)  # fmt: skip


def _lazy(shape: tuple[int, ...], load: Callable[[], Tensor], element_bytes: float) -> StoredTensor:
    return StoredTensor(shape=shape, dtype=torch.float32, load=load, element_bytes=element_bytes)


# --- one number after the other ---------------------------------------------------------------------------


def _scaled(stem: str, parts: Mapping[str, Stored], quantization: Keys | None) -> StoredTensor:
    """fp8 or int8 times a scale of the tensor, of each row, or of each block."""
    weight = parts["weight"]
    scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
    if scale is None and weight.dtype == torch.int8:
        raise CheckpointError(f"{stem}.weight is stored as int8 without a weight_scale, which says what it means")
    block = quantization.get("weight_block_size") if quantization is not None else None
    load = partial(_load_scaled, stem, weight, scale, tuple(block) if isinstance(block, list) else None)
    return _lazy(tuple(weight.shape), load, weight.dtype.itemsize)


def _load_scaled(stem: str, weight: Stored, scale: Stored | None, block: tuple[int, ...] | None) -> Tensor:
    wide = loaded(weight).float()
    if scale is None:
        return wide
    factors = loaded(scale).float()
    if factors.numel() == 1:
        return wide.mul_(factors.view(()))
    rows, columns = wide.shape
    if factors.shape in ((rows,), (rows, 1)):
        return wide.mul_(factors.view(rows, 1))
    size = block or tuple(-(-n // m) for n, m in zip(wide.shape, factors.shape, strict=False))
    if factors.dim() != 2 or tuple(-(-n // s) for n, s in zip(wide.shape, size, strict=True)) != tuple(factors.shape):
        raise CheckpointError(f"{stem}: scales {list(factors.shape)} do not fit a matrix {[rows, columns]}")
    full = factors.repeat_interleave(size[0], 0)[:rows].repeat_interleave(size[1], 1)[:, :columns]
    return wide.mul_(full)


# --- several numbers in a word ----------------------------------------------------------------------------


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unsigned numbers out of 32-bit words along a dimension, the lowest bits first."""
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    wide = (words.int().unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (words.dim() - 1 - dim))) & (1 << bits) - 1
    return wide.flatten(dim, dim + 1)


def _bits(stem: str, quantization: Keys | None) -> int:
    bits = (
        4
        if quantization is None
        else quantization.count("bits", quantization.get("w_bit") or _group_bits(quantization))
    )
    if bits not in (2, 4, 8):
        raise UnsupportedArchitecture(f"{stem} is stored in {bits} bits; 2, 4 and 8 can be loaded")
    return bits


def _group_bits(quantization: Keys) -> int:
    """compressed-tensors state the bits of each group of layers; here all have the same."""
    groups = quantization.get("config_groups")
    stated: set[Any] = set()
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        stated.add(weights.get("num_bits") if isinstance(weights, dict) else None)
    if len(stated) > 1:
        raise UnsupportedArchitecture(f"config.json: quantization_config has groups of {sorted(map(str, stated))} bits")
    bits = next(iter(stated), 4)
    return bits if isinstance(bits, int) else 4


def _of_words(stem: str, parts: Mapping[str, Stored], quantization: Keys | None) -> StoredTensor:
    """AWQ packs outputs, GPTQ inputs: the shapes say which."""
    words, scales = parts["qweight"], parts.get("scales")
    if scales is None or "qzeros" not in parts:
        raise CheckpointError(f"{stem} has a qweight without scales and qzeros")
    bits = _bits(stem, quantization)
    per_word, n_out = _WORD // bits, scales.shape[-1]
    if words.shape[1] == n_out:
        shape = (n_out, words.shape[0] * per_word)
        first = 0 if quantization is not None and quantization.get("checkpoint_format") == "gptq_v2" else 1
        return _lazy(shape, partial(_load_gptq, parts, bits, first), bits / 8)
    if words.shape[1] * per_word != n_out or bits != 4:
        raise CheckpointError(f"{stem}: qweight {list(words.shape)} does not fit scales {list(scales.shape)}")
    version = quantization.get("version") if quantization is not None else None
    if version not in (None, "gemm", "GEMM"):
        raise UnsupportedArchitecture(f"config.json: AWQ in the layout {version!r}; gemm can be loaded")
    return _lazy((n_out, words.shape[0]), partial(_load_awq, parts), bits / 8)


def _load_gptq(parts: Mapping[str, Stored], bits: int, first_zero: int) -> Tensor:
    weight = unpacked(loaded(parts["qweight"]), bits, 0)  # (in, out)
    zeros = unpacked(loaded(parts["qzeros"]), bits, 1) + first_zero  # (groups, out)
    scales = loaded(parts["scales"]).float()
    order = _groups_of(parts.get("g_idx"), weight.size(0), scales.size(0))
    return ((weight - zeros[order]) * scales[order]).t().contiguous()


def _groups_of(stated: Stored | None, n_in: int, n_groups: int) -> Tensor:
    if stated is not None and stated.shape == (n_in,):
        return loaded(stated).long()
    return torch.arange(n_in) // -(-n_in // n_groups)


def _load_awq(parts: Mapping[str, Stored]) -> Tensor:
    weight, zeros = (_in_order(unpacked(loaded(parts[name]), 4, 1)) for name in ("qweight", "qzeros"))
    scales = loaded(parts["scales"]).float()
    size = weight.size(0) // scales.size(0)
    wide = (weight - zeros.repeat_interleave(size, 0)) * scales.repeat_interleave(size, 0)
    return wide.t().contiguous()


def _in_order(numbers: Tensor) -> Tensor:
    return numbers.view(numbers.size(0), -1, 8)[..., list(_AWQ_ORDER)].flatten(1)


def _of_rows(stem: str, parts: Mapping[str, Stored], quantization: Keys | None) -> StoredTensor:
    """compressed-tensors' packed integers: rows as they are, an offset of half the range, a scale per group."""
    scale, bits = parts.get("weight_scale"), _bits(stem, quantization)
    if scale is None or "weight_zero_point" in parts or "weight_g_idx" in parts:
        raise UnsupportedArchitecture(
            f"{stem}: packed integers with zero points, or groups in an order, are not supported"
        )
    words = parts["weight_packed"]
    stated = parts.get("weight_shape")
    n_in = int(loaded(stated)[1]) if stated is not None else words.shape[1] * (_WORD // bits)
    return _lazy((words.shape[0], n_in), partial(_load_rows, words, scale, bits, n_in), bits / 8)


def _load_rows(words: Stored, scale: Stored, bits: int, n_in: int) -> Tensor:
    numbers = unpacked(loaded(words), bits, 1)[:, :n_in] - (1 << bits - 1)
    factors = loaded(scale).float()
    return numbers * factors.repeat_interleave(-(-n_in // factors.size(1)), 1)[:, :n_in]
