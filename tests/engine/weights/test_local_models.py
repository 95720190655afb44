"""Models found where other tools keep them: names, what a request takes, sizes; nothing that cannot run."""

import json
from pathlib import Path

import pytest

from engine.model.made_weights import random_weights
from engine.weights.checkpoint import load_checkpoint
from engine.weights.local_models import MAX_ENTRIES, FoundModel, find_models, is_gguf
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config

GGUF = b"GGUF" + b"\0" * 96


def put(path: Path, data: bytes = GGUF) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def found(tmp_path: Path, **environment: str) -> list[FoundModel]:
    here = tmp_path / "here"
    here.mkdir(exist_ok=True)
    home = tmp_path / "home"
    return find_models({"HF_HOME": str(home / "hf"), **environment}, home=home, here=here)


def folder(path: Path, *, weights: bytes = b"12345") -> Path:
    put(path / "config.json", b"{}")
    put(path / "model.safetensors", weights)
    return path


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    assert found(tmp_path) == []


def test_files_and_folders_here(tmp_path: Path) -> None:
    put(tmp_path / "here/b.gguf")
    folder(tmp_path / "here/a-model")
    put(tmp_path / "here/models/deep.gguf")
    put(tmp_path / "here/one/two/too-deep.gguf")
    put(tmp_path / "here/.hidden/x.gguf")
    put(tmp_path / "here/mmproj-b.gguf")
    put(tmp_path / "here/big-00001-of-00002.gguf")
    put(tmp_path / "here/big-00002-of-00002.gguf")
    put(tmp_path / "here/only-config/config.json", b"{}")
    models = found(tmp_path)
    assert [(m.name, m.size_bytes, m.where) for m in models] == [
        ("a-model", 5, "this folder"),
        ("b", 100, "this folder"),
        ("big-00001-of-00002", 100, "this folder"),
        ("deep", 100, "this folder"),
    ]
    assert models[0].reference == str(tmp_path / "here/a-model")


def test_the_hugging_face_cache(tmp_path: Path) -> None:
    hub = tmp_path / "home/hf/hub"
    folder(hub / "models--Qwen--Qwen3-0.6B/snapshots/abcdef")
    put(hub / "models--org--quants-GGUF/snapshots/abcdef/small-Q4_0.gguf")
    put(hub / "models--org--empty/snapshots/abcdef/config.json", b"{}")
    put(hub / "datasets--org--text/snapshots/abcdef/x.gguf")
    assert [(m.name, m.reference, m.size_bytes) for m in found(tmp_path)] == [
        ("org/quants-GGUF small-Q4_0", str(hub / "models--org--quants-GGUF/snapshots/abcdef/small-Q4_0.gguf"), 100),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", 5),
    ]


def manifest(tmp_path: Path, name: str, digest: object) -> None:
    layers = [{"mediaType": "application/vnd.ollama.image.license"}, {"mediaType": MODEL_LAYER, "digest": digest}]
    put(tmp_path / "home/.ollama/models/manifests" / name, json.dumps({"layers": layers}).encode())


MODEL_LAYER = "application/vnd.ollama.image.model"


def test_ollama_by_its_manifests(tmp_path: Path) -> None:
    blobs = tmp_path / "home/.ollama/models/blobs"
    blob = put(blobs / f"sha256-{'a' * 64}")
    put(blobs / f"sha256-{'b' * 64}", b"not a model")
    manifest(tmp_path, "registry.ollama.ai/library/llama3.2/1b", f"sha256:{'a' * 64}")
    manifest(tmp_path, "registry.ollama.ai/library/broken/1b", f"sha256:{'b' * 64}")
    manifest(tmp_path, "registry.ollama.ai/library/evil/1b", "sha256:../../../etc/passwd")
    manifest(tmp_path, "registry.ollama.ai/library/odd/1b", 7)
    put(tmp_path / "home/.ollama/models/manifests/registry.ollama.ai/library/torn/1b", b"{")
    (model,) = found(tmp_path)
    assert model == FoundModel(name="llama3.2:1b", reference=str(blob), size_bytes=100, where="Ollama")


def test_ollama_elsewhere_and_of_somebody(tmp_path: Path) -> None:
    store = tmp_path / "store"
    put(store / f"blobs/sha256-{'c' * 64}")
    layers = [{"mediaType": MODEL_LAYER, "digest": f"sha256:{'c' * 64}"}]
    put(store / "manifests/registry.ollama.ai/somebody/m/q4", json.dumps({"layers": layers}).encode())
    assert [m.name for m in found(tmp_path, OLLAMA_MODELS=str(store))] == ["somebody/m:q4"]


def test_other_tools_and_folders_of_ones_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    put(home / ".lmstudio/models/pub/repo/s.gguf")
    put(tmp_path / "cache/llama.cpp/l.gguf")
    put(home / ".local/share/nomic.ai/GPT4All/g.gguf")
    mine = put(tmp_path / "mine/x/m.gguf")
    models = found(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"), KVSCOPE_MODELS=str(tmp_path / "mine"))
    assert [(m.name, m.where) for m in models] == [
        ("m", "KVSCOPE_MODELS"), ("s", "LM Studio"), ("l", "llama.cpp"), ("g", "GPT4All"),
    ]  # fmt: skip
    assert models[0].reference == str(mine)


def test_a_file_reached_two_ways_is_shown_once(tmp_path: Path) -> None:
    file = put(tmp_path / "mine/m.gguf")
    (tmp_path / "here").mkdir()
    (tmp_path / "here/link.gguf").symlink_to(file)
    assert [m.name for m in found(tmp_path, KVSCOPE_MODELS=str(tmp_path / "mine"))] == ["link"]


def test_a_huge_folder_is_not_read_to_its_end(tmp_path: Path) -> None:
    for i in range(MAX_ENTRIES + 5):
        put(tmp_path / f"here/{i:05}.gguf", b"")
    assert len(found(tmp_path)) <= MAX_ENTRIES


def test_gguf_by_name_or_by_its_first_bytes(tmp_path: Path) -> None:
    assert is_gguf(put(tmp_path / "a.gguf", b"")) is True
    assert is_gguf(put(tmp_path / "blob")) is True
    assert is_gguf(put(tmp_path / "text", b"hello")) is False
    assert is_gguf(put(tmp_path / "m.onnx")) is False
    assert is_gguf(tmp_path / "none") is False
    assert is_gguf(tmp_path) is False


def test_a_blob_without_a_suffix_loads(tmp_path: Path) -> None:
    config = llama_config()
    named = tmp_path / "m.gguf"
    write_gguf(named, config, random_weights(config))
    blob = named.rename(tmp_path / f"sha256-{'d' * 64}")
    assert load_checkpoint(blob).config.n_layers == config.n_layers


@pytest.mark.parametrize("name", ["KVSCOPE_MODELS", "OLLAMA_MODELS", "LLAMA_CACHE"])
def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path, name: str) -> None:
    assert found(tmp_path, **{name: str(tmp_path / "nowhere")}) == []
