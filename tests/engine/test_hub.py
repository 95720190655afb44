"""Models by name: the local cache, the order of snapshots, downloads only when they can be had."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.checkpoint import load_checkpoint
from engine.errors import CheckpointError
from engine.hub import cache_folder, cached_model, locate
from engine.model import random_weights
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config

NEW, OLD = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def put(hub: Path, commit: str, file: str = "model.safetensors") -> Path:
    snapshot = hub / "models--org--small-1.5" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / file).write_bytes(b"")
    return snapshot


def point(hub: Path, commit: str) -> None:
    refs = hub / "models--org--small-1.5" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(commit + "\n")


def test_where_the_cache_is() -> None:
    assert cache_folder({"HF_HUB_CACHE": "/x/y", "HF_HOME": "/z"}) == Path("/x/y")
    assert cache_folder({"HF_HOME": "/z"}) == Path("/z/hub")
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert cache_folder({}) == Path.home() / ".cache/huggingface/hub"


def test_main_decides_between_snapshots(hub: Path) -> None:
    assert cached_model("org/small-1.5") is None
    old, new = put(hub, OLD), put(hub, NEW)
    point(hub, OLD)
    assert locate("org/small-1.5") == old
    (hub / "models--org--small-1.5/refs/main").write_text(NEW)
    assert locate("org/small-1.5") == new


def test_a_snapshot_without_weights_does_not_count(hub: Path) -> None:
    put(hub, NEW, "config.json")
    old = put(hub, OLD)
    point(hub, NEW)
    assert locate("org/small-1.5") == old


def test_a_reference_that_points_elsewhere_is_not_followed(hub: Path) -> None:
    point(hub, "../../..")
    assert cached_model("org/small-1.5") is None


def test_a_model_by_name_is_loaded(hub: Path) -> None:
    config = llama_config(hidden_size=32)
    snapshot = put(hub, NEW, "readme.gguf")
    (snapshot / "readme.gguf").unlink()
    write_gguf(snapshot / "small-f32.gguf", config, random_weights(config))
    loaded = load_checkpoint("org/small-1.5")
    assert loaded.config.hidden_size == 32
    write_gguf(snapshot / "small-other.gguf", config, random_weights(config))
    with pytest.raises(CheckpointError, match=r"several models; name one of them: small-f32.gguf, small-other.gguf"):
        load_checkpoint("org/small-1.5")


def test_offline_says_so(hub: Path) -> None:
    with pytest.raises(CheckpointError, match=r"org/none is neither a file nor in .*hub.*HF_HUB_OFFLINE is set"):
        load_checkpoint("org/none")


def test_a_missing_file_is_a_missing_file(hub: Path) -> None:
    for name in ("models/m.safetensors", "tests/absent"):
        with pytest.raises(CheckpointError, match=f"{name} does not exist"):
            load_checkpoint(name)


def test_downloads_need_the_extra_and_the_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"to download models, install kvscope\[hub\]"):
        locate("org/none")

    def fail(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError(f"no route to the hub for {name}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=fail))
    with pytest.raises(CheckpointError, match="cannot be downloaded: no route to the hub for org/none"):
        locate("org/none")
    snapshot = put(hub, NEW)
    found = SimpleNamespace(snapshot_download=lambda name, allow_patterns: str(snapshot))
    monkeypatch.setitem(sys.modules, "huggingface_hub", found)
    assert locate("org/elsewhere") == snapshot
