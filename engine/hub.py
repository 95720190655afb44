"""A model by path or by its Hugging Face name: the local cache first, a download only if it can be had.

The cache's layout (huggingface_hub's): hub/models--org--name/refs/main holds a commit, snapshots/<commit> the files.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_PATTERNS = ("*.json", "*.safetensors", "*.jinja")  # what an engine needs; not the same weights in other formats
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".gguf", ".json")
_COMMIT = re.compile(r"[0-9a-f]{6,64}")


def locate(name: str) -> Path:
    """The file or folder that ``name`` means: a path, else org/name in the cache, else downloaded.

    A folder that holds nothing but one GGUF file means that file. Raises CheckpointError.
    """
    path = Path(name)
    if not path.exists() and _NAME.fullmatch(name):
        # models/m.safetensors that is not there is a slip of the pen, Qwen/Qwen2.5-0.5B is not
        path = cached_model(name) or (path if path.suffix in _FILES or path.parent.exists() else _downloaded(name))
    return _only_gguf(path) if path.is_dir() else path


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where huggingface_hub keeps models: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub."""
    env = os.environ if environment is None else environment
    if env.get("HF_HUB_CACHE"):
        return Path(env["HF_HUB_CACHE"]).expanduser()
    home = env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def cached_model(name: str, environment: Mapping[str, str] | None = None) -> Path | None:
    """The newest complete snapshot of org/name in the local cache, the one ``main`` points to first."""
    folder = cache_folder(environment) / f"models--{name.replace('/', '--')}"
    snapshots = folder / "snapshots"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
        found = sorted(snapshots.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    except (OSError, UnicodeDecodeError):
        commit, found = (
            "",
            sorted(snapshots.iterdir()) if os.path.isdir(snapshots) else [],
        )
    if _COMMIT.fullmatch(commit):
        found.insert(0, snapshots / commit)
    return next((path for path in found if _holds_model(path)), None)


def _holds_model(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model.bin", "*.gguf"))


def _downloaded(name: str) -> Path:
    """Fetch org/name with huggingface_hub, which shows its progress on stderr."""
    where = f"{name} is neither a file nor in the Hugging Face cache ({cache_folder()})"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise CheckpointError(f"{where}; HF_HUB_OFFLINE is set, so it is not downloaded")
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f"{where}; to download models, install kvscope[hub]") from None
    download: Any = huggingface_hub.snapshot_download
    try:
        return Path(download(name, allow_patterns=list(_PATTERNS)))
    except Exception as error:  # of the network or the server; its classes differ between versions
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{where}, and it cannot be downloaded: {first[:300]}") from None


def _only_gguf(folder: Path) -> Path:
    if any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.safetensors.index.json", "pytorch_model.bin")):
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise CheckpointError(f"{folder} holds several models; name one of them: {names}")
    return files[0] if files else folder
