"""What a GGUF header says: metadata under its architecture's prefix, and tensors by layer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from calc.errors import SourceError
from calc.model.spec import MAX_LAYERS
from calc.sources.gguf.header import Header, Length, Tensor
from calc.units import MAX_COUNT

BLOCK = re.compile(r"blk\.(\d{1,6})\.(.+)")


class Undetermined(Exception):
    """Why a model's layers cannot be known from its header: half a sentence."""


@dataclass(frozen=True, slots=True)
class Block:
    """The tensors of one layer, by their names below ``blk.N.``."""

    index: int
    tensors: Mapping[str, Tensor] = field(hash=False)

    def __contains__(self, stem: str) -> bool:
        return f"{stem}.weight" in self.tensors or stem in self.tensors

    def has(self, *stems: str) -> bool:
        """Whether any of them is here."""
        return any(stem in self for stem in stems)

    def shape(self, stem: str) -> tuple[int, ...]:
        """Its sides, innermost first. Raises Undetermined where it is not here."""
        tensor = self.tensors.get(f"{stem}.weight") or self.tensors.get(stem)
        if tensor is None:
            raise Undetermined(f"blk.{self.index}.{stem}.weight missing")
        return tensor.shape

    def _size(self, stem: str, axis: int) -> int:
        shape = self.shape(stem)
        size = shape[axis] if axis < len(shape) else 1
        if not 0 < size <= MAX_COUNT:
            raise Undetermined(f"blk.{self.index}.{stem}.weight has a side of {size:,}")
        return size

    def columns(self, stem: str) -> int:
        """What a matrix reads."""
        return self._size(stem, 0)

    def rows(self, stem: str) -> int:
        """What a matrix gives."""
        return self._size(stem, 1)

    def copies(self, stem: str) -> int:
        """How many matrices are in it."""
        return self._size(stem, 2)

    def biased(self, *stems: str) -> bool:
        """Whether each of them that is here has a bias, and one is."""
        here = [stem for stem in stems if stem in self]
        return bool(here) and all(f"{stem}.bias" in self.tensors for stem in here)


SCALE = re.compile(r"(.+)\.(scale|input_scale)")
SCALED = ("NVFP4", "TQ1_0", "TQ2_0")
"""Types whose matrices have a scale in a tensor of its own."""
INTEGERS = ("I8", "I16", "I32", "I64")


@dataclass(frozen=True, slots=True)
class Facts:
    """A header with its architecture. Raises Undetermined where something is missing or contradicts itself."""

    header: Header
    architecture: str
    blocks: tuple[Block, ...]
    outer: Mapping[str, Tensor] = field(hash=False)
    scaled: frozenset[str]

    def get(self, key: str) -> Any:
        """The value of ``architecture.key``; None where it is not there."""
        value = self.header.metadata.get(f"{self.architecture}.{key}")
        return None if isinstance(value, Length) else value

    def maybe(self, key: str) -> int | None:
        """A whole number, 0 included; None where it is not there."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_COUNT:
            raise Undetermined(f"{self.architecture}.{key} must be a whole number, not {str(value)[:40]}")
        return value

    def count(self, key: str) -> int:
        """A whole number from 1."""
        if not (value := self.maybe(key)):
            raise self.missing(key)
        return value

    def at(self, key: str, layer: int) -> int | None:
        """The number (or flag) of a layer: of a list its own, else the one of all."""
        value = self.get(key)
        if not isinstance(value, list):
            return self.maybe(key)
        if layer >= len(value):
            raise Undetermined(f"{self.architecture}.{key} has {len(value):,} entries: none for layer {layer:,}")
        own = value[layer]
        if not isinstance(own, int) or not 0 <= own <= MAX_COUNT:
            raise Undetermined(f"{self.architecture}.{key} has {str(own)[:40]}, which is no whole number")
        return int(own)

    def params(self, tensor: Tensor) -> int:
        """Its parameters: none in tables of rotary positions, of integers, and in scales of quantized matrices."""
        if tensor.type_name in INTEGERS or "rope_" in tensor.name or "rot_embd" in tensor.name:
            return 0
        found = SCALE.fullmatch(tensor.name)
        return 0 if found is not None and found[1] in self.scaled else tensor.elements

    def missing(self, key: str) -> Undetermined:
        """The refusal that names a key."""
        return Undetermined(f"{self.architecture}.{key} missing")


def facts_of(header: Header, source: str) -> Facts:
    """The header's architecture and its tensors by layer. Raises SourceError for a file that is no model."""
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise SourceError(f"{source}: general.architecture missing: not a model's GGUF file")
    layers: dict[int, dict[str, Tensor]] = {}
    outer: dict[str, Tensor] = {}
    for tensor in header.tensors:
        if (found := BLOCK.fullmatch(tensor.name)) is None:
            outer[tensor.name] = tensor
        else:
            layers.setdefault(int(found[1]), {})[found[2]] = tensor
    blocks = tuple(Block(index, layers[index]) for index in sorted(layers))
    scaled = frozenset(t.name.removesuffix(".weight") for t in header.tensors if t.type_name in SCALED)
    return Facts(header, architecture, blocks, outer, scaled)


def trunk(facts: Facts) -> tuple[Block, ...]:
    """The layers of the model itself, without those that predict further tokens. Raises Undetermined."""
    blocks = tuple(block for block in facts.blocks if not is_predictor(block))
    stated, predictors = facts.maybe("block_count"), facts.maybe("nextn_predict_layers") or 0
    check_number(len(blocks))
    if not blocks or [block.index for block in blocks] != list(range(len(blocks))):
        raise Undetermined("its layers are not numbered from blk.0 on without a gap")
    if stated is not None and not stated - predictors <= len(blocks) <= stated:
        raise Undetermined(f"{facts.architecture}.block_count says {stated:,} layers, the file has {len(blocks):,}")
    return blocks


def check_number(n_layers: int) -> None:
    """Raise Undetermined for more layers than a model may have."""
    if n_layers > MAX_LAYERS:
        raise Undetermined(f"{n_layers:,} layers: at most {MAX_LAYERS:,}")


def is_predictor(block: Block) -> bool:
    """Whether a layer predicts further tokens (MTP): llama.cpp leaves it out unless it drafts with it."""
    return any(name.startswith("nextn.") for name in block.tensors)


def predictors(facts: Facts) -> Iterator[Block]:
    """Those layers."""
    return (block for block in facts.blocks if is_predictor(block))
