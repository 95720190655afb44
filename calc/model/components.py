"""The component of a parameter count (`calc.model.count.Parameters`) to which a tensor belongs."""

from __future__ import annotations

from calc.model.count import LM_HEAD
from calc.model.tensors import EMBEDDING, Tensor


def component_of(tensor: Tensor) -> str:
    """The component of `Parameters` that counts `tensor`, whose name is its path in the model (or in a layer)."""
    name = tensor.name.removeprefix("layers.").lstrip("0123456789.")
    if tensor.role == EMBEDDING:
        return "embedding"
    if name in ("norm", "norms"):
        return "norms"
    if name.startswith(LM_HEAD):
        return "head"
    if tensor.expert:
        return "experts"
    if name.startswith("mlp.") and name not in ("mlp.gate", "mlp.gate.bias"):
        return "mlp"
    return "attention" if "." in name and not name.startswith("mlp.") else "other"
