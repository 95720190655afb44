"""Where a model runs: devices by name, one device per rank, and synchronisation with a GPU."""

import torch

from engine.errors import OptionError
from engine.records import Device


def pick_device(name: Device | str) -> torch.device:
    """The device by name; "auto" is cuda where torch sees one, else cpu. Raises OptionError: unknown or absent."""
    if name not in ("auto", "cpu", "cuda"):
        raise OptionError("device", f'device "{name}" is not known; use auto, cpu or cuda')
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device", "device cuda was requested, but torch finds no CUDA device; use cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def check_devices(device: torch.device, tp: int) -> None:
    """Raise OptionError where ``tp`` ranks would have to share a GPU, which nccl refuses."""
    if device.type == "cuda" and tp > torch.cuda.device_count():
        seen = torch.cuda.device_count()
        raise OptionError(
            "tp", f"tp {tp} needs {tp} CUDA devices, one per rank, but torch finds {seen}; use device cpu"
        )


def rank_device(name: Device | str, local_rank: int) -> torch.device:
    """A rank's own device: the GPU of its number on this machine, which becomes the current one. Raises OptionError."""
    device = pick_device(name)
    if device.type != "cuda":
        return device
    check_devices(device, local_rank + 1)
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all queued work: a GPU runs asynchronously to Python."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """For people: "cpu", or "cuda" and the name of the GPU."""
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
