"""Find the weight files of a folder: one file, or several parts given by an index or by their names."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.weights.jsonfile import MAX_CONFIG_BYTES, read_json
from engine.weights.lazy import Stored, StoredTensor, read_safetensors
from engine.weights.pt import read_pt

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_RANK = re.compile(r"consolidated\.(\d\d)\.pth")
_ADAPTER = "adapter_model.safetensors"
_SHOWN = 3


def read_folder(folder: Path) -> Mapping[str, Stored]:
    """Tensors of a Hugging Face folder by the file's names. Raises CheckpointError."""
    for whole in _WHOLE:
        if (folder / whole).exists():
            return _read(folder, [whole])
        if (folder / f"{whole}.index.json").exists():
            return _read(folder, _indexed(folder / f"{whole}.index.json"))
    numbered = sorted(path for path in folder.glob("*-of-*") if _PART.fullmatch(path.name))
    if numbered:
        return _read(folder, parts_of(next((p for p in numbered if p.name.startswith("model-")), numbered[0])))
    if any(_RANK.fullmatch(path.name) for path in folder.glob("consolidated.*.pth")):
        return _of_ranks(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors") if path.name != _ADAPTER)
    if len(others) == 1:
        return _read(folder, others)
    if others:
        raise CheckpointError(
            f"{folder} has {len(others)} weight files ({', '.join(others[:_SHOWN])}) and none is model.safetensors; "
            "name the one to read"
        )
    if (folder / _ADAPTER).exists():
        raise CheckpointError(f"{folder} only has an adapter; merge it into its model first")
    raise CheckpointError(f"{folder} holds no weights: no model.safetensors, pytorch_model.bin, nor an index of parts")


def read_parts(part: Path) -> Mapping[str, Stored]:
    """Tensors of all files that a name like model-00001-of-00003.safetensors belongs to. Raises CheckpointError."""
    if _RANK.fullmatch(part.name):
        return _of_ranks(part.parent)
    return _read(part.parent, parts_of(part))


def is_part(path: Path) -> bool:
    """Whether the name says that a file is one of several."""
    return _PART.fullmatch(path.name) is not None or _RANK.fullmatch(path.name) is not None


def parts_of(part: Path) -> list[str]:
    """The names of the whole set that a part belongs to. Raises CheckpointError where one is missing."""
    match = _PART.fullmatch(part.name)
    assert match is not None
    stem, _, total, suffix = match.groups()
    first = 0 if (part.parent / f"{stem}-00000-of-{total}.{suffix}").exists() else 1
    names = [f"{stem}-{i:05d}-of-{total}.{suffix}" for i in range(first, int(total) + first)]
    missing = [name for name in names if not (part.parent / name).exists()]
    if missing:
        raise CheckpointError(f"{part.parent} lacks {', '.join(missing[:_SHOWN])} of {int(total)} parts")
    return names


def _indexed(index: Path) -> Sequence[str]:
    """The file names in an index, and the other parts of their set, which an edited index may omit.

    They must be plain names, so that an index cannot point outside its folder.
    """
    document = read_json(index, CheckpointError, max_bytes=MAX_CONFIG_BYTES)
    files = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{index} has no weight_map")
    names = {str(name) for name in files.values()}
    suffix = index.name.split(".")[1]
    for name in sorted(names):
        if Path(name).name != name or not name.endswith(f".{suffix}"):
            raise CheckpointError(f'{index} names "{name}"; expected a .{suffix} file beside it')
        if is_part(index.parent / name):
            names.update(parts_of(index.parent / name))
    return sorted(names)


def _read(folder: Path, names: Sequence[str]) -> Mapping[str, Stored]:
    tensors: dict[str, Stored] = {}
    for name in names:
        path = folder / name
        tensors |= read_safetensors(path) if path.suffix == ".safetensors" else read_pt(path)
    return tensors


def _of_ranks(folder: Path) -> dict[str, Stored]:
    """Meta's files, one per tensor-parallel rank. Raises CheckpointError if one is missing."""
    names = sorted(path.name for path in folder.glob("consolidated.*.pth") if _RANK.fullmatch(path.name))
    last = int(names[-1].split(".")[1])
    if missing := [f"consolidated.{i:02d}.pth" for i in range(last) if f"consolidated.{i:02d}.pth" not in names]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing[:_SHOWN])} of at least {last + 1} parts")
    ranks = [read_pt(folder / name) for name in names]
    if any(rank.keys() != ranks[0].keys() for rank in ranks):
        raise CheckpointError(f"{folder}: the parts of consolidated.*.pth do not hold the same tensors")
    if len(ranks) == 1:
        return dict(ranks[0])
    width = next(iter(t.numel() for name, t in ranks[0].items() if name.endswith("norm.weight")), 0)
    return {name: _side_by_side([rank[name] for rank in ranks], name, width) for name in ranks[0]}


def _side_by_side(parts: list[Tensor], name: str, width: int) -> Stored:
    """Join the ranks' parts: outputs by rows, inputs by columns; tensors that are not matrices are whole on every rank.

    Llama 1 and 2 split embeddings by width, Llama 3 by the vocabulary.
    """
    first = parts[0]
    if first.dim() < 2:
        return first
    by_width = name.startswith("tok_embeddings") and first.size(1) < width
    dim = 1 if by_width or name.endswith((".wo.weight", ".w2.weight")) else 0
    shape = list(first.shape)
    shape[dim] = sum(part.size(dim) for part in parts)
    return StoredTensor(shape=tuple(shape), dtype=first.dtype, load=lambda: torch.cat(parts, dim))
