"""Reading files up to a size limit, and writing them completely or not at all. calc and the front ends share this
writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from calc.errors import CalcError, SourceError


def read_bounded(file: Path, *, limit: int, what: str = "a description of a model") -> bytes:
    """All bytes of a regular file of at most `limit` bytes: `what`. Raises SourceError that starts with the path."""
    try:
        if not file.is_file():
            raise SourceError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
        with file.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(data) > limit:
        raise SourceError(f"{file}: larger than {limit // 2**20} MiB, so not {what}")
    return data


def check_writable(path: Path) -> None:
    """Check before long work that its result can be written. Raises SourceError."""
    with _told(path):
        folder = path.resolve().parent
        if path.is_dir():
            raise SourceError(f"cannot write {path}: it is a folder")
        if not folder.is_dir():
            raise SourceError(f"cannot write {path}: there is no folder {folder}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise SourceError(f"cannot write {path}: permission denied")


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that no partial file is ever visible. If it raises SourceError, an old file stays."""
    with replacing(path) as out:
        out.write(text)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A stream into a temporary file next to `path`, which replaces it at the end. Raises SourceError.

    A path that is not a regular file (/dev/stdout, a named pipe) is written to, never replaced. A link keeps pointing
    to its file, and an old file keeps its permissions. If writing fails, nothing is left behind.
    """
    with _told(path):
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8") as out:
                yield out
        else:
            with _beside(path.resolve()) as out:
                yield out


@contextmanager
def _beside(target: Path) -> Iterator[TextIO]:
    import tempfile

    handle, name = tempfile.mkstemp(dir=target.parent, prefix=".kvscope-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            yield out
        os.chmod(name, target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns an operating-system error into one sentence. A closed pipe (BrokenPipeError) is passed on."""
    try:
        yield
    except (CalcError, BrokenPipeError):
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
