"""compressed-tensors (llm-compressor): packed or plain, with scales by tensor, channel, group or block, and 2:4
sparsity.

Source: compressed-tensors 0.12 (compressors/sparse_compressors/sparse_24_bitmask.py, quantized_compressors and
marlin_24), vLLM 0.11 (quantization/gptq_marlin_24.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calc.model.quantization.floats import mxfp4_bytes, mxfp8_bytes, nvfp4_bytes
from calc.model.quantization.scheme import MAX_PATTERNS, Quant, Scheme, Size, cdiv, grouped, integer_bytes


def compressed(quant: Quant) -> Scheme:
    groups, sparse = quant.raw.get("config_groups"), _sparse_24(quant)
    if not groups and (sparse or quant.raw.get("kv_cache_scheme") or quant.raw.get("sparsity_config")):
        return _unquantized(quant, sparse=sparse)
    if not isinstance(groups, dict) or not groups or len(groups) > MAX_PATTERNS:
        raise quant.fail("config_groups must hold a group")
    made = [_compressed_group(quant, group) for group in groups.values()]
    ignored = quant.names("ignore")
    (targets, name, size), others = made[0], made[1:]
    if not others and "Linear" in targets:
        return Scheme(name, size, ignored=ignored)
    named = " and ".join(dict.fromkeys(name for _, name, _ in made))
    return Scheme(named, size, ignored=ignored, groups=tuple((t, s) for t, _, s in made), others_too=False)


SPARSE_24 = "sparse-24-bitmask"
MARLIN_24 = "marlin-24"


def _sparse_24(quant: Quant) -> bool:
    """Whether two of four elements are stored, with one bit per element. Raises SourceError for another sparsity."""
    own = quant.section("sparsity_config")
    kind = "dense" if own is None else str(own.raw.get("format") or "dense")
    if kind not in ("dense", SPARSE_24):
        raise quant.fail(f"sparsity_config of format {kind[:30]!r}: the number of stored elements is not known")
    return kind == SPARSE_24


def _unquantized(quant: Quant, *, sparse: bool) -> Scheme:
    """16-bit weights: only the cache is quantized, or half of the elements are left out."""
    if not sparse:
        return Scheme("16 bits", lambda rows, columns: 2 * rows * columns, others_too=False)
    own = quant.section("sparsity_config")
    ignored = quant.names("ignore") if own is None else (*quant.names("ignore"), *own.names("ignore"))
    return Scheme("16 bits, 2 of 4", lambda rows, columns: sparse_bytes(rows, columns, bits=16), ignored=ignored)


def sparse_bytes(rows: int, columns: int, *, bits: int) -> int:
    """Half of the elements, one bit per element, and the shape."""
    return rows * columns // 2 * bits // 8 + rows * cdiv(columns, 8) + 16


def marlin_24_bytes(rows: int, columns: int, *, bits: int, group: int) -> int:
    """Half of the elements, two position bits for each, a 16-bit scale per group."""
    groups = cdiv(columns, group) if group > 0 else 1
    return rows * columns // 2 * bits // 8 + rows * columns // 8 + 2 * groups * rows


def _compressed_group(quant: Quant, group: Any) -> tuple[tuple[str, ...], str, Size]:
    """(targets, name, matrix size) of one of `config_groups`."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise quant.fail("config_groups must contain weights")
    layout = str(group.get("format") or quant.raw.get("format") or "")
    targets = Quant(group, f"{quant.where}: config_groups").names("targets") or ("Linear",)
    name, size = _compressed_format(Quant(weights, f"{quant.where}: weights"), group, layout)
    return (targets, *(_with_half(name, size) if _sparse_24(quant) else (name, size)))


def _with_half(name: str, size: Size) -> tuple[str, Size]:
    """The same with two of four 8-bit elements stored; scales stay."""

    def half(rows: int, columns: int) -> int:
        return size(rows, columns) - rows * columns + sparse_bytes(rows, columns, bits=8)

    return f"{name}, 2 of 4", half


def _compressed_format(weights: Quant, group: Mapping[str, Any], layout: str) -> tuple[str, Size]:
    bits, kind = weights.count("num_bits"), str(weights.raw.get("type", "int"))
    strategy = str(weights.raw.get("strategy") or "tensor")
    if "mxfp4" in layout or "mxfp8" in layout:
        return ("mxfp4", mxfp4_bytes) if "mxfp4" in layout else ("mxfp8", mxfp8_bytes)
    if kind == "float" and bits == 4:
        return ("mxfp4", mxfp4_bytes) if weights.raw.get("group_size") == 32 else ("nvfp4", nvfp4_bytes)
    inputs = group.get("input_activations")
    static = 4 if isinstance(inputs, dict) and inputs.get("dynamic") is False else 0
    packed = bits < 8 or "pack" in layout
    size = weights.count("group_size", default=0, lowest=-1) if strategy == "group" else 0
    zeros = kind == "int" and not weights.flag("symmetric", True)
    order = weights.raw.get("actorder") in ("group", True)
    block = _block(weights) if strategy == "block" else None
    if layout == MARLIN_24:
        return f"int{bits}, 2 of 4", lambda rows, columns: marlin_24_bytes(rows, columns, bits=bits, group=size)

    def matrix_bytes(rows: int, columns: int) -> int:
        if packed:
            whole = integer_bytes(rows, columns, bits=bits, group=size, zeros=zeros, order=order, scale=2)
            return whole + 16
        if block is not None:
            return rows * columns + 4 * cdiv(rows, block[0]) * cdiv(columns, block[1]) + static
        scales = {"tensor": 1, "channel": rows, "group": rows * cdiv(columns, size or columns)}.get(strategy, 1)
        return rows * columns + scales * (2 + int(zeros)) + static

    named = grouped(f"{kind}{bits}", size) if strategy == "group" else f"{kind}{bits} by {strategy}"
    return named, matrix_bytes


def _block(weights: Quant) -> tuple[int, int]:
    """Rows and columns of a block: a list, or text such as 128x128."""
    stated = weights.raw.get("block_structure")
    sides = stated.split("x") if isinstance(stated, str) else stated
    if not isinstance(sides, list) or len(sides) != 2 or not all(str(side).isdigit() and int(side) for side in sides):
        raise weights.fail("block_structure must be two numbers such as [128, 128]")
    return int(sides[0]), int(sides[1])


READERS: Mapping[str, Callable[[Quant], Scheme]] = {"compressed-tensors": compressed}
