"""Writes files completely or not at all, as `calc.files` does. No torch here."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import EngineError, OptionError


def check_writable(path: Path, field: str = "output") -> None:
    """Check before a long run that its result can be written. Raises OptionError."""
    with _told(path, field):
        folder = path.resolve().parent
        if path.is_dir():
            raise OptionError(field, f"cannot write {path}: it is a folder")
        if not folder.is_dir():
            raise OptionError(field, f"cannot write {path}: there is no folder {folder}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise OptionError(field, f"cannot write {path}: permission denied")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that no partial file is ever visible. If it raises OptionError, an old file stays.

    A path that is not a regular file (/dev/stdout, a named pipe) is written to, never replaced.
    """
    with _told(path, "output"):
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(path.resolve(), data)


def _replace(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".kvscope-")
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.write_bytes(data)
        temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        temporary.replace(target)
    except BaseException:
        temporary.unlink()
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _told(path: Path, field: str) -> Iterator[None]:
    """Turns an operating-system error into one sentence. A closed pipe (BrokenPipeError) is passed on."""
    try:
        yield
    except (EngineError, BrokenPipeError):
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise OptionError(field, f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
