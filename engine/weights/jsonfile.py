"""Read a JSON file that a user named, with a size limit; errors are one sentence."""

import json
from pathlib import Path

import msgspec

from engine.errors import InputError
from engine.weights.pointers import NOT_FETCHED, is_pointer

MAX_CONFIG_BYTES = 64 << 20
"""Size limit of the small files beside a model's weights."""
_MAX_BYTES = 1 << 30


def read_json(path: Path, error: type[InputError], *, max_bytes: int = _MAX_BYTES) -> object:
    """The document in ``path``. Raises ``error`` when it is absent, unreadable, too large or not JSON."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise error(f"{path} is {size:,} bytes; at most {max_bytes:,} are read")
        data = path.read_bytes()
        if is_pointer(data):
            raise error(f"{path} is not JSON: {NOT_FETCHED}")
        document = _decoded(data)
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise error(f"{path} is not JSON: {reason}") from None
    except ValueError:  # a path with a zero byte or a lone surrogate
        raise error(f"{str(path)!r} is not a path") from None
    return document


def _decoded(data: bytes) -> object:
    """Decode JSON, with the extensions that Python writes: NaN and Infinity, and a byte order mark."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        if not data.startswith(b"\xef\xbb\xbf") and not any(word in data for word in (b"NaN", b"Infinity")):
            raise
    try:
        document: object = json.loads(data.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise msgspec.DecodeError(str(error)) from None
    return document
