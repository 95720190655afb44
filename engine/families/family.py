"""What one model_type does differently from a Llama: its config's keys, its tensors' names, its GGUF files."""

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
    """How llama.cpp's conversion writes a family. Without changes: the keys and tensors that all files share."""

    architecture: str
    keys: Callable[[GGUFFile], dict[str, Any]] = _no_keys
    """Keys of a config.json that this architecture states in its own way; they replace the shared ones."""
    off: tuple[str, ...] = ()
    """Keys that switch something off where a file does not state them; all others then take their defaults."""
    parts: Callable[[ModelConfig], Mapping[str, str]] = _no_parts
    """Our names of tensors that mean something else here than in other architectures."""
    restore: Callable[[str, StoredTensor, ModelConfig], StoredTensor] = _unchanged
    """A tensor, given our name of it, with the conversion's reordering undone."""
    apart: Callable[[str, StoredTensor, ModelConfig], Mapping[str, StoredTensor]] | None = None
    """In place of ``restore``: a tensor, given our name of it, as those that the engine has for it, by their names."""
    more: Callable[[GGUFFile, ModelConfig], Mapping[str, StoredTensor]] = _no_tensors
    """Tensors by our names that a file states as metadata. Raises CheckpointError."""
    fused_gate: bool = False
    """``ffn_up`` holds the gate's rows, then its own."""
    adapted: Callable[[ModelConfig], ModelConfig] = _as_published
    """The config where llama.cpp computes otherwise than the published model, or the conversion moves heads."""
    adds_norm_offset: bool = False
    """The conversion has added 1 to the weights of the norms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One model_type of a config.json.

    ``config`` raises ConfigError and UnsupportedArchitecture. ``tensors`` puts a checkpoint's tensors under the names
    of `engine.model.shapes.parameter_shapes`, as views where possible, and keeps names that it does not know; None:
    they have these names already. ``quantization``: quant_methods that ``tensors`` widens.
    """

    config: Callable[[Keys], ModelConfig]
    tensors: Callable[[Mapping[str, Stored], ModelConfig], dict[str, Stored]] | None = None
    gguf: GGUFForm | None = None
    quantization: tuple[str, ...] = ()
