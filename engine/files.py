"""Files written whole or not at all. No torch here."""

import contextlib
import os
from pathlib import Path

from engine.errors import OptionError


def check_writable(path: Path, field: str = "output") -> None:
    """Raise `OptionError` for a path that a long run would end at in vain."""
    folder = path.resolve().parent
    if path.is_dir():
        raise OptionError(field, f"cannot write {path}: it is a folder")
    if not folder.is_dir():
        raise OptionError(field, f"cannot write {path}: there is no folder {folder}")
    if not os.access(folder if not path.exists() else path, os.W_OK):
        raise OptionError(field, f"cannot write {path}: permission denied")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file through a temporary one beside it. Raises OptionError; an old file then stays as it was."""
    target = path.resolve()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if target.exists() and not target.is_file():  # a pipe or /dev/stdout: cannot be replaced, only written
            target.write_bytes(data)
            return
        try:
            temporary.write_bytes(data)
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o7777)
            temporary.replace(target)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OptionError("output", f"cannot write {path}: {error.strerror or error}") from None
