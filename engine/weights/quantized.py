"""Quantised checkpoints, dequantized on loading: fp8 and int8 with scales, AWQ, GPTQ, packed integers, NF4.

Layouts as the libraries that write them define them: AutoAWQ's packing_utils, GPTQModel's qlinear, compressed-tensors'
pack_quantized, bitsandbytes' QuantState, and DeepSeek's block scales.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from engine.errors import CheckpointError, UnsupportedArchitecture
from engine.families.keys import Keys
from engine.weights.lazy import Stored, StoredTensor, loaded
from engine.weights.ternary import ternary

METHODS = ("fp8", "awq", "gptq", "compressed-tensors", "bitsandbytes", "bitnet")
"""Values of quant_method that this module dequantizes."""
_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
_WORD = 32  # bits of an integer that holds several weights
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # the order of the eight numbers in a word that AutoAWQ's kernels expect


def widened(tensors: Mapping[str, Stored], quantization: Keys | None) -> dict[str, Stored]:
    """The same tensors with every quantized matrix under its plain name, ``stem.weight``. Raises CheckpointError."""
    if quantization is not None and quantization.get("quant_method") == "bitnet":
        return ternary(tensors, quantization)
    out: dict[str, Stored] = {}
    used: set[str] = set()
    for name, stored in tensors.items():
        stem, _, kind = name.rpartition(".")
        parts = {part: tensors[f"{stem}.{part}"] for part in _PARTS if f"{stem}.{part}" in tensors}
        if kind == "qweight":
            out[f"{stem}.weight"] = _of_words(stem, parts, quantization)
        elif kind == "weight_packed":
            out[f"{stem}.weight"] = _of_rows(stem, parts, quantization)
        elif kind == "weight" and stored.dtype == torch.uint8 and "weight.absmax" in parts:
            out[name] = _of_codes(stem, parts)
        elif kind == "weight" and stored.dtype in _NARROW:
            out[name] = _scaled(stem, parts, quantization)
        else:
            out[name] = stored
            continue
        used |= {f"{stem}.{part}" for part in parts}
    return {name: stored for name, stored in out.items() if name not in used or name.endswith(".weight")}


_PARTS = (
    "weight", "weight_scale", "weight_scale_inv", "qweight", "qzeros", "scales", "g_idx",
    "weight_packed", "weight_zero_point", "weight_shape", "weight_g_idx", "SCB", "weight_format",
    "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map",
    "weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4",
)  # fmt: skip


def _lazy(shape: tuple[int, ...], load: Callable[[], Tensor], element_bytes: float) -> StoredTensor:
    return StoredTensor(shape=shape, dtype=torch.float32, load=load, element_bytes=element_bytes)


# --- one number after the other ---------------------------------------------------------------------------


def _scaled(stem: str, parts: Mapping[str, Stored], quantization: Keys | None) -> StoredTensor:
    """fp8 or int8 times one scale per tensor, per row or per block."""
    weight = parts["weight"]
    scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
    if scale is None and "SCB" in parts:  # bitsandbytes: the largest absolute value per row
        scale = loaded(parts["SCB"]).float() / 127
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
    """Unsigned numbers out of 32-bit words along a dimension, the lowest bits first; one number may cross two words."""
    if _WORD % bits:
        return _across_words(words.movedim(dim, -1), bits).movedim(-1, dim)
    shifts = torch.arange(0, _WORD, bits, dtype=torch.int32)
    wide = (words.int().unsqueeze(dim + 1) >> shifts.view(-1, *[1] * (words.dim() - 1 - dim))) & (1 << bits) - 1
    return wide.flatten(dim, dim + 1)


def _across_words(words: Tensor, bits: int) -> Tensor:
    """The same along the last dimension for bit widths that do not divide 32."""
    n_words = words.size(-1)
    starts = torch.arange(n_words * _WORD // bits) * bits
    first, shift = starts // _WORD, starts % _WORD
    unsigned = words.long() & (1 << _WORD) - 1
    pairs = unsigned[..., first] | unsigned[..., (first + 1).clamp_max(n_words - 1)] << _WORD
    return (pairs >> shift & (1 << bits) - 1).int()


def _bits(stem: str, quantization: Keys | None) -> int:
    bits = (
        4
        if quantization is None
        else quantization.count("bits", quantization.get("w_bit") or _group_bits(quantization))
    )
    if not 2 <= bits <= 8:
        raise UnsupportedArchitecture(f"{stem} is stored in {bits} bits; 2 to 8 can be loaded")
    return bits


def _group_bits(quantization: Keys) -> int:
    """Bits per weight: compressed-tensors states them per group of layers, and all groups must agree."""
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
    """Dequantize packed words: AWQ packs outputs, GPTQ inputs; the shapes tell which."""
    words, scales = parts["qweight"], parts.get("scales")
    if scales is None or "qzeros" not in parts:
        raise CheckpointError(f"{stem} has a qweight without scales and qzeros")
    bits = _bits(stem, quantization)
    n_out = scales.shape[-1]
    if words.shape[1] == n_out:
        shape = (n_out, words.shape[0] * _WORD // bits)
        first = 0 if quantization is not None and quantization.get("checkpoint_format") == "gptq_v2" else 1
        return _lazy(shape, partial(_load_gptq, parts, bits, first), bits / 8)
    if words.shape[1] * _WORD // bits != n_out or bits != 4:
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
    """compressed-tensors' packed integers: rows in plain order, a scale and an optional zero point per group."""
    words, scale, bits = parts["weight_packed"], parts.get("weight_scale"), _bits(stem, quantization)
    if scale is None or words.dtype != torch.int32:
        raise UnsupportedArchitecture(
            f"{stem}: weight_packed of {words.dtype} {'with' if scale is not None else 'without'} a weight_scale; "
            "32-bit words of integers with one can be loaded"
        )
    stated = parts.get("weight_shape")
    n_in = int(loaded(stated)[1]) if stated is not None else words.shape[1] * _WORD // bits
    return _lazy((words.shape[0], n_in), partial(_load_rows, parts, bits, n_in), bits / 8)


