"""The file with this machine's measurement: written completely or not at all, and used only while it is valid.

calc reads the same file as a device (`calc.sources.machine`). No torch here.
"""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import platformdirs

from engine.errors import EngineError
from engine.files import write_whole
from engine.machine import cpu_name, usable_cores
from engine.measure.machine_result import MachineResult

FILE_NAME = "machine.json"
SCHEMA = 1
MAX_BYTES = 2**20
MAX_DAYS = 90
"""Days after which it is measured again: systems and settings change."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """An earlier measurement, or a sentence on why it cannot be used; empty if there never was one."""

    result: MachineResult | None
    problem: str = ""


def machine_path() -> Path:
    """Where it is kept: KVSCOPE_MACHINE, else in KVSCOPE_CACHE, else in the user's cache folder."""
    if chosen := os.environ.get("KVSCOPE_MACHINE"):
        return Path(chosen)
    return Path(os.environ.get("KVSCOPE_CACHE") or platformdirs.user_cache_dir("kvscope")) / FILE_NAME


def versions() -> dict[str, str]:
    """What the figures depend on besides the processor."""
    return {"torch": _version("torch"), "kvscope": _version("kvscope"), "python": platform.python_version()}


def keep(result: MachineResult, path: Path) -> MachineResult:
    """Write a measurement; the same with where it is kept, or with a note on why it is not."""
    placed = msgspec.structs.replace(result, kept_in=str(path))
    record = {"schema": SCHEMA, **msgspec.to_builtins(placed)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    except (OSError, EngineError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        note = f"The measurement could not be saved in {path} ({reason}), so --device this is not available."
        return msgspec.structs.replace(result, notes=(*result.notes, note))
    return placed


def read_earlier(path: Path, *, now: datetime | None = None) -> Earlier:
    """The measurement in a file, if it is still one of this machine."""
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return Earlier(None)
    except OSError as error:
        return Earlier(None, f"{path} cannot be read ({error.strerror or error})")
    try:
        if len(data) > MAX_BYTES:
            raise ValueError("it is too large")
        result = msgspec.json.decode(data, type=MachineResult)
        reason = _outdated(result, now or datetime.now(UTC))
    except (ValueError, TypeError, RecursionError):  # msgspec's errors are ValueErrors; dates without a zone TypeErrors
        return Earlier(None, f"{path} is damaged")
    return Earlier(result) if not reason else Earlier(None, reason)


def _outdated(result: MachineResult, now: datetime) -> str:
    """Why a measurement does not hold any more; empty where it does. Raises ValueError for a date that is none."""
    days = (now - datetime.fromisoformat(result.measured_at)).days
    if result.cpu != cpu_name() or result.cores != usable_cores():
        return f"the saved measurement is for another processor ({result.cpu}, {result.cores} cores)"
    changed = [name for name, value in versions().items() if result.versions.get(name) != value]
    if changed:
        return (
            f"the saved measurement is for another version of {changed[0]} "
            f"({result.versions.get(changed[0], 'unknown')})"
        )
    return f"the saved measurement is {days} days old" if days > MAX_DAYS else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
