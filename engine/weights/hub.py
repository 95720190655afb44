"""A model by path or by its Hugging Face name: the local cache first, then a download if possible.

The cache's layout (huggingface_hub's): hub/models--org--name/refs/main holds a commit, snapshots/<commit> the files.
org/name means its safetensors, else its only GGUF file; org/name:Q4_K_M and org/name/file.gguf choose one of several.
"""

import errno
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from engine.errors import CheckpointError, Stopped
from engine.weights.loading import Watch

_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?::([\w.-]+)|/((?:[\w-][\w.-]*/)*[\w-][\w.-]*\.gguf))?")
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".gguf", ".json")
_BESIDE = (".json", ".jinja")
"""Suffixes of files that accompany safetensors: config, tokenizer, templates."""
_COMMIT = re.compile(r"[0-9a-f]{6,64}")
_NAMES_SHOWN = 12
_NAME_SHOWN = 80  # characters


def locate(name: str, watch: Watch | None = None) -> Path:
    """The file or folder for ``name``: a path, else a model in the cache, else a download.

    A folder that contains only one GGUF file means that file. ``watch`` counts the bytes of a download. Raises
    CheckpointError, and Stopped if the watch is cancelled.
    """
    path, named = _path(name), _split(name)
    if not path.exists() and named is not None:
        repository, choice = named
        # a missing models/m.safetensors is a mistyped path, Qwen/Qwen2.5-0.5B is a model's name
        slip = Path(repository).suffix in _FILES or Path(repository).parent.exists()
        path = cached_path(name) or (path if slip else _downloaded(repository, choice, watch or Watch()))
    return _only_gguf(path) if path.is_dir() else path


def _path(name: str) -> Path:
    """The name as a path. Raises CheckpointError if it cannot be a file name."""
    path = Path(name)
    try:
        path.stat()
    except ValueError:
        raise CheckpointError(f"{name[:_NAME_SHOWN]!r} is not a path: it holds a character that no path has") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise CheckpointError(f"{name[:_NAME_SHOWN]}... is too long for a path") from None
    return path


def cached_path(name: str) -> Path | None:
    """The snapshot or GGUF file that org/name, org/name:TAG or org/name/FILE means in the local cache."""
    named = _split(name)
    return cached_model(named[0], choice=named[1]) if named is not None else None


def _split(name: str) -> tuple[str, str] | None:
    """(org/name, the chosen tag or file); None if the name has another form."""
    match = _NAME.fullmatch(name)
    return (match[1], match[2] or match[3] or "") if match else None


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Where huggingface_hub keeps models: HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub."""
    env = os.environ if environment is None else environment
    if env.get("HF_HUB_CACHE"):
        return Path(env["HF_HUB_CACHE"]).expanduser()
    home = env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def cached_model(name: str, environment: Mapping[str, str] | None = None, *, choice: str = "") -> Path | None:
    """The newest complete snapshot of org/name in the local cache, the one ``main`` points to first.

    With a ``choice`` (a tag or a file name), the matching GGUF file. Raises CheckpointError if a tag matches
    several.
    """
    found = (_held(folder, choice) for folder in _snapshots(name, environment))
    return next((path for path in found if path is not None), None)


def _snapshots(name: str, environment: Mapping[str, str] | None) -> list[Path]:
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
    return found


def _held(folder: Path, choice: str) -> Path | None:
    """The folder if it contains a model; with a choice, the matching file if it is there."""
    if not choice:
        held = any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model.bin", "*.gguf"))
        return folder if held else None
    names = _meant([path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")], choice)
    if len(names) > 1:
        raise CheckpointError(f"{choice} means several files in {folder}; name one of them: {_listed(names)}")
    return folder / names[0] if names else None


def _meant(names: Sequence[str], choice: str) -> list[str]:
    """The GGUF files that match a choice: a file name, or a tag (Q4_K_M) in the name; all without a choice."""
    if choice.endswith(".gguf"):
        return [name for name in names if name == choice]
    tag = re.compile(rf"(?:^|[-.]){re.escape(choice)}(?:[-.]|$)", re.IGNORECASE)
    return sorted(name for name in names if not choice or tag.search(PurePosixPath(name).stem))


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _only_gguf(folder: Path) -> Path:
    if any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "*.safetensors.index.json", "pytorch_model.bin")):
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = _listed([file.name for file in files])
        raise CheckpointError(f"{folder} holds several models; name one of them: {names}")
    return files[0] if files else folder


# --- downloads --------------------------------------------------------------------------------------------


def _downloaded(name: str, choice: str, watch: Watch) -> Path:
    """Download the needed files of org/name with huggingface_hub; ``watch`` counts the bytes."""
    where = f"{name} is neither a file nor in the Hugging Face cache ({cache_folder()})"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise CheckpointError(f"{where}; HF_HUB_OFFLINE is set, so it is not downloaded")
    try:
        import huggingface_hub as hub

        bar = _bar(watch)
    except ImportError:
        raise CheckpointError(f"{where}; to download models, install kvscope[hub]") from None
    try:
        sizes = dict(_sizes(hub, name))
        files, gguf = _wanted(name, sizes, choice)
        watch.begin(sum(sizes[file] for file in files), "downloading")
        folder = Path(hub.snapshot_download(name, allow_patterns=files, tqdm_class=bar))
    except (CheckpointError, Stopped):
        raise
    except Exception as error:  # network or server errors; their classes differ between versions
        watch.check()  # or a cancelled download
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{where}, and it cannot be downloaded: {first[:300]}") from None
    watch.end()
    return folder if gguf is None else folder / gguf


def _sizes(hub: Any, name: str) -> Iterator[tuple[str, int]]:
    """(name, bytes) of every file in a repository."""
    for file in hub.HfApi().model_info(name, files_metadata=True).siblings or ():
        yield file.rfilename, file.size or 0


def _wanted(name: str, files: Mapping[str, int], choice: str) -> tuple[list[str], str | None]:
    """(files to download, GGUF file): safetensors and their companions, or one GGUF. Raises CheckpointError."""
    top = [file for file in files if "/" not in file and not file.startswith("consolidated")]  # Mistral's second copy
    weights = [file for file in top if file.endswith(".safetensors")]
    if weights and not choice:
        return weights + [file for file in top if file.endswith(_BESIDE)], None
    ggufs = [file for file in files if file.endswith(".gguf") and not file.startswith("mmproj")]  # vision projectors
    if not ggufs:
        kinds = "GGUF" if choice else "safetensors nor GGUF"
        raise CheckpointError(f"{name} has {'no' if choice else 'neither'} {kinds} files to download")
    meant = _meant(ggufs, choice)
    if len(meant) == 1:
        return meant, meant[0]
    said = f"{name} has several GGUF files"
    if choice:
        said = f"{choice} means {'several' if meant else 'none'} of the GGUF files of {name}"
    listed = _listed(meant or sorted(ggufs))
    raise CheckpointError(f"{said}; name one, as in {name}:Q4_K_M or {name}/FILE: {listed}")


def _bar(watch: Watch) -> type:
    """A progress bar for huggingface_hub that shows nothing and reports to ``watch``. Raises ImportError."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]

    class Bar(tqdm):  # type: ignore[misc,type-arg,unused-ignore]
        monitor_interval = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"file": io.StringIO()}))

        def display(self, *args: Any, **options: Any) -> bool:
            return True

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            watch.check()
            if self.unit == "B":  # other bars count files; of two that count bytes, the one for received bytes is used
                watch.reach(int(self.n))
            return shown

    return Bar
