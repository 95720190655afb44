"""BitNet's checkpoints: weights that are -1, 0 or 1 times a scale, in the three layouts that transformers uses."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from engine.errors import UnsupportedArchitecture
from engine.families.keys import Keys
from engine.weights.lazy import Stored, StoredTensor, loaded

_PER_BYTE = 4


def ternary(tensors: Mapping[str, Stored], quantization: Keys) -> dict[str, Stored]:
    """The same tensors, with matrices converted to the values used in products. Raises UnsupportedArchitecture."""
    if quantization.flag("use_rms_norm", False):
        raise UnsupportedArchitecture(f"{quantization.where}: use_rms_norm is true; norms of inputs are not supported")
    online = quantization.get("quantization_mode") == "online" and quantization.get("linear_class") == "autobitlinear"
    out: dict[str, Stored] = {}
    for name, stored in tensors.items():
        stem, _, kind = name.rpartition(".")
        scale = tensors.get(f"{stem}.weight_scale")
        if kind == "weight_scale":
            continue
        if kind == "weight" and stored.dtype == torch.uint8 and scale is not None:
            shape = (stored.shape[0] * _PER_BYTE, *stored.shape[1:])
            out[name] = _lazy(shape, partial(_unpacked, stored, scale), 1 / _PER_BYTE)
        elif kind == "weight" and scale is not None:
            out[name] = _then(stored, partial(_times, scale=scale))
        else:
            out[name] = _then(stored, _rounded) if online and name.endswith("_proj.weight") else stored
    return out


def _lazy(shape: tuple[int, ...], load: Callable[[], Tensor], element_bytes: float) -> StoredTensor:
    return StoredTensor(shape=shape, dtype=torch.float32, load=load, element_bytes=element_bytes)


def _then(stored: Stored, change: Callable[[Tensor], Tensor]) -> Stored:
    return change(stored) if isinstance(stored, Tensor) else stored.then(change)


def _unpacked(packed: Stored, scale: Stored) -> Tensor:
    """Unpack four rows per byte: the first quarter of the rows is in the lowest bits."""
    held, by = loaded(packed), loaded(scale)
    wide = by if by.dtype == torch.float64 else by.float()
    return torch.cat([(held >> (2 * i) & 3).to(wide.dtype) - 1 for i in range(_PER_BYTE)]) / wide


def _times(weight: Tensor, *, scale: Stored) -> Tensor:
    return weight * loaded(scale).to(weight.dtype)


def _rounded(weight: Tensor) -> Tensor:
    """Round the weights to -1, 0 or 1 times the mean absolute value."""
    wide = weight if weight.dtype == torch.float64 else weight.float()
    scale = 1 / wide.abs().mean().clamp_(min=1e-5)
    return ((wide * scale).round().clamp_(-1, 1) / scale).to(weight.dtype)
