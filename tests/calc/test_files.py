"""calc.files: written whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from calc.errors import SourceError
from calc.files import check_writable, replacing, write_whole
from tests.patience import PATIENCE_S


def test_write_and_replace(tmp_path):
    target = tmp_path / "out.txt"
    write_whole(target, "one\n")
    target.chmod(0o640)
    write_whole(target, "two ²\n")
    assert target.read_text(encoding="utf-8") == "two ²\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["out.txt"]


def test_new_files_follow_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", "x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SourceError, match=r"^cannot write .*out: No space left"):
        write_whole(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


def test_what_cannot_be_encoded_leaves_nothing(tmp_path):
    with pytest.raises(SourceError, match="surrogates"):
        write_whole(tmp_path / "out", "\udcff")
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_into_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    write_whole(pipe, "through\n")
    reader.join(timeout=PATIENCE_S)
    assert received == ["through\n"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("name", ["missing/out", "file/out", ".", "x" * 300])
def test_impossible_targets(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SourceError, match=r"^cannot write "):
        write_whole(tmp_path / name, "text")
    assert (tmp_path / "file").read_text() == "kept"
    assert os.listdir(tmp_path) == ["file"]


def test_a_long_but_legal_name(tmp_path):
    write_whole(tmp_path / ("x" * 255), "text")
    assert Path(tmp_path / ("x" * 255)).read_text() == "text"


def test_a_stream_that_breaks_off_leaves_the_old(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")

    def write_half():
        with replacing(target) as out:
            out.write("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(("name", "said"), [(".", "it is a folder"), ("no/such/out", "there is no folder")])
def test_refused_before_the_work(tmp_path, name, said):
    with pytest.raises(SourceError, match=said):
        check_writable(tmp_path / name)
    check_writable(tmp_path / "new")
