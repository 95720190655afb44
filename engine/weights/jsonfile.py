"""Reading a JSON file that a user named: bounded, and refused in one sentence."""

from pathlib import Path

import msgspec

from engine.errors import InputError

MAX_CONFIG_BYTES = 64 << 20
"""Of the small files beside a model's weights."""
_MAX_BYTES = 1 << 30


def read_json(path: Path, error: type[InputError], *, max_bytes: int = _MAX_BYTES) -> object:
    """The document in ``path``. Raises ``error`` when it is absent, unreadable, too large or not JSON."""
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise error(f"{path} is {size:,} bytes; at most {max_bytes:,} are read")
        document: object = msgspec.json.decode(path.read_bytes())
    except OSError as reason:
        raise error(f"{path} cannot be read: {reason.strerror or reason}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as reason:
        raise error(f"{path} is not JSON: {reason}") from None
    return document
