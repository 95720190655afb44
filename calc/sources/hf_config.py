"""A Hugging Face ``config.json`` read as a ModelSpec: Llama, Mistral, Qwen2, Qwen3 (SmolLM2 is a Llama).

Where the config is silent, what the transformers class of that model_type assumes is used, and a note says so.
Class defaults: transformers 5.23, ``models/{llama,mistral,qwen2,qwen3}/configuration_*.py``; which projections
have a bias: ``modeling_*.py`` beside them. A model_type not listed here is refused, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calc.errors import CalcError, SourceError, UnsupportedArchitecture
from calc.specs import MAX_COUNT, ModelSpec

MAX_CONFIG_BYTES = 4 * 2**20
"""A real config.json has a few kB; anything larger is some other file."""

REQUIRED = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size")

BY_HAND = (
    "give the numbers by hand with --n-layers, --n-heads, --n-kv-heads, --head-dim, --hidden-size, "
    "--intermediate-size and --vocab-size"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the transformers class of a model_type does where the config is silent.

    `n_kv_heads` and `head_dim` are class defaults; None means "as many as query heads" and "hidden / heads".
    `window` is which layers may slide: "none", "all", or "upper" (from max_window_layers, or by layer_types).
    """

    n_kv_heads: int | None = None
    head_dim: int | None = None
    window: str = "none"
    qkv_bias: bool = False
    reads_attention_bias: bool = False
    reads_mlp_bias: bool = False
    qk_norm: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family(reads_attention_bias=True, reads_mlp_bias=True),
    "mistral": Family(n_kv_heads=8, window="all"),
    "qwen2": Family(n_kv_heads=32, window="upper", qkv_bias=True),
    "qwen3": Family(n_kv_heads=32, head_dim=128, window="upper", reads_attention_bias=True, qk_norm=True),
}


def read_hf_config(path: str | Path) -> ModelSpec:
    """The model that a config.json describes. Raises SourceError, one sentence that starts with the path."""
    file = Path(path)
    folder = file.parent.resolve().name if file.name == "config.json" else ""
    return spec_from_config(_read_object(file), name=folder or file.stem, source=str(path))


def spec_from_config(config: Mapping[str, object], *, name: str, source: str) -> ModelSpec:
    """The model that a parsed config.json describes; `source` (a path) starts every message.

    Raises UnsupportedArchitecture for an unknown model_type, SourceError for anything else that is wrong.
    """
    family = FAMILIES[_model_type(config, source=source)]
    reader = _Reader(config, source)
    reader.require(REQUIRED)
    n_layers, n_heads = reader.count("num_hidden_layers"), reader.count("num_attention_heads")
    n_sliding, window = _sliding(reader, family, n_layers=n_layers)
    attention_bias = family.reads_attention_bias and reader.flag("attention_bias")
    fields = {
        "n_kv_heads": _n_kv_heads(reader, family, n_heads=n_heads),
        "head_dim": _head_dim(reader, family, n_heads=n_heads),
        "hidden_size": reader.count("hidden_size"),
        "intermediate_size": reader.count("intermediate_size"),
        "vocab_size": reader.count("vocab_size"),
        "max_context": reader.count_or_none("max_position_embeddings"),
        "tied": _tied(reader),
        "qkv_bias": family.qkv_bias or attention_bias,
        "o_bias": attention_bias,
        "mlp_bias": family.reads_mlp_bias and reader.flag("mlp_bias"),
    }
    _note_quantization(reader)
    try:
        return ModelSpec(
            name=name,
            n_layers=n_layers,
            n_heads=n_heads,
            qk_norm=family.qk_norm,
            n_sliding_layers=n_sliding,
            window=window,
            source=source,
            notes=tuple(reader.notes),
            **fields,  # type: ignore[arg-type]
        )
    except CalcError as error:
        raise SourceError(f"{source}: {error}") from None


