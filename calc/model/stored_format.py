"""The storage format that is one model's weights as a whole: its bytes per element times all parameters are theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calc.model.count import parameters
from calc.model.storage import StorageFormat

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec
    from calc.model.stored import StoredWeights


def format_of(model: ModelSpec, stored: StoredWeights, note: str = "") -> StorageFormat:
    """`stored`, the weights of `model`, as a format; `note` is what a reader should know of it."""
    return StorageFormat(stored.name, parameters(model).total, stored.total_bytes, stored=stored, note=note)


def stored_format(model: ModelSpec) -> StorageFormat | None:
    """The format that the checkpoint of `model` is stored in; None where nothing is stored."""
    return None if model.stored is None else format_of(model, model.stored)
