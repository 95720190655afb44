"""Tensors of .pt files, and of pickles of arrays. Nothing in them is executed."""

import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.weights.arrays import MAX_PICKLE_BYTES, NotArrays, unpickle
from engine.weights.pointers import NOT_FETCHED, is_pointer

_WRAPPERS = ("model_state_dict", "state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
_MAX_NESTED = 64


def read_pt(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch.save file: only tensors, arrays and plain containers load. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if is_pointer(start):
        raise CheckpointError(f"{path} is not a PyTorch weight file: {NOT_FETCHED}")
    try:
        is_zip = _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about old formats; the real problems are refused below
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        document = _arrays(path, str(error))
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise any exception inside torch.load
        document = _arrays(path, str(error))
    return _state_dict(document, path)


def _check_zip(path: Path) -> bool:
    """Whether it is the current zip format. Refuses contents that torch.save never writes and could exhaust memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} holds compressed entries, which torch.save never makes; refused")
            if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path} holds a pickle of {entry.file_size:,} bytes; refused")
    return True


def _arrays(path: Path, fault: str) -> object:
    """The document of a pickle of arrays; for any other pickle, raise the error that matches torch's ``fault``."""
    named = re.search(r"GLOBAL ([\w.]+)", fault)
    if named and not named[1].startswith(("numpy.", "_codecs.")):
        raise CheckpointError(f"{path} {_refusal(named[1])}")
    try:
        document = _unpickled(path)
    except NotArrays as error:
        raise CheckpointError(f"{path} {_refusal(str(error))}") from None
    except Exception:  # a damaged file can raise any exception
        document = None
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} is damaged or not a PyTorch weight file")
    return document


def _unpickled(path: Path) -> object:
    if not zipfile.is_zipfile(path):
        if path.stat().st_size > MAX_PICKLE_BYTES:
            return None
        with path.open("rb") as file:
            return unpickle(file)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as entry:
            return unpickle(entry)


def _refusal(name: str) -> str:
    return f"is not a plain weight file: it asks to call {name}; refused, nothing was executed"


def _state_dict(document: object, path: Path) -> dict[str, Tensor]:
    for _ in range(_MAX_NESTED):  # a container that contains itself would never end
        if (inner := _inside(document, path)) is None:
            break
        document = inner
    if not isinstance(document, dict) or not document:
        raise CheckpointError(f"{path} holds no state dict (a dictionary of names and tensors)")
    tensors: dict[str, Tensor] = {}
    any_weights = any(isinstance(value, Tensor) for value in document.values())
    for name, value in document.items():
        if any_weights and _is_plain(value):
            continue  # such as a step, a date or sizes
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: the entry {name!r} is not a tensor with a name")
        if value.device.type == "meta":
            raise CheckpointError(f"{path}: {name} was saved without its values (on the device meta)")
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} claims more elements than the file stores; refused")
        tensors[name] = value
    return tensors


def _inside(document: object, path: Path) -> object | None:
    """The state dict inside a training script's larger dictionary; None if this is already the state dict."""
    if not isinstance(document, dict):
        return None
    inner = {key: value for key, value in document.items() if isinstance(value, dict) and _has_tensors(value)}
    for wrapper in _WRAPPERS:
        if wrapper in inner:
            return inner[wrapper]
    if not inner or any(isinstance(value, Tensor) for value in document.values()):
        return None
    if len(inner) > 1:
        raise CheckpointError(f"{path} holds several state dicts ({', '.join(map(str, inner))}); save one alone")
    return next(iter(inner.values()))


def _is_plain(value: object) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(map(_is_number_or_text, value.values() if isinstance(value, dict) else value))
    return _is_number_or_text(value)


def _is_number_or_text(value: object) -> bool:
    return isinstance(value, int | float | str | None)


def _has_tensors(document: dict[object, object]) -> bool:
    return any(isinstance(value, Tensor) for value in document.values()) or any(
        isinstance(document.get(wrapper), dict) for wrapper in _WRAPPERS
    )
