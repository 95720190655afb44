"""Weight files and model folders: their config, and their tensors by our names, checked against it.

Reads .pt, safetensors, GGUF and Hugging Face folders. Every problem of a file becomes a CheckpointError or
ConfigError that names the file, what is wrong and what was expected.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from engine.errors import CheckpointError, ConfigError, OptionError
from engine.families import native
from engine.families.gguf import config_from_gguf, weights_from_gguf
from engine.families.gguf_tokenizer import chat_from_gguf, tokenizer_from_gguf, tokenizer_notes
from engine.families.keys import Keys
from engine.families.registry import canonical_names, config_from_hf, model_type_of
from engine.model.config import ModelConfig
from engine.model.reference import config_from_reference, from_reference_name, is_reference, to_reference_name
from engine.model.shapes import parameter_shapes
from engine.weights.arrays import read_npz
from engine.weights.chat import ChatTemplate, read_chat_template
from engine.weights.folder import is_part, read_folder, read_parts
from engine.weights.generation_config import ModelSampling, model_sampling, read_generation_config
from engine.weights.gguf import read_gguf
from engine.weights.jsonfile import MAX_CONFIG_BYTES, read_json
from engine.weights.lazy import Stored, read_safetensors
from engine.weights.local_models import is_gguf
from engine.weights.names import check_extra, is_behind, is_buffer, plain_names, reference_names, some
from engine.weights.pt import read_pt
from engine.weights.quantized import widened
from engine.weights.tokenizer import Tokenizer

_PT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_ZIP_OR_PICKLE = (b"PK", b"\x80")
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The contents of a model file or folder; weights by our names, checked against the config."""

    config: ModelConfig
    weights: Mapping[str, Stored]
    tokenizer: Tokenizer | None
    chat: ChatTemplate | None
    sampling: ModelSampling = field(default_factory=ModelSampling)
    """The sampling options that its authors suggest."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how the file was read, one sentence each."""


def read_source(location: Path, *, n_heads: int | None = None) -> Source:
    """Read a model file or folder. ``n_heads``: for a state dict of the assignment's form, which does not state it.

    Raises CheckpointError, ConfigError, TokenizerError, OptionError.
    """
    if location.exists() and not (location.is_file() or location.is_dir()):
        raise CheckpointError(f"{location} is neither a file nor a folder")
    if is_gguf(location):
        if n_heads is not None:
            raise OptionError(
                "n_heads", "n-heads is for weights in the assignment's format; this model states its heads"
            )
        return _read_gguf(location)
    return _read_other(location, n_heads)


def _read_other(location: Path, n_heads: int | None) -> Source:
    folder, stored = _read(location)
    own = native.is_native(stored)
    tensors = stored if own else reference_names(plain_names(stored))
    config, document = _read_config(folder, tensors, n_heads)
    if own:
        tensors = native.usual_names(tensors, config)
    weights, note = _canonical(tensors, config, document, location)
    return Source(
        config=config,
        weights=weights,
        tokenizer=_read_tokenizer(folder),
        chat=read_chat_template(folder),
        sampling=model_sampling(read_generation_config(folder)) if document is not None else ModelSampling(),
        notes=tuple(each for each in (note, _norm_note(config, document), _context_note(config, document)) if each),
    )


def _context_note(config: ModelConfig, document: Keys | None) -> str:
    if document is None or not document.get(native.ASSUMED):
        return ""
    return f"params.json does not state the context; {config.max_positions:,} positions are assumed, as in its release"


def _norm_note(config: ModelConfig, document: Keys | None) -> str:
    if document is not None or config.norm_bias:
        return ""
    return "the norms have no biases; they are assumed to be LayerNorm, which subtracts the mean"


def _read_gguf(location: Path) -> Source:
    file = read_gguf(location)
    config = config_from_gguf(file)
    weights = weights_from_gguf(file, config)
    extra = {name: weights.pop(name) for name in list(weights) if is_behind(name, config.n_layers)}
    note = check_extra(extra, (), config.n_layers, str(location))
    _check_shapes(weights, config, location, implied="its metadata implies")
    return Source(
        config=config,
        weights=weights,
        tokenizer=tokenizer_from_gguf(file),
        chat=chat_from_gguf(file),
        notes=(*tokenizer_notes(file), *([note] if note else [])),
    )


