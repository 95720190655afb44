"""What Git LFS leaves in place of a file is named as that, whichever file it stands for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import CheckpointError, TokenizerError
from engine.weights.files import read_source
from engine.weights.jsonfile import read_json
from engine.weights.tokenizer import Tokenizer
from tests.each import each

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 14500438\n"


def read_as_json(path: Path) -> object:
    return read_json(path, TokenizerError)


READERS: dict[str, Callable[[Path], object]] = {
    "m.gguf": read_source, "m.pt": read_source, "m.bin": read_source, "m.safetensors": read_source,
    "tokenizer.json": Tokenizer.from_file, "tokenizer_config.json": read_as_json,
}  # fmt: skip


@each("name", READERS)
def test_a_pointer_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match="it is a pointer of Git LFS, not the file itself; fetch that"):
        READERS[name](tmp_path / name)