def _load_rows(parts: Mapping[str, Stored], bits: int, n_in: int) -> Tensor:
    half = 1 << bits - 1
    numbers = unpacked(loaded(parts["weight_packed"]), bits, 1)[:, :n_in] - half
    scales = loaded(parts["weight_scale"]).float()
    order = _groups_of(parts.get("weight_g_idx"), n_in, scales.size(1))
    if "weight_zero_point" not in parts:
        return numbers * scales[:, order]
    zeros = loaded(parts["weight_zero_point"])
    if zeros.dtype == torch.int32:  # packed along the outputs
        zeros = unpacked(zeros, bits, 0)[: numbers.size(0)] - half
    return (numbers - zeros[:, order]) * scales[:, order]


# --- codes of a table -------------------------------------------------------------------------------------


def _of_codes(stem: str, parts: Mapping[str, Stored]) -> StoredTensor:
    """bitsandbytes' NF4 and FP4: two codes per byte, the first in the high bits; a largest absolute value per block."""
    state = next((parts[name] for name in parts if name.startswith("weight.quant_state.")), None)
    try:
        facts = Keys(json.loads(bytes(loaded(state).tolist())) if state is not None else {}, where=stem)
    except (ValueError, TypeError):
        raise CheckpointError(f"{stem}: its quant_state is not the JSON that bitsandbytes writes") from None
    shape = facts.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise CheckpointError(f"{stem}: its quant_state states no shape")
    if -(-math.prod(shape) // 2) != math.prod(parts["weight"].shape) or "weight.quant_map" not in parts:
        raise CheckpointError(f"{stem}: {list(parts['weight'].shape)} bytes are no matrix {shape} of 4-bit codes")
    return _lazy(tuple(shape), partial(_load_codes, parts, facts, tuple(shape)), 0.5)


def _load_codes(parts: Mapping[str, Stored], facts: Keys, shape: tuple[int, ...]) -> Tensor:
    packed = loaded(parts["weight"]).flatten()
    codes = torch.stack((packed >> 4, packed & 15), 1).flatten().long()
    values = loaded(parts["weight.quant_map"]).float()[codes]
    largest = loaded(parts["weight.absmax"])
    if "weight.nested_absmax" in parts:  # themselves quantised to 8 bits
        outer = loaded(parts["weight.nested_absmax"]).float()
        inner = loaded(parts["weight.nested_quant_map"]).float()[largest.long()]
        largest = inner * _spread(outer, facts.count("nested_blocksize"), len(inner)) + float(
            facts.get("nested_offset")
        )
    return (values * _spread(largest.float(), facts.count("blocksize"), len(values)))[: math.prod(shape)].view(shape)


def _spread(values: Tensor, block: int, n: int) -> Tensor:
    return values.repeat_interleave(block)[:n]
