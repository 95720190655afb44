"""Tensors of .pt files. Nothing in them is executed."""

import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from engine.errors import CheckpointError

_MAX_PICKLE_BYTES = 64 << 20  # the index of a .pt: a few hundred bytes per tensor


def read_pt(path: Path) -> dict[str, Tensor]:
    """Tensors of a torch.save file: only tensors and plain containers load. Raises CheckpointError."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        is_zip = _check_zip(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats; what matters is refused below
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        raise CheckpointError(f"{path} {_pickle_fault(str(error))}") from None
    except CheckpointError:
        raise
    except Exception:  # a damaged file fails anywhere inside torch.load, in any way
        raise CheckpointError(f"{path} is damaged or not a PyTorch weight file") from None
    return _state_dict(document, path)


def _check_zip(path: Path) -> bool:
    """Whether it is today's zip format; refuse what torch.save never writes and could exhaust memory."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path} holds compressed entries, which torch.save never makes; refused")
            if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path} holds a pickle of {entry.file_size:,} bytes; refused")
    return True


def _pickle_fault(message: str) -> str:
    forbidden = re.search(r"GLOBAL ([\w.]+)", message)
    if forbidden:
        return f"is not a plain weight file: it asks to call {forbidden[1]}; refused, nothing was executed"
    return "is damaged or not a PyTorch weight file"


def _state_dict(document: object, path: Path) -> dict[str, Tensor]:
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(document, dict) and isinstance(document.get(wrapper), dict):
            document = document[wrapper]
    if not isinstance(document, dict) or not document:
        raise CheckpointError(f"{path} holds no state dict (a dictionary of names and tensors)")
    for name, value in document.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: the entry {name!r} is not a tensor with a name")
        if value.layout != torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} claims more elements than the file stores; refused")
    return dict(document)
