"""Errors of calc. All derive from one base and are one sentence that a user can act on.

CalcError
├── SpecError              a field of a model, device or workload is impossible
├── QuantityError          a size or count could not be read ("80", "8 kilo")
└── SourceError            a file or catalog name could not be used
    ├── UnknownName            not in the catalog (near names are offered)
    ├── UnsupportedArchitecture  the config's model_type is not known: never guessed
    └── UnknownStorage           the model is known, but not the bytes of its quantized weights
        └── CacheUnknown           the same of a file whose weights are known: they stand in the sentence

"Does not fit" is not here: it is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from calc.plain import one_line

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec


class CalcError(ValueError):
    """Base of all errors of calc. ``str(error)`` is one sentence for the user, on one line and safe to show."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SpecError(CalcError):
    """A field has an impossible value. ``field`` names it (``n_kv_heads``) so that a form can mark it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class QuantityError(CalcError):
    """Text that should be a size or a count but is not."""


class SourceError(CalcError):
    """A file could not be read as a model."""


class UnknownName(SourceError):
    """A name that is neither in the catalog nor a path."""


class UnsupportedArchitecture(SourceError):
    """A config whose model_type kvscope does not know."""


class CacheUnknown(UnsupportedArchitecture):
    """A file whose tensors determine its weights, but not what its layers cache per token.

    `components`: the bytes of its weights, by the names of `Parameters.components`.
    """

    def __init__(self, message: str, *, name: str, parameters: int, components: Mapping[str, int]) -> None:
        super().__init__(message)
        self.name = one_line(name)
        self.parameters = parameters
        self.components = dict(components)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.components.values())


class UnknownStorage(SourceError):
    """A config whose quantization kvscope cannot count. ``model`` is the model without its stored formats."""

    def __init__(self, message: str, model: ModelSpec) -> None:
        super().__init__(message)
        self.model = model
