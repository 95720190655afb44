"""Weights as a file or a quantized checkpoint holds them: exact bytes, and how they fall on tensor-parallel ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

from calc.errors import SpecError
from calc.model.spec import MAX_BYTES

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec
    from calc.model.storage import StorageFormat

STORED_NOTE = "weights as "
"""How a model's note on its stored weights begins: who stores them follows."""
EDITED_NOTE = "edited: the bytes of its checkpoint no longer apply"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeights:
    """Bytes of all weights, scales and zero points included; `name` says how they are stored.

    `split_bytes` are divided by tensor parallelism, `kv_bytes` follow the KV heads, `whole_bytes` every rank holds.
    """

    name: str
    split_bytes: int
    kv_bytes: int
    whole_bytes: int

    def __post_init__(self) -> None:
        for field in ("split_bytes", "kv_bytes", "whole_bytes"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_BYTES:
                raise SpecError("stored", f"{field} of stored weights must be a number of bytes, not {value!r}")

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.split_bytes + self.kv_bytes + self.whole_bytes

    def rank_bytes(self, *, tp: int, n_kv_heads: int) -> int:
        """Bytes of a rank of `tp` that keeps whole KV heads (at least one)."""
        kept = Fraction(max(1, n_kv_heads // tp), n_kv_heads)
        return ceil(Fraction(self.split_bytes, tp) + self.kv_bytes * kept + self.whole_bytes)


def stored_format(model: ModelSpec) -> StorageFormat | None:
    """The format whose bytes per element are the stored bytes over all parameters; None where nothing is stored.

    Parameters times its bytes per element are exactly the stored bytes.
    """
    from calc.model.count import parameters
    from calc.model.storage import StorageFormat

    if model.stored is None:
        return None
    return StorageFormat(model.stored.name, parameters(model).total, model.stored.total_bytes)


def is_as_stored(model: ModelSpec, weight_format: StorageFormat) -> bool:
    """Whether `weight_format` is the checkpoint's own (`stored_format`), not merely one of the same name: mxfp4."""
    stored = model.stored
    own = None if stored is None else (stored.name, stored.total_bytes)
    return own == (weight_format.name, weight_format.block_bytes)


def without_stored(model: ModelSpec, note: str) -> ModelSpec:
    """`model` with nothing known of its checkpoint; `note` takes the place of the one on its stored weights."""
    if model.stored is None:
        return model
    kept = (each for each in model.notes if not each.startswith(STORED_NOTE))
    return replace(model, stored=None, notes=(*kept, note))


def stored_document(stored: StoredWeights) -> dict[str, Any]:
    """As a plain mapping (TOML)."""
    return {
        "name": stored.name,
        "split_bytes": stored.split_bytes,
        "kv_bytes": stored.kv_bytes,
        "whole_bytes": stored.whole_bytes,
    }


def stored_from_document(document: Any) -> StoredWeights:
    """The inverse of `stored_document`. Raises SpecError."""
    fields = {"name", "split_bytes", "kv_bytes", "whole_bytes"}
    if not isinstance(document, dict) or set(document) != fields or not isinstance(document["name"], str):
        raise SpecError("stored", f"stored must be a table of {', '.join(sorted(fields))}")
    return StoredWeights(**document)