# --- files ------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Path, Mapping[str, Stored]]:
    """(the folder with the model's config.json and tokenizer.json, tensors by the file's names)."""
    if path.name == "config.json":
        path = path.parent
    if path.is_dir():
        return path, read_folder(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if is_part(path):
        return path.parent, read_parts(path)
    return path.parent, _reader_of(path)(path)


def _reader_of(path: Path) -> Callable[[Path], Mapping[str, Stored]]:
    """The reader for the file's suffix or, if that is unknown, for its first bytes. Raises CheckpointError."""
    if path.suffix == ".safetensors":
        return read_safetensors
    if path.suffix == ".npz":
        return read_npz
    if path.suffix in _PT_SUFFIXES:
        return read_pt
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if start.startswith(_ZIP_OR_PICKLE):
        return read_pt
    if start[8:] == b"{":
        return read_safetensors
    raise CheckpointError(
        f"{path} is not a weight file this engine reads; use .pt, .safetensors, .gguf or a Hugging Face folder"
    )


# --- config and weights against each other ----------------------------------------------------------------


def _read_config(folder: Path, tensors: Mapping[str, Stored], n_heads: int | None) -> tuple[ModelConfig, Keys | None]:
    """The config, and the config.json it comes from (None: the assignment's model)."""
    if is_reference(tensors):
        return config_from_reference(
            {name: tuple(t.shape) for name, t in tensors.items()}, n_heads=1 if n_heads is None else n_heads
        ), None
    if n_heads is not None:
        raise OptionError("n_heads", "n-heads is for weights in the assignment's format; this model states its heads")
    path = folder / "config.json"
    if not path.exists() and (folder / "params.json").exists() and native.is_native(tensors):
        return _native_config(folder / "params.json", tensors)
    if not path.exists():
        raise ConfigError(
            f"there is no config.json in {folder}, and the names of the weights are not the assignment's "
            "(token_embedding.weight, ...), from which sizes could be read"
        )
    document = read_json(path, ConfigError, max_bytes=MAX_CONFIG_BYTES)
    config = config_from_hf(document)
    config = replace(config, eos_ids=tuple(dict.fromkeys(config.eos_ids + _generation_eos(folder))))
    return config, Keys(document) if isinstance(document, dict) else None


def _native_config(path: Path, tensors: Mapping[str, Stored]) -> tuple[ModelConfig, Keys]:
    document = native.as_config(read_json(path, ConfigError, max_bytes=MAX_CONFIG_BYTES), tensors)
    return config_from_hf(document), Keys(document, where="params.json")


def _generation_eos(folder: Path) -> tuple[int, ...]:
    """End tokens that only generation_config.json names (a chat model's end of turn)."""
    value = read_generation_config(folder).get("eos_token_id")
    ids = value if isinstance(value, list) else [value]
    return tuple(i for i in ids if isinstance(i, int) and not isinstance(i, bool))


def _read_tokenizer(folder: Path) -> Tokenizer | None:
    path = folder / "tokenizer.json"
    return Tokenizer.from_file(path) if path.exists() else None


def _canonical(
    tensors: Mapping[str, Stored], config: ModelConfig, document: Keys | None, path: Path
) -> tuple[dict[str, Stored], str]:
    """Tensors by our names, checked against the names and shapes of the config, and a note on ignored tensors."""
    if document is None:
        expected = parameter_shapes(config)
        named = {name: from_reference_name(name) for name in tensors}
        left = {name: t for name, t in tensors.items() if named[name] not in expected and is_buffer(name, t)}
        ours = {named[name]: t for name, t in tensors.items() if name not in left}
        _check_shapes(ours, config, path, implied="the other weights imply", shown=to_reference_name)
        return ours, f"left out, because they are not weights: {some(list(left))}" if left else ""
    wide = widened(tensors, document.section("quantization_config"))
    ours = canonical_names(wide, model_type=model_type_of(document), config=config)
    expected = parameter_shapes(config)
    extra = {name: ours.pop(name) for name in list(ours) if name not in expected}
    note = check_extra(extra, expected, config.n_layers, str(path))
    _check_shapes(ours, config, path, implied="config.json implies")
    return ours, note


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
        head = "; a missing head is not assumed to be tied to the embeddings" if missing == [shown(_HEAD)] else ""
        raise CheckpointError(f"{path} lacks {some(missing)}{head}")
    extra = [shown(name) for name in ours if name not in expected]
    if extra:
        raise CheckpointError(f"{path} holds weights that this model does not have: {some(extra)}")
    for name, shape in expected.items():
        if tuple(ours[name].shape) != shape:
            raise CheckpointError(f"{path}: {shown(name)} has shape {list(ours[name].shape)}; {implied} {list(shape)}")
