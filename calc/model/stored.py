"""Weights as stored in a file or quantized checkpoint: exact bytes, and how they are divided among ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from calc.errors import SpecError
from calc.units import MAX_BYTES

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec
    from calc.model.storage import StorageFormat

STORED_NOTE = "weights as "
"""The start of a model's note on its stored weights; who stores them follows."""
OF_FILE, OF_INDEX = "file", "index"
"""Names, or their beginnings, of stored weights that come from files or their index."""
EDITED_NOTE = "edited: its checkpoint's bytes no longer apply; weights are in the given format, or 16 bits"


class LayerBytes(NamedTuple):
    """Bytes of one layer, and how many of them are its routed experts'."""

    total: int
    experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """Bytes of all weights, including scales and zero points; `name` says how they are stored.

    Tensor parallelism divides `split_bytes`; `kv_bytes` follow the KV heads; every rank holds `whole_bytes`.
    `components` are the bytes by the names of `Parameters.components`, empty if unknown. If a file's tensors were read,
    `layers` are the bytes per layer, bottom first, for a server that puts layers or experts on several devices.
    """

    name: str
    split_bytes: int
    kv_bytes: int
    whole_bytes: int
    components: tuple[tuple[str, int], ...] = ()
    layers: tuple[LayerBytes, ...] = ()

    def __post_init__(self) -> None:
        for field in ("split_bytes", "kv_bytes", "whole_bytes"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_BYTES:
                raise SpecError("stored", f"{field} of stored weights must be a number of bytes, not {value!r}")

    @property
    def total_bytes(self) -> int:
        """All bytes."""
        return self.split_bytes + self.kv_bytes + self.whole_bytes

    @property
    def of_files(self) -> bool:
        """Whether they come from files, including encoders; otherwise they come from a config and describe the text
        model."""
        return self.name == OF_INDEX or self.name.startswith(OF_FILE)


def named_formats(formats: Mapping[str, int]) -> str:
    """The name of a file's weights: the formats that take most of its bytes.

    >>> named_formats({"F32": 5, "Q4_K": 90, "Q6_K": 20, "F16": 1})
    'file (Q4_K, Q6_K, F32 …)'
    """
    order = sorted(formats, key=lambda name: -formats[name])
    return f"{OF_FILE} ({', '.join(order[:3])}{' …' if len(order) > 3 else ''})"


def is_as_stored(model: ModelSpec, weight_format: StorageFormat) -> bool:
    """Whether `weight_format` is the checkpoint's own (`stored_format`), not just one of the same name (mxfp4)."""
    stored = model.stored
    own = None if stored is None else (stored.name, stored.total_bytes)
    return own == (weight_format.name, weight_format.block_bytes)


def without_stored(model: ModelSpec, note: str) -> ModelSpec:
    """`model` without anything known about its checkpoint; `note` replaces the one on its stored weights."""
    if model.stored is None:
        return model
    kept = (each for each in model.notes if not each.startswith(STORED_NOTE))
    return replace(model, stored=None, notes=(*kept, note))


def stored_document(stored: StoredWeights) -> dict[str, Any]:
    """As a plain mapping (TOML)."""
    document: dict[str, Any] = {name: getattr(stored, name) for name in _ALWAYS}
    if stored.components:
        document["components"] = dict(stored.components)
    if stored.layers:
        document["layers"] = [list(layer) for layer in stored.layers]
    return document


_ALWAYS = ("name", "split_bytes", "kv_bytes", "whole_bytes")


def stored_from_document(document: Any) -> StoredWeights:
    """The inverse of `stored_document`. Raises SpecError."""
    try:
        values = dict(document)
        components, layers = values.pop("components", {}), values.pop("layers", [])
        if set(values) != set(_ALWAYS) or not isinstance(values["name"], str):
            raise ValueError
        return StoredWeights(
            **values,
            components=tuple((str(name), _bytes(n)) for name, n in components.items()),
            layers=tuple(LayerBytes(_bytes(total), _bytes(experts)) for total, experts in layers),
        )
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("stored", f"stored must be a table of {', '.join(sorted(_ALWAYS))}") from None


def _bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_BYTES:
        raise ValueError(value)
    return value
