"""Find the models that are already on this machine: in the folders of other tools and in the current folder.

Hugging Face's cache, Ollama, LM Studio, llama.cpp, GPT4All, the folders of KVSCOPE_MODELS, the current folder. Only
names, sizes and first bytes of files are read. No torch here.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from engine.errors import CheckpointError
from engine.weights.hub import cache_folder, cached_model
from engine.weights.jsonfile import read_json

MAX_ENTRIES = 2000
"""The most entries read per folder."""
_MAX_MANIFEST_BYTES = 1 << 20
_OLLAMA_MODEL = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "consolidated.*.pth")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model on disk. `reference` is valid as the ``model`` of a request: a path, or org/name."""

    name: str
    reference: str
    size_bytes: int
    where: str


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its suffix or, where it has none (Ollama's blobs), its first four bytes."""
    if path.suffix:
        return path.suffix == ".gguf"
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def find_models(
    environment: Mapping[str, str] | None = None, *, home: Path | None = None, here: Path | None = None
) -> list[FoundModel]:
    """All models found, each file once, the current folder first; sorted by name within each place."""
    env = os.environ if environment is None else environment
    base = home or Path.home()
    places = [
        _in_folder(here or Path.cwd(), "this folder", depth=1),
        *(_in_folder(folder, "KVSCOPE_MODELS", depth=3) for folder in _listed(env.get("KVSCOPE_MODELS", ""))),
        _in_hub(env),
        _in_ollama(Path(env.get("OLLAMA_MODELS") or base / ".ollama" / "models")),
        *(
            _in_folder(base / folder, "LM Studio", depth=3)
            for folder in (".lmstudio/models", ".cache/lm-studio/models")
        ),
        _in_folder(_llama_cache(env, base), "llama.cpp", depth=1),
        _in_folder(base / ".local/share/nomic.ai/GPT4All", "GPT4All", depth=1),
    ]
    found: dict[str, FoundModel] = {}
    for place in places:
        for model in sorted(place, key=lambda model: model.name.lower()):
            found.setdefault(os.path.realpath(model.reference), model)
    return list(found.values())


def _listed(paths: str) -> Iterator[Path]:
    return (Path(part).expanduser() for part in paths.split(os.pathsep) if part)


def _llama_cache(env: Mapping[str, str], home: Path) -> Path:
    if env.get("LLAMA_CACHE"):
        return Path(env["LLAMA_CACHE"])
    if sys.platform == "darwin":
        return home / "Library/Caches/llama.cpp"
    return Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "llama.cpp"


def _in_folder(folder: Path, where: str, *, depth: int) -> Iterator[FoundModel]:
    """GGUF files and Hugging Face folders in ``folder`` and in its subfolders down to ``depth`` levels."""
    for path in _entries(folder):
        if path.suffix == ".gguf":
            if model := _gguf(path, path.stem, where):
                yield model
        elif _is_visible_folder(path):
            if weights := _weights(path):
                size = sum(_size(file) for file in weights)
                yield FoundModel(name=path.name, reference=str(path), size_bytes=size, where=where)
            elif depth:
                yield from _in_folder(path, where, depth=depth - 1)


def _weights(folder: Path) -> list[Path]:
    """The weight files of a model folder; none if it has neither config.json nor params.json."""
    if not any((folder / name).is_file() for name in ("config.json", "params.json")):
        return []
    found: list[Path] = []
    for pattern in _WEIGHTS:
        found = found or list(islice(folder.glob(pattern), MAX_ENTRIES))
    return found


def _in_hub(env: Mapping[str, str]) -> Iterator[FoundModel]:
    for path in _entries(cache_folder(env)):
        if not path.name.startswith("models--"):
            continue
        name = path.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = cached_model(name, env)
        if snapshot is None:
            continue
        if weights := _weights(snapshot):
            size = sum(_size(file) for file in weights)
            yield FoundModel(name=name, reference=name, size_bytes=size, where="Hugging Face")
        else:
            files = (_gguf(file, f"{name} {file.stem}", "Hugging Face") for file in _entries(snapshot))
            yield from (model for model in files if model is not None)


def _in_ollama(folder: Path) -> Iterator[FoundModel]:
    """Ollama keeps weights as blobs named by their digest; a manifest at host/owner/model/tag says which."""
    manifests = folder / "manifests"
    for path in islice(manifests.glob("*/*/*/*"), MAX_ENTRIES):
        blob = _ollama_blob(path, folder)
        if blob is None:
            continue
        host, owner, model, tag = path.relative_to(manifests).parts
        official = (host, owner) == ("registry.ollama.ai", "library")
        name = f"{model}:{tag}" if official else f"{owner}/{model}:{tag}"
        yield FoundModel(name=name, reference=str(blob), size_bytes=_size(blob), where="Ollama")


def _ollama_blob(manifest: Path, folder: Path) -> Path | None:
    try:
        document = read_json(manifest, CheckpointError, max_bytes=_MAX_MANIFEST_BYTES)
    except CheckpointError:
        return None
    layers = document.get("layers") if isinstance(document, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("mediaType") == _OLLAMA_MODEL:
            digest = layer.get("digest")
            if isinstance(digest, str) and _DIGEST.fullmatch(digest):
                blob = folder / "blobs" / digest.replace(":", "-")
                return blob if is_gguf(blob) else None
    return None


def _gguf(path: Path, name: str, where: str) -> FoundModel | None:
    """A GGUF file that is a model by itself: not a later part of a split one, not a vision projector."""
    unfit = path.suffix != ".gguf" or _LATER_PART.search(path.name) or path.name.startswith("mmproj")
    if unfit or not path.is_file():
        return None
    return FoundModel(name=name, reference=str(path), size_bytes=_size(path), where=where)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(islice(folder.iterdir(), MAX_ENTRIES))
    except OSError:
        return []


def _is_visible_folder(path: Path) -> bool:
    try:
        return not path.name.startswith(".") and path.is_dir()
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
