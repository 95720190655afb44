"""The two writers of files, calc's for text and the engine's for bytes: the same files, the same sentences."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

import calc.files
import engine.files
from calc.errors import CalcError
from engine.errors import EngineError


def written(path: Path) -> list[str]:
    """What the two writers and the two checks say, "" where nothing is refused."""
    said = []
    for act in (
        lambda: calc.files.check_writable(path),
        lambda: engine.files.check_writable(path),
        lambda: calc.files.write_whole(path, "text"),
        lambda: engine.files.write_whole(path, b"text"),
    ):
        try:
            act()
            said.append("")
        except (CalcError, EngineError) as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize("name", ["missing/out", "file/out", ".", "x" * 300, "\0"])
def test_refusals_are_alike_and_leave_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    early, early_engine, late, late_engine = written(tmp_path / name)
    assert (early, late) == (early_engine, late_engine)
    assert late.startswith("cannot write ")
    assert (tmp_path / "file").read_text() == "kept"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["out", "x" * 255])
def test_files_are_alike(name: str, tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        modes = []
        for act in (lambda p: calc.files.write_whole(p, "text"), lambda p: engine.files.write_whole(p, b"text")):
            (tmp_path / name).unlink(missing_ok=True)
            act(tmp_path / name)
            assert (tmp_path / name).read_text() == "text"
            modes.append(stat.S_IMODE((tmp_path / name).stat().st_mode))
    finally:
        os.umask(mask)
    assert modes == [0o640, 0o640]
    assert os.listdir(tmp_path) == [name]