class _Reader:
    """Typed access to a config's keys; collects the notes about what was assumed."""

    def __init__(self, config: Mapping[str, object], source: str) -> None:
        self.config = config
        self.source = source
        self.model_type = config.get("model_type")
        self.notes: list[str] = []

    def fail(self, what: str) -> SourceError:
        return SourceError(f"{self.source}: {what}")

    def has(self, key: str) -> bool:
        return key in self.config

    def require(self, keys: tuple[str, ...]) -> None:
        missing = [key for key in keys if self.config.get(key) is None]
        if missing:
            raise self.fail(f"{' and '.join(missing) if len(missing) < 3 else ', '.join(missing)} missing")

    def count(self, key: str, *, minimum: int = 1) -> int:
        value = self.config[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.fail(f"{key} must be a whole number, not {shown(value)}")
        if not minimum <= value <= MAX_COUNT:
            raise self.fail(f"{key} must lie between {minimum} and {MAX_COUNT:,}, not {shown(value)}")
        return value

    def count_or_none(self, key: str) -> int | None:
        return None if self.config.get(key) is None else self.count(key)

    def flag(self, key: str) -> bool:
        """True or false; false, as in all these classes, where the key is absent."""
        value = self.config.get(key, False)
        if not isinstance(value, bool):
            raise self.fail(f"{key} must be true or false, not {shown(value)}")
        return value

    def assume(self, key: str, value: object) -> None:
        self.notes.append(f"{key} is not in the config: {value}, as the {self.model_type} class assumes")


def shown(value: object) -> str:
    """A JSON value as it stands in the file, cut to fit a sentence."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _model_type(config: Mapping[str, object], *, source: str) -> str:
    known = ", ".join(FAMILIES)
    model_type = config.get("model_type")
    if model_type is None:
        raise SourceError(f"{source}: model_type missing; kvscope knows {known}; or {BY_HAND}")
    if not isinstance(model_type, str):
        raise SourceError(f"{source}: model_type must be a name such as llama, not {shown(model_type)}")
    if model_type not in FAMILIES:
        raise UnsupportedArchitecture(
            f"{source}: model_type {shown(model_type)} is not one that kvscope knows ({known}): {BY_HAND}"
        )
    return model_type


def _n_kv_heads(reader: _Reader, family: Family, *, n_heads: int) -> int:
    key = "num_key_value_heads"
    if reader.config.get(key) is not None:
        return reader.count(key)
    # Absent, the class default holds; a null means one KV head a query head in all four classes.
    assumed = n_heads if reader.has(key) or family.n_kv_heads is None else family.n_kv_heads
    if reader.has(key):
        reader.notes.append(f"{key} is null: {assumed}, a KV head for each query head")
    else:
        reader.assume(key, assumed)
    return assumed


def _head_dim(reader: _Reader, family: Family, *, n_heads: int) -> int:
    if reader.config.get("head_dim") is not None:
        return reader.count("head_dim")
    if family.head_dim is not None:
        if reader.has("head_dim"):
            raise reader.fail(f"head_dim must be a whole number, not null: a {reader.model_type} model has its own")
        reader.assume("head_dim", family.head_dim)
        return family.head_dim
    hidden_size = reader.count("hidden_size")
    if hidden_size % n_heads:
        raise reader.fail(
            f"head_dim missing, and hidden_size {hidden_size} is not a multiple of num_attention_heads {n_heads}"
        )
    return hidden_size // n_heads


def _tied(reader: _Reader) -> bool:
    if not reader.has("tie_word_embeddings"):
        reader.assume("tie_word_embeddings", "false")
    return reader.flag("tie_word_embeddings")


def _sliding(reader: _Reader, family: Family, *, n_layers: int) -> tuple[int, int | None]:
    """How many layers slide, and the window they keep (None where none does)."""
    if family.window == "none":
        return 0, None
    if family.window == "upper":
        n_sliding = _upper_sliding_layers(reader, n_layers=n_layers)
        if not reader.flag("use_sliding_window"):
            if reader.config.get("sliding_window") is not None:
                reader.notes.append("sliding_window is off: use_sliding_window is not true")
            return 0, None
    else:
        n_sliding = n_layers
    window = _window(reader)
    return (n_sliding, window) if window is not None and n_sliding else (0, None)


def _window(reader: _Reader) -> int | None:
    if not reader.has("sliding_window"):
        reader.assume("sliding_window", 4096)
        return 4096
    return reader.count_or_none("sliding_window")


def _upper_sliding_layers(reader: _Reader, *, n_layers: int) -> int:
    """Layers that slide where sliding is on: as layer_types says, else those from max_window_layers up."""
    types = reader.config.get("layer_types")
    if types is None:
        first = reader.count("max_window_layers", minimum=0) if reader.has("max_window_layers") else 28
        return max(0, n_layers - first)
    if not isinstance(types, list) or len(types) != n_layers:
        raise reader.fail(f"layer_types must be a list of {n_layers} names, one a layer")
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise reader.fail(f"layer_types has {shown(kind)}: kvscope knows full_attention and sliding_attention")
    return types.count("sliding_attention")


def _note_quantization(reader: _Reader) -> None:
    quantization = reader.config.get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method")
        named = f" ({method})" if isinstance(method, str) else ""
        reader.notes.append(f"quantization_config{named} is not read: choose the weight format that matches it")


def _read_object(file: Path) -> Mapping[str, object]:
    """The JSON object in `file`, read whole but never more than MAX_CONFIG_BYTES."""
    data = read_bounded(file, limit=MAX_CONFIG_BYTES)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise SourceError(f"{file}: not a text file, so not a config.json") from None
    except json.JSONDecodeError as error:
        raise SourceError(f"{file}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError):
        raise SourceError(f"{file}: not a config.json: numbers too long or lists too deep") from None
    if not isinstance(value, dict):
        raise SourceError(f"{file}: a config.json holds an object {{...}}, not {shown(value)}")
    return value


def read_bounded(file: Path, *, limit: int) -> bytes:
    """All bytes of a regular file of at most `limit` bytes. Raises SourceError that starts with the path."""
    try:
        if not file.is_file():
            raise SourceError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise SourceError(f"{file}: larger than {limit // 2**20} MiB, so not a model's config")
    return data
