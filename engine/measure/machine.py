"""Facts about the machine that a measurement is worth nothing without."""

import os
import platform
from pathlib import Path

import torch

from engine.model.decoder import Decoder
from engine.model.devices import device_name
from engine.process.events import Machine


def machine_facts(decoder: Decoder) -> Machine:
    """The processor, what torch may use of it, and the versions, at this moment."""
    return Machine(
        cpu=cpu_name(),
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        device=device_name(decoder.device),
        dtype=str(decoder.dtype).removeprefix("torch."),
        torch=str(torch.__version__),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
    )


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's own name for itself, or the platform's, or "unknown"."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or "unknown"


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
