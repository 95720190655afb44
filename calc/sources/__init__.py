"""Where a model comes from: the catalog, a Hugging Face config.json, a spec TOML. The only readers of files.

Each reader is imported when a name asks for it, so that the usual start reads one catalog and nothing else.
"""

from __future__ import annotations

import os.path
from dataclasses import replace
from typing import TYPE_CHECKING

from calc.errors import CalcError, SourceError, UnknownName, UnknownStorage
from calc.plain import one_line

if TYPE_CHECKING:
    from pathlib import Path

    from calc.model.spec import ModelSpec

DEFAULT_MODEL = "llama-3-8b"
"""The default model."""
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
READ = (".json", ".toml")


def load_model(name_or_path: str, *, any_storage: bool = False) -> ModelSpec:
    """A catalog name, a config.json, a folder with one, a ``.gguf`` or a spec ``.toml`` as a ModelSpec.

    A catalog name takes precedence over a file of the same name: write ``./llama-3-8b`` for the folder. With
    `any_storage`, an unsupported quantization is not an error: the model comes without stored weights, with a note.
    Raises SourceError (UnknownName if it is neither a name nor an existing path), one sentence.
    """
    from calc.sources.catalog import find_model

    text = name_or_path.strip()
    if not text:
        raise SourceError("no model given: use a catalog name such as llama-3-8b, or the path of a config.json")
    if not is_path(text):
        try:
            return find_model(text)
        except UnknownName as unknown:
            if not _exists(text):
                either = "; nor is there a file or folder of that name" if "/" in text else ""
                raise UnknownName(f"{unknown}{either}") from None
    try:
        return _safe(_from_path(text))
    except UnknownStorage as unknown:
        if not any_storage:
            raise
        why = str(unknown).removesuffix(": give --weight-format")
        note = f"the checkpoint's storage is not supported ({why}): weights are in the given format, or 16 bits"
        return _safe(replace(unknown.model, notes=(note, *unknown.model.notes)))


def _safe(model: ModelSpec) -> ModelSpec:
    """The model with text from its file made safe to show."""
    name, notes = one_line(model.name), tuple(map(one_line, model.notes))
    return model if (name, notes) == (model.name, model.notes) else replace(model, name=name, notes=notes)


def is_path(text: str) -> bool:
    """Whether `text` can only be meant as a path (a Hugging Face id has one slash as well).

    >>> [is_path(text) for text in ("./llama", "C:\\\\llama", "model.gguf", "meta-llama/Llama-3", "llama-3-8b")]
    [True, True, True, False, False]
    """
    starts, ends = ("/", "./", "../", "~", "\\"), ("/", *READ, *WEIGHTS, ".gguf", ".ggml")
    drive = text[1:3] in (":/", ":\\") and text[0].isalpha()
    return drive or text.startswith(starts) or text.endswith(ends)


def _exists(text: str) -> bool:
    try:
        return os.path.exists(text)
    except (OSError, ValueError):  # a NUL in the name
        return False


def _named(text: str) -> str:
    """A path as typed; quoted and cut where it would not fit a line of text."""
    return text if text.isprintable() and len(text) <= 200 else repr(text[:200])


def _from_path(text: str) -> ModelSpec:
    from pathlib import Path

    try:
        path = Path(text).expanduser()
        if not path.exists():
            raise SourceError(f"{_named(text)}: no such file or folder")
        if path.is_dir():
            return _from_folder(path)
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, CalcError):
            raise
        raise SourceError(f"{_named(text)}: not a usable path") from None
    return _from_file(path)


def _from_folder(folder: Path) -> ModelSpec:
    config = folder / "config.json"
    if config.exists():
        try:
            return _with_weights(_from_file(config), folder)
        except UnknownStorage as unknown:
            held = _with_weights(unknown.model, folder)
            if held.stored is None:
                raise
            return held
    if (params := folder / "params.json").is_file():
        return _from_file(params)
    if found := sorted(folder.glob("*.gguf")):
        return _from_gguf_files(found, folder)
    raise SourceError(f"{folder}: no config.json or params.json in this folder")


def _from_gguf_files(found: list[Path], folder: Path) -> ModelSpec:
    """The one model that is in GGUF files, and a note on the encoder that llama.cpp loads beside it (mmproj)."""
    from calc.sources.gguf import encoder_note, parts_of

    encoders = [file for file in found if file.name.lower().startswith("mmproj")]
    models = [file for file in found if file not in encoders] or found
    if len(models) > 1 and models != parts_of(models[0]):
        raise SourceError(f"{folder}: {len(models)} GGUF files in this folder: choose one, such as {models[0].name}")
    model = _from_file(models[0])
    notes = [encoder_note(file) for file in encoders if file not in models]
    return replace(model, notes=(*model.notes, *notes))


def _with_weights(model: ModelSpec, folder: Path) -> ModelSpec:
    """The model with its weights as the safetensors files beside its config hold them, or as their index says."""
    from calc.sources.safetensors import stored_by_index, stored_in, weight_files

    files = weight_files(folder)
    if not files:
        return model
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        stored, _ = stored_in(files)
        note = f"weights as in the {len(files)} safetensors files: {stored.total_bytes:,} B"
    elif (found := stored_by_index(model, folder)) is not None:
        stored = found
        note = (
            f"weights as in the safetensors index (metadata.total_size): {stored.total_bytes:,} B; {len(missing)} of "
            f"{len(files)} files are missing, such as {missing[0]}"
        )
    else:
        lost = f"{len(missing)} of {len(files)} safetensors files are missing, such as {missing[0]}: none was read"
        return replace(model, notes=(lost, *model.notes))
    kept = [each for each in model.notes if not each.startswith("weights as")]
    return replace(model, stored=stored, notes=(note, *kept))


def _starts_as_gguf(path: Path) -> bool:
    """Whether a file without a suffix (Ollama's blobs) begins as GGUF files do."""
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _from_file(path: Path) -> ModelSpec:
    if path.exists() and not path.is_file():  # a named pipe or a device: opening it may block forever
        raise SourceError(f"{path}: not a regular file")
    suffix = path.suffix.lower()
    if suffix == ".json":
        from calc.hf import read_hf_config

        return read_hf_config(path)
    if suffix == ".toml":
        from calc.sources.toml import read_spec_toml

        return read_spec_toml(path)
    if suffix == ".gguf" or (not suffix and _starts_as_gguf(path)):
        from calc.sources.gguf import read_gguf

        return read_gguf(path)
    if suffix == ".safetensors" and (path.parent / "config.json").is_file():
        return _from_folder(path.parent)
    if suffix in WEIGHTS:
        raise SourceError(f"{path}: a weight file does not state the model's heads: use its config.json")
    raise SourceError(f"{path}: not a config.json, a folder with one, a .gguf or a spec .toml")
