"""Prepare weights when there is no compiled step: reorder them for oneDNN, or dequantize them once."""

from collections.abc import Iterator
from pathlib import Path

import torch

from engine.model.decoder import Decoder
from engine.model.layers import MLP, Attention, Linear
from engine.weights.formats import GroupedLinear, PrepackedLinear, linear_layers


def prepack(decoder: Decoder) -> int:
    """Reorder the bfloat16 layers of a decoder on the CPU in place; returns how many. Used when nothing is compiled.

    These are the matrices of attention and plain MLPs, and the head. In a tied model the head becomes a second copy
    of the embedding table: more memory, but the largest matrix of a small model is read as fast as the others.
    """
    fast = decoder.device.type == "cpu" and torch._C._has_mkldnn
    if not fast or decoder.dtype != torch.bfloat16 or not torch.cpu._is_avx512_bf16_supported():
        return 0
    parts = [part for block in decoder.blocks for part in (block.attention, block.mlp)]
    owners: list[object] = [*(part for part in parts if isinstance(part, Attention | MLP)), decoder]
    return sum(_prepack_in(owner) for owner in owners)


def widen_packed(decoder: Decoder) -> str:
    """Dequantize packed matrices to the decoder's dtype once, if memory allows; returns a note, "" if there is none.

    Used when nothing is compiled: to dequantize a matrix per token takes torch 30 times as long as to read it.
    """
    owners = [(owner, name) for owner, name, layer in _attributes(decoder) if isinstance(layer, GroupedLinear)]
    layers = [layer for layer in linear_layers(decoder) if isinstance(layer, GroupedLinear)]
    n_bytes = sum(layer.rows * layer.cols for layer in layers) * decoder.dtype.itemsize
    if not owners:
        return ""
    free, dtype, size = available_bytes(), str(decoder.dtype).removeprefix("torch."), f"{n_bytes / 1e9:.2f} GB"
    if free is None or n_bytes > free:
        return (
            "; packed weights are dequantized for every token, which is slow (dequantized once, they would take "
            f"{size})"
        )
    for owner, name in owners:
        layer: GroupedLinear = getattr(owner, name)
        setattr(owner, name, Linear(layer.weight(decoder.dtype), layer.bias()))
    return f"; packed weights are dequantized to {dtype}, {size}"


def _attributes(decoder: Decoder) -> Iterator[tuple[object, str, object]]:
    """Every attribute of a decoder's parts, as (owner, name, value)."""
    seen: set[int] = set()
    todo: list[object] = [decoder]
    while todo:
        part = todo.pop(0)
        if id(part) in seen or not type(part).__module__.startswith("engine.") or not hasattr(part, "__dict__"):
            continue
        seen.add(id(part))
        for name, value in list(vars(part).items()):
            yield part, name, value
            todo += value if isinstance(value, list) else [value]


def available_bytes() -> int | None:
    """Memory that the system still has available; None if it does not report that."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def _prepack_in(owner: object) -> int:
    layers = [(name, value) for name, value in vars(owner).items() if isinstance(value, Linear)]
    for name, layer in layers:
        setattr(owner, name, PrepackedLinear(layer))
    return len(layers)
