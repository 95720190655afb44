"""The record of how one model_type differs from a Llama: config keys, tensor names, GGUF files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.families.keys import Keys
from engine.model.config import ModelConfig
from engine.weights.gguf import GGUFFile
from engine.weights.lazy import Stored, StoredTensor


def _no_keys(file: GGUFFile) -> dict[str, Any]:
    return {}


def _no_tensors(file: GGUFFile, config: ModelConfig) -> dict[str, StoredTensor]:
    return {}


def _no_parts(config: ModelConfig) -> dict[str, str]:
    return {}


def _as_published(config: ModelConfig) -> ModelConfig:
    return config


def _unchanged(name: str, tensor: StoredTensor, config: ModelConfig) -> StoredTensor:
    return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFForm:
    """How llama.cpp's conversion writes a family. The defaults are the keys and tensors that all files share."""

    architecture: str
    keys: Callable[[GGUFFile], dict[str, Any]] = _no_keys
    """Keys of a config.json that this architecture stores differently; they replace the shared ones."""
    off: tuple[str, ...] = ()
    """Keys that are off if a file does not state them; all others then use their defaults."""
    parts: Callable[[ModelConfig], Mapping[str, str]] = _no_parts
    """Our names of tensors whose GGUF names mean something else in other architectures."""
    restore: Callable[[str, StoredTensor, ModelConfig], StoredTensor] = _unchanged
    """A tensor, given our name of it, with the conversion's reordering undone."""
    apart: Callable[[str, StoredTensor, ModelConfig], Mapping[str, StoredTensor]] | None = None
    """Instead of ``restore``: splits a tensor, given our name, into those that the engine has, by name."""
    more: Callable[[GGUFFile, ModelConfig], Mapping[str, StoredTensor]] = _no_tensors
    """Tensors by our names that a file states as metadata. Raises CheckpointError."""
    fused_gate: bool = False
    """``ffn_up`` holds the gate's rows, then its own."""
    adapted: Callable[[ModelConfig], ModelConfig] = _as_published
    """Changes to the config if llama.cpp computes differently from the published model, or the conversion moves
    heads."""
    adds_norm_offset: bool = False
    """The conversion added 1 to the norm weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model_type of a config.json.

    ``config`` raises ConfigError and UnsupportedArchitecture. ``tensors`` puts a checkpoint's tensors under the names
    of `engine.model.shapes.parameter_shapes`, as views where possible, and keeps unknown names; None: the
    names are these already. ``quantization``: the quant_methods that ``tensors`` dequantizes.
    """

    config: Callable[[Keys], ModelConfig]
    tensors: Callable[[Mapping[str, Stored], ModelConfig], dict[str, Stored]] | None = None
    gguf: GGUFForm | None = None
    quantization: tuple[str, ...] = ()
