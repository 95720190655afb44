"""Where llama.cpp can put each weight: the input on the host, layers with or without their experts, the output.

llama-model.cpp (load_tensors): the input embedding is only looked up and stays on the host. A tied head is a second
copy of that embedding if the output is on another device. Norms, biases and routers are float32 in every GGUF file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil

from calc.model.count import outer_tensors
from calc.model.parts import LayerSpec
from calc.model.spec import ModelSpec
from calc.model.storage import StorageFormat
from calc.model.stored import LayerBytes, StoredWeights
from calc.model.tensors import EMBEDDING, LINEAR, OTHER, POSITIONS, Tensor

LOOKED_UP = (EMBEDDING, POSITIONS, OTHER)
"""Tables outside the layers, including those for every layer (Gemma 3n)."""
PLAIN_BYTES = 4
"""Bytes per element of tensors that no GGUF quantization changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Bytes of one layer: its routed experts, which ``--n-cpu-moe`` moves to the host, and the rest.

    `largest` is its largest matrix (all experts of one matrix count as one), which a batch copies to the device.
    """

    rest: int
    experts: int
    largest: int

    def scaled(self, rest: Fraction, experts: Fraction) -> LayerWeights:
        """The same in other formats for the rest and the experts."""
        largest = self.largest * (experts if self.experts else rest)
        return LayerWeights(rest=int(self.rest * rest), experts=int(self.experts * experts), largest=int(largest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Bytes by possible place. `output` has the head (a second copy of the embedding if it is tied)."""

    input: int
    output: int
    head: int
    layers: tuple[LayerWeights, ...]
    tied: bool


@lru_cache(maxsize=64)
def weights_of(model: ModelSpec, weight_format: StorageFormat) -> Weights:
    """The weights of `model` stored in `weight_format`, or by a file's own tensors if that is its format."""
    counted = _counted(model, weight_format)
    stored = weight_format.stored
    if stored is None:
        return counted
    return _of_file(model, stored, counted) if len(stored.layers) == model.n_layers else _scaled(counted, stored)


def _of_file(model: ModelSpec, stored: StoredWeights, counted: Weights) -> Weights:
    """A file's bytes layer by layer. Everything outside the layers, except head and last norm, is looked up on the
    host."""
    components = dict(stored.components)
    norm = model.final_norm_size * PLAIN_BYTES
    head = components.get("embedding" if model.tied else "head", 0)
    outside = stored.total_bytes - sum(layer.total for layer in stored.layers)
    return Weights(
        input=max(0, outside - norm - (0 if model.tied else head)),
        output=head + norm,
        head=head,
        layers=tuple(map(_layer_of_file, stored.layers, counted.layers)),
        tied=model.tied,
    )


def _layer_of_file(stored: LayerBytes, counted: LayerWeights) -> LayerWeights:
    rest = stored.total - stored.experts
    sparse = Fraction(stored.experts, counted.experts) if counted.experts else Fraction(0)
    scaled = counted.scaled(Fraction(rest, max(1, counted.rest)), sparse)
    return LayerWeights(rest=rest, experts=stored.experts, largest=scaled.largest)


def _scaled(counted: Weights, stored: StoredWeights) -> Weights:
    """The bytes of a checkpoint of which only the total, and perhaps that of the experts, is known."""
    experts = sum(layer.experts for layer in counted.layers)
    twice = counted.head if counted.tied else 0
    whole = counted.input + counted.output - twice + sum(layer.rest + layer.experts for layer in counted.layers)
    of_experts = dict(stored.components).get("experts", experts * stored.total_bytes // whole)
    rest = Fraction(stored.total_bytes - of_experts, whole - experts)
    sparse = Fraction(of_experts, experts) if experts else Fraction(1)
    return Weights(
        input=int(counted.input * rest),
        output=int(counted.output * rest),
        head=int(counted.head * rest),
        layers=tuple(layer.scaled(rest, sparse) for layer in counted.layers),
        tied=counted.tied,
    )


def _counted(model: ModelSpec, weight_format: StorageFormat) -> Weights:
    outer = list(outer_tensors(model))
    first = [tensor for tensor in outer if tensor.role in LOOKED_UP]
    last = [tensor for tensor in outer if tensor.role not in LOOKED_UP]
    embedding = next((tensor for tensor in first if tensor.role == EMBEDDING), None)
    shared = tensor_bytes(embedding, weight_format) if model.tied and embedding is not None else 0
    head = shared or max((tensor_bytes(tensor, weight_format) for tensor in last), default=0)
    return Weights(
        input=sum(table_bytes(tensor, weight_format) for tensor in first),
        output=_sum(last, weight_format) + shared,
        head=head,
        layers=tuple(_layer(layer, weight_format) for layer in model.layers),
        tied=model.tied,
    )


@lru_cache(maxsize=256)
def _layer(layer: LayerSpec, weight_format: StorageFormat) -> LayerWeights:
    tensors = list(layer.tensors())
    experts = [tensor for tensor in tensors if tensor.expert]
    return LayerWeights(
        rest=_sum((tensor for tensor in tensors if not tensor.expert), weight_format),
        experts=_sum(experts, weight_format),
        largest=max((tensor_bytes(tensor, weight_format) for tensor in tensors), default=0),
    )


def _sum(tensors: Iterable[Tensor], weight_format: StorageFormat) -> int:
    return sum(tensor_bytes(tensor, weight_format) for tensor in tensors)


def tensor_bytes(tensor: Tensor, weight_format: StorageFormat) -> int:
    """Bytes of a tensor in a GGUF file of one format."""
    plain = tensor.role not in (LINEAR, EMBEDDING)
    return ceil(tensor.params * (PLAIN_BYTES if plain else weight_format.bytes_per_element))


def table_bytes(tensor: Tensor, weight_format: StorageFormat) -> int:
    """Bytes of a table outside the layers: those for every layer are stored like the embedding."""
    cached = tensor._replace(role=EMBEDDING) if tensor.role == OTHER else tensor
    return tensor_bytes(cached, weight_format)
