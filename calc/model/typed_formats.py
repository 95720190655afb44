"""Formats as people type them: bytes per element, a format by name, a mix, K and V apart, or ``auto``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calc.model.storage import (
    StorageFormat,
    bytes_format,
    format_key,
    known_format,
    parse_format,
    starts_as_number,
)

if TYPE_CHECKING:
    from calc.model.named import NamedFormat

AUTO = "auto"
"""As stored in the file; 16 bits if unknown."""


def parse_weights(text: str) -> StorageFormat | NamedFormat | None:
    """How weights are stored: bytes per element, a fixed-size format, or a mix such as Q4_K_M; None for ``auto``.

    The size of a mix depends on the model: see `calc.model.named.weights_as`. Raises QuantityError.
    """
    stripped = text.strip()
    if format_key(stripped) == AUTO:
        return None
    if starts_as_number(stripped):
        return bytes_format(stripped)
    if (found := known_format(stripped)) is not None:
        return found
    from calc.model.named import named_format

    return named_format(stripped)


def parse_cache(text: str) -> StorageFormat | None:
    """How a cache is stored: one format, or two for K and V (``q8_0/q4_0``); None for ``auto``.

    The size of a pair depends on the model: see `calc.model.cache_pair.cache_as`. Raises QuantityError.
    """
    stripped = text.strip()
    if format_key(stripped) == AUTO:
        return None
    if "/" not in stripped or starts_as_number(stripped):
        return parse_format(stripped)
    from calc.model.cache_pair import pair_format

    return pair_format(stripped)
