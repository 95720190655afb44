"""Weight files and model folders: their config, and their tensors by our names, checked against it.

Reads .pt, safetensors, GGUF and Hugging Face folders. Every fault of a file becomes a CheckpointError or ConfigError
that names the file, what is wrong and what was expected.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import CheckpointError, ConfigError
from engine.families.gguf import config_from_gguf, weights_from_gguf
from engine.families.gguf_tokenizer import chat_from_gguf, tokenizer_from_gguf
from engine.families.registry import canonical_names, config_from_hf
from engine.model.config import ModelConfig
from engine.model.reference import config_from_reference, from_reference_name, is_reference, to_reference_name
from engine.model.shapes import parameter_shapes
from engine.weights.chat import ChatTemplate, read_chat_template
from engine.weights.gguf import read_gguf
from engine.weights.jsonfile import MAX_CONFIG_BYTES, read_json
from engine.weights.lazy import Stored, StoredTensor, read_safetensors
from engine.weights.local_models import is_gguf
from engine.weights.pt import read_pt
from engine.weights.tokenizer import Tokenizer

_PT_SUFFIXES = (".pt", ".pth", ".bin")
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a file or folder holds; weights by our names, checked against the config."""

    config: ModelConfig
    weights: Mapping[str, Stored]
    tokenizer: Tokenizer | None
    chat: ChatTemplate | None


def read_source(location: Path) -> Source:
    """What a file or folder holds. Raises CheckpointError, ConfigError, TokenizerError."""
    return _read_gguf(location) if is_gguf(location) else _read_other(location)


def _read_other(location: Path) -> Source:
    folder, tensors = _read(location)
    config, model_type = _read_config(folder, tensors)
    return Source(
        config=config,
        weights=_canonical(tensors, config, model_type, location),
        tokenizer=_read_tokenizer(folder),
        chat=read_chat_template(folder),
    )


def _read_gguf(location: Path) -> Source:
    file = read_gguf(location)
    config = config_from_gguf(file)
    weights = weights_from_gguf(file, config)
    _check_shapes(weights, config, location, implied="its metadata implies")
    return Source(config=config, weights=weights, tokenizer=tokenizer_from_gguf(file), chat=chat_from_gguf(file))


# --- files ------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Path, Mapping[str, Stored]]:
    """(folder whose config.json and tokenizer.json belong to it, tensors by the file's names)."""
    if path.name == "config.json":
        path = path.parent
    if path.is_dir():
        return path, _read_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        return path.parent, read_safetensors(path)
    if path.suffix in _PT_SUFFIXES:
        return path.parent, read_pt(path)
    raise CheckpointError(
        f"{path} is not a weight file this engine reads; use .pt, .safetensors, .gguf or a Hugging Face folder"
    )


def _read_folder(folder: Path) -> Mapping[str, Stored]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return read_safetensors(whole)
    if index.exists():
        tensors: dict[str, StoredTensor] = {}
        for shard in _shards(index):
            tensors |= read_safetensors(folder / shard)
        return tensors
    if (folder / "pytorch_model.bin").exists():
        return read_pt(folder / "pytorch_model.bin")
    raise CheckpointError(f"{folder} holds no weights: no model.safetensors, its index.json or pytorch_model.bin")


def _shards(index: Path) -> Sequence[str]:
    """File names in an index; they must be plain names, so that it cannot point outside its folder."""
    document = read_json(index, CheckpointError, max_bytes=MAX_CONFIG_BYTES)
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{index} has no weight_map")
    names = sorted({str(name) for name in files.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f'{index} names "{name}"; expected a .safetensors file beside it')
    return names


# --- config and weights against each other ----------------------------------------------------------------


def _read_config(folder: Path, tensors: Mapping[str, Stored]) -> tuple[ModelConfig, str | None]:
    """The config, and the model_type whose weight names are to be translated (None: the assignment's model)."""
    if is_reference(tensors):
        return config_from_reference({name: tuple(t.shape) for name, t in tensors.items()}), None
    path = folder / "config.json"
    if not path.exists():
        raise ConfigError(
            f"there is no config.json in {folder}, and the names of the weights are not the assignment's "
            "(token_embedding.weight, ...), from which sizes could be read"
        )
    document = read_json(path, ConfigError, max_bytes=MAX_CONFIG_BYTES)
    config = config_from_hf(document)
    config = replace(config, eos_ids=tuple(dict.fromkeys(config.eos_ids + _generation_eos(folder))))
    return config, str(document["model_type"]) if isinstance(document, dict) else None


def _generation_eos(folder: Path) -> tuple[int, ...]:
    """End tokens that only generation_config.json names (a chat model's end of turn)."""
    path = folder / "generation_config.json"
    if not path.exists():
        return ()
    document = read_json(path, ConfigError, max_bytes=MAX_CONFIG_BYTES)
    value = document.get("eos_token_id") if isinstance(document, dict) else None
    ids = value if isinstance(value, list) else [value]
    return tuple(i for i in ids if isinstance(i, int) and not isinstance(i, bool))


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(path) if path.exists() else None


def _canonical(
    tensors: Mapping[str, Stored], config: ModelConfig, model_type: str | None, path: Path
) -> dict[str, Stored]:
    """Tensors by our names, checked to be exactly those the config asks for. Raises CheckpointError."""
    reference = model_type is None
    if model_type is None:
        ours = {from_reference_name(name): t for name, t in tensors.items()}
    else:
        ours = canonical_names(tensors, model_type=model_type, config=config)
    implied = "the other weights imply" if reference else "config.json implies"
    _check_shapes(ours, config, path, implied=implied, shown=to_reference_name if reference else str)
    return ours


def _check_shapes(
    ours: Mapping[str, Stored],
    config: ModelConfig,
    path: Path,
    *,
    implied: str,
    shown: Callable[[str], str] = str,
) -> None:
    expected = parameter_shapes(config)
    missing = [shown(name) for name in expected if name not in ours]
    if missing:
        raise CheckpointError(f"{path} lacks {_some(missing)}")
    extra = [shown(name) for name in ours if name not in expected]
    if extra:
        raise CheckpointError(f"{path} holds weights that this model does not have: {_some(extra)}")
    for name, shape in expected.items():
        if tuple(ours[name].shape) != shape:
            raise CheckpointError(f"{path}: {shown(name)} has shape {list(ours[name].shape)}; {implied} {list(shape)}")


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
