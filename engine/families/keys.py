"""Typed access to the JSON object of a config file; every error names the file and the key."""

import contextlib
from collections.abc import Mapping
from typing import Any

from engine.errors import ConfigError

_LIMIT = 1 << 62  # far above any size; keeps hostile numbers out of the arithmetic
_SHOWN = 80


def _shown(value: object) -> str:
    """A value as text for a message, shortened."""
    if isinstance(value, int) and abs(value) >= _LIMIT:
        return "beyond any size"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _number(value: object) -> object:
    """Accept the spellings of some writers: "10000" and 4.0 mean 10000 and 4."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    whole = isinstance(value, float) and value.is_integer() and abs(value) < _LIMIT
    return int(value) if whole and isinstance(value, float) else value


class Keys:
    """One JSON object. An absent key and a null key mean the same, except in `with_defaults`."""

    def __init__(self, document: Mapping[str, Any], *, where: str = "config.json") -> None:
        self.document = document
        self.where = where

    def with_defaults(self, defaults: Mapping[str, Any]) -> "Keys":
        """The same with defaults for absent keys (a null stays: it switches a feature off)."""
        return Keys({**defaults, **self.document}, where=self.where)

    def get(self, key: str) -> Any:
        """The value, or None when it is absent or null."""
        return self.document.get(key)

    def count(self, key: str, default: int | None = None) -> int:
        """An integer of at least 1."""
        value = _number(self._or_default(key, default))
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LIMIT:
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}; expected a whole number of at least 1")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """An integer of at least 0."""
        value = _number(self._or_default(key, default))
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LIMIT:
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}; expected a whole number of at least 0")
        return value

    def optional_count(self, key: str) -> int | None:
        """`count`, or None when absent or null."""
        return None if self.get(key) is None else self.count(key)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = _number(self._or_default(key, default))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < _LIMIT:
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}; expected a number above 0")
        return float(value)

    def optional_positive(self, key: str) -> float | None:
        """`positive`, or None when absent or null."""
        return None if self.get(key) is None else self.positive(key)

    def positives(self, key: str, *, n: int) -> tuple[float, ...]:
        """A list of ``n`` numbers above 0."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != n:
            shown = f"{len(value)} values" if isinstance(value, list) else _shown(value)
            raise ConfigError(f"{self.where}: {key} is {shown}; expected a list of {n} numbers")
        return tuple(Keys({key: item}, where=self.where).positive(key) for item in value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._or_default(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}; expected true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._or_default(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}; expected a string")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; none when absent. Some writers say -1 for none."""
        value = self.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= -1 for i in ids):
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}; expected a token id or a list of token ids")
        return tuple(i for i in ids if i >= 0)

    def items(self, key: str, *, n: int) -> list[Any] | None:
        """A list with one item per layer, cut to ``n`` layers; None when absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < n:
            raise ConfigError(f"{self.where}: {key} must be a list with one item for each of the {n} layers")
        return value[:n]

    def section(self, key: str) -> "Keys | None":
        """The object under a key, or None."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ConfigError(f"{self.where}: {key} is {_shown(value)}; expected an object")
        return Keys(value, where=f"{self.where}: {key}")

    def _or_default(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is None and default is None:
            raise ConfigError(f"{self.where}: {key} is missing")
        return default if value is None else value
