"""Typed access to a config's keys: every error names the file and the key, every assumption becomes a note."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calc.errors import SourceError
from calc.files import read_bounded
from calc.units import MAX_COUNT

MAX_CONFIG_BYTES = 4 * 2**20
"""A real config.json has a few kB; anything larger is another kind of file."""
TEXT_PARTS = ("text_config", "llm_config", "language_config", "language_model_config", "thinker_config")
"""Keys of multimodal configs that contain the text model's fields."""
MAX_NESTED = 4
"""In published configs, a text model is at most two keys deep."""
OF_ALL_PARTS = ("tie_word_embeddings", "quantization_config", "quantization", "dtype", "torch_dtype", "model_type")
"""Keys of a multimodal config that apply to all its parts."""

N_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "n_embed", "model_dim")
HEAD_DIM = ("head_dim", "attention_head_dim", "kv_channels")
N_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
N_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads", "num_query_groups")
INTERMEDIATE_SIZE = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_dim")
VOCAB_SIZE = ("vocab_size", "padded_vocab_size")
MAX_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length")


class Reader:
    """Keys of one config (its text part). `notes` collects assumptions, `read` the keys that were read.

    `defaults` holds the class's values for keys that the config lacks; reading one adds a note. `of_class` holds all
    defaults of the class, including those that the config states.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        source: str,
        defaults: Mapping[str, Any] | None = None,
        of_class: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = {**config, **(defaults or {})}
        self.stated = frozenset(config)
        self.unsaid = set(defaults or ())
        self.of_class = of_class or {}
        self.source = source
        self.model_type = str(config.get("model_type", ""))
        self.notes: list[str] = []
        self.read: set[str] = set()
        self.sections: dict[str, Reader] = {}

    def fail(self, what: str) -> SourceError:
        """The error to raise: one sentence that starts with the path."""
        return SourceError(f"{self.source}: {what}")

    def get(self, key: str) -> Any:
        """The unchanged value; None if it is absent or null."""
        return self._value(key)

    def _value(self, key: str, default: Any = None) -> Any:
        """The value, with a note if it comes from the class and not the config. Off or none needs no note."""
        self.read.add(key)
        value = self.config.get(key, default)
        if key in self.unsaid:
            self.unsaid.discard(key)
            if value is not False:
                self.assume(key, _assumed(value))
        return value

    def ignore(self, *keys: str) -> None:
        """Mark keys that have no effect here because of other keys, so that they need not be read."""
        self.read.update(keys)

    def put(self, key: str, value: Any, *, note: object = None) -> None:
        """Set a value that the class uses whatever the config says; `note` says what the class assumes."""
        self.read.add(key)
        self.unsaid.discard(key)
        self.config[key] = value
        if note is not None:
            self.assume(key, note)

    def drop(self, *keys: str) -> None:
        """Forget keys that the class does not read."""
        self.ignore(*keys)
        for key in keys:
            self.config.pop(key, None)

    def has(self, *keys: str) -> bool:
        """Whether any of the keys has a value that is not null."""
        return any(self.config.get(key) is not None for key in keys)

    def count(self, *keys: str, minimum: int = 1, default: int | None = None) -> int:
        """The whole number under the first of `keys` that has one. Raises SourceError if none has."""
        value = self.maybe(*keys, minimum=minimum)
        if value is not None:
            return value
        if default is None:
            raise self.fail(f"{keys[0]} missing")
        self.assume(keys[0], default)
        return default

    def require(self, *names: tuple[str, ...]) -> None:
        """Raise a SourceError that lists every key (by its usual name) that is absent or null under all its names."""
        missing = [keys[0] for keys in names if not self.has(*keys)]
        if missing:
            raise self.fail(f"{' and '.join(missing) if len(missing) < 3 else ', '.join(missing)} missing")

    def maybe(self, *keys: str, minimum: int = 1) -> int | None:
        """As `count`, but None if all are absent or null."""
        self.read.update(keys)
        for key in keys:
            value = self._value(key)
            if value is not None:
                return self.checked(key, value, minimum=minimum)
        return None

    def checked(self, key: str, value: object, *, minimum: int = 1) -> int:
        """`value` of `key` as a count; a list of one value per layer, all of them the same, counts as that value."""
        if isinstance(value, list) and len(value) > 1 and all(type(v) is int and v == value[0] for v in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(f"{key} must be a whole number, not {shown(value)}")
        if not minimum <= value <= MAX_COUNT:
            raise self.fail(f"{key} must lie between {minimum} and {MAX_COUNT:,}, not {shown(value)}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false; null is false, and `default` is used if the key is absent."""
        value = self._value(key, default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.fail(f"{key} must be true or false, not {shown(value)}")
        return value

    def text(self, key: str) -> str | None:
        """A text, or None if it is absent."""
        value = self._value(key)
        if value is None or isinstance(value, str):
            return value
        raise self.fail(f"{key} must be a name, not {shown(value)}")

    def per_layer(self, key: str, n_layers: int) -> list[Any] | None:
        """A list of one value per layer, or None if the key is absent."""
        value = self._value(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < n_layers:
            raise self.fail(f"{key} must be a list of {n_layers} values, one per layer, not {_length(value)}")
        return value[:n_layers]

    def indices(self, key: str) -> frozenset[int]:
        """A list of layer numbers; empty if the key is absent."""
        value = self._value(key)
        if value is None:
            return frozenset()
        if isinstance(value, int) and not isinstance(value, bool):
            return frozenset((value,))
        if not isinstance(value, list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in value):
            raise self.fail(f"{key} must be a list of layer numbers, not {_length(value)}")
        return frozenset(value)

    def section(self, key: str) -> Reader | None:
        """A nested object as a reader that shares these notes."""
        value = self._value(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(f"{key} must be an object, not {shown(value)}")
        if key not in self.sections:
            self.sections[key] = Reader(value, f"{self.source}: {key}")
            self.sections[key].notes = self.notes
        return self.sections[key]

    def assume(self, key: str, value: object) -> None:
        """Note that the config does not say `key`."""
        self.notes.append(f"{key} is not in the config: {value}, as the {self.model_type} class assumes")


def _assumed(value: object) -> str:
    """A class's value for a note; for a list, its repeating start."""
    if isinstance(value, list):
        return f"{', '.join(map(str, value[:6]))}{', and so on' if len(value) > 6 else ''}"
    return json.dumps(value)


def _length(value: object) -> str:
    return f"a list of {len(value):,}" if isinstance(value, list) else shown(value)


def shown(value: object) -> str:
    """A JSON value as in the file, shortened to fit a sentence."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def text_part(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """The fields of the text model and, in a multimodal config, the key that contains them."""
    found, at = config, None
    for _ in range(MAX_NESTED):
        key = next((key for key in TEXT_PARTS if isinstance(found.get(key), dict) and found[key]), None)
        if key is None:
            break
        inner = found[key]
        own = {*inner, *(("model_type",) if "architectures" in inner else ())}  # its class says its type
        outer = {name: found[name] for name in OF_ALL_PARTS if name in found and name not in own}
        found, at = {**outer, **inner}, key
    return found, at


def read_object(file: Path, *, limit: int = MAX_CONFIG_BYTES) -> Mapping[str, Any]:
    """The JSON object in `file`, of at most `limit` bytes. Raises SourceError."""
    data = read_bounded(file, limit=limit)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise SourceError(f"{file}: not a text file, so not a config.json") from None
    except json.JSONDecodeError as error:
        raise SourceError(f"{file}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError):
        raise SourceError(f"{file}: not a config.json: its numbers are too long or its lists too deep") from None
    if not isinstance(value, dict):
        raise SourceError(f"{file}: a config.json holds an object {{...}}, not {shown(value)}")
    return value
