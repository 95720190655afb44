"""Different formats for K and V: the mean bytes per element of a model's cache.

The mean is exact if K and V have the same proportion in every layer with a cache: then any number of elements times the
mean gives the bytes of both. A latent serves as K and V and has the format of K.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from calc.errors import QuantityError, SpecError
from calc.explain.terms import Term, derive
from calc.model.parts import mixers_of
from calc.model.storage import StorageFormat, parse_format

if TYPE_CHECKING:
    from calc.model.spec import ModelSpec


def pair_format(text: str) -> StorageFormat:
    """The formats of K and V in ``q8_0/q4_0``. Raises QuantityError."""
    names = text.split("/")
    if len(names) != 2 or not all(name.strip() for name in names):
        raise QuantityError(f"a cache format is one name, or two for K and V such as q8_0/q4_0, not {text[:60]!r}")
    key, value = map(parse_format, names)
    if key == value:
        return key
    return _of(key, value, key_elements=1, value_elements=1)


def _of(key: StorageFormat, value: StorageFormat, *, key_elements: int, value_elements: int) -> StorageFormat:
    mean = Fraction(
        mean_element_bytes(
            key_elements=key_elements,
            value_elements=value_elements,
            key_element_bytes=Fraction(key.bytes_per_element),
            value_element_bytes=Fraction(value.bytes_per_element),
        )
    )
    return StorageFormat(f"{key.name}/{value.name}", mean.denominator, mean.numerator, pair=(key, value))


def mean_element_bytes(
    *, key_elements: Any, value_elements: Any, key_element_bytes: Any, value_element_bytes: Any
) -> Any:
    """Mean bytes per element of K and V.

    >>> mean_element_bytes(key_elements=1024, value_elements=1024, key_element_bytes=2, value_element_bytes=1)
    1.5
    """
    total = key_elements * key_element_bytes + value_elements * value_element_bytes
    return total / (key_elements + value_elements)


def cache_as(chosen: StorageFormat, model: ModelSpec) -> StorageFormat:
    """`chosen` for the cache of `model`; for a pair, the mean over K and V. Raises SpecError."""
    if chosen.pair is None:
        return chosen
    key, value = chosen.pair
    keys, values = _elements(model)
    return _of(key, value, key_elements=keys, value_elements=values)


def mean_term(model: ModelSpec, chosen: StorageFormat) -> Term:
    """Bytes per cache element of a pair, with the derivation."""
    key, value = chosen.pair or (chosen, chosen)
    keys, values = _elements(model)
    numbers: dict[str, Any] = {"key_elements": keys, "value_elements": values}
    numbers |= {"key_element_bytes": key.bytes_per_element, "value_element_bytes": value.bytes_per_element}
    return derive("Bytes per cache element", mean_element_bytes, unit="B", **numbers)


def _elements(model: ModelSpec) -> tuple[int, int]:
    """Elements of K and of V per token, all layers. Raises SpecError if their proportion differs by layer."""
    found: dict[Fraction, tuple[int, int]] = {}
    mixers: list[tuple[Any, int]] = [(mixer, n) for mixer, n in mixers_of(model.layers).items() if mixer.cache_elements]
    for mixer, n in mixers:
        values = 0 if mixer.kind == "latent" else n * mixer.n_kv_heads * mixer.value_dim
        keys = n * mixer.cache_elements - values
        before = found.get(Fraction(values, keys), (0, 0))
        found[Fraction(values, keys)] = (before[0] + keys, before[1] + values)
    if len(found) != 1:
        raise SpecError(
            "kv_format",
            f"the sizes of K and V of {model.name} differ from layer to layer: give one format for both",
        )
    return next(iter(found.values()))
