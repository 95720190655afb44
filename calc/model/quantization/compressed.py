"""compressed-tensors (llm-compressor): packed or plain, scales by tensor, channel, group or block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from calc.model.quantization.floats import mxfp4_bytes, nvfp4_bytes
from calc.model.quantization.scheme import MAX_PATTERNS, Quant, Scheme, Size, cdiv, grouped, integer_bytes


def compressed(quant: Quant) -> Scheme:
    groups = quant.raw.get("config_groups")
    if not isinstance(groups, dict) or not groups or len(groups) > MAX_PATTERNS:
        raise quant.fail("config_groups must hold a group")
    made = [_compressed_group(quant, group) for group in groups.values()]
    ignored = quant.names("ignore")
    (targets, name, size), others = made[0], made[1:]
    if not others and "Linear" in targets:
        return Scheme(name, size, ignored=ignored)
    named = " and ".join(dict.fromkeys(name for _, name, _ in made))
    return Scheme(named, size, ignored=ignored, groups=tuple((t, s) for t, _, s in made), others_too=False)


def _compressed_group(quant: Quant, group: Any) -> tuple[tuple[str, ...], str, Size]:
    """(targets, name, size of a matrix) of one of `config_groups`."""
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise quant.fail("config_groups must say weights")
    layout = str(group.get("format") or quant.raw.get("format") or "")
    targets = Quant(group, f"{quant.where}: config_groups").names("targets") or ("Linear",)
    return targets, *_compressed_format(Quant(weights, f"{quant.where}: weights"), group, layout)


def _compressed_format(weights: Quant, group: Mapping[str, Any], layout: str) -> tuple[str, Size]:
    bits, kind = weights.count("num_bits"), str(weights.raw.get("type", "int"))
    strategy = str(weights.raw.get("strategy") or "tensor")
    if "mxfp4" in layout:
        return "mxfp4", mxfp4_bytes
    if kind == "float" and bits == 4:
        return ("mxfp4", mxfp4_bytes) if weights.raw.get("group_size") == 32 else ("nvfp4", nvfp4_bytes)
    inputs = group.get("input_activations")
    static = 4 if isinstance(inputs, dict) and inputs.get("dynamic") is False else 0
    packed = bits < 8 or "pack" in layout
    size = weights.count("group_size", default=0, lowest=-1) if strategy == "group" else 0
    zeros = kind == "int" and not weights.flag("symmetric", True)
    order = weights.raw.get("actorder") in ("group", True)
    block = weights.raw.get("block_structure") if strategy == "block" else None

    def matrix_bytes(rows: int, columns: int) -> int:
        if packed:
            whole = integer_bytes(rows, columns, bits=bits, group=size, zeros=zeros, order=order, scale=2)
            return whole + 16
        if isinstance(block, list) and len(block) == 2:
            return rows * columns + 4 * cdiv(rows, int(block[0])) * cdiv(columns, int(block[1]))
        scales = {"tensor": 1, "channel": rows, "group": rows * cdiv(columns, size or columns)}.get(strategy, 1)
        return rows * columns + scales * (2 + int(zeros)) + static

    named = grouped(f"{kind}{bits}", size) if strategy == "group" else f"{kind}{bits} by {strategy}"
    return named, matrix_bytes


READERS: Mapping[str, Callable[[Quant], Scheme]] = {"compressed-tensors": compressed}
