"""Models by name: the local cache, the order of snapshots, downloads only when they can be had."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import CheckpointError, Stopped
from engine.model.made_weights import random_weights
from engine.process.events import Loaded
from engine.process.service import Service
from engine.records import Load, Progress
from engine.weights.checkpoint import load_checkpoint
from engine.weights.hub import cache_folder, cached_model, locate
from engine.weights.loading import REPORT_NS, Watch
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


@pytest.mark.parametrize(
    ("name", "why"),
    [("a\0b", "holds a character that no path has"), ("x" * 5000, "too long"), ("org/" + "x" * 5000, "too long")],
)
def test_what_no_file_can_be_called_is_refused(name: str, why: str) -> None:
    with pytest.raises(CheckpointError, match=why) as caught:
        locate(name)
    assert len(str(caught.value)) < 200


def test_one_of_several_is_chosen_by_tag_or_name(hub: Path) -> None:
    snapshot = put(hub, NEW, "small-Q4_K.gguf")
    for name in ("small-Q4_K_M.gguf", "small.Q8_0.gguf", "other.q8_0.gguf"):
        (snapshot / name).write_bytes(b"")
    assert locate("org/small-1.5:Q4_K_M") == locate("org/small-1.5:q4_k_m") == snapshot / "small-Q4_K_M.gguf"
    assert locate("org/small-1.5:Q4_K") == locate("org/small-1.5/small-Q4_K.gguf") == snapshot / "small-Q4_K.gguf"
    with pytest.raises(CheckpointError, match=r"Q8_0 means several .* name one of them: other.q8_0.gguf, small.Q8_0"):
        locate("org/small-1.5:Q8_0")
    with pytest.raises(CheckpointError, match=r"org/small-1.5 is neither .* HF_HUB_OFFLINE is set"):
        locate("org/small-1.5:Q2_K")
    assert locate("org/../small-Q4_K.gguf") == Path("org/../small-Q4_K.gguf")  # no name of the hub's


# --- downloads: a stand-in for huggingface_hub, whose parts are called as version 2 calls them -------------


class FakeHub:
    """A repository of files by name and size, "fetched" in halves into a folder; two bars count, as the hub's."""

    def __init__(self, folder: Path, files: dict[str, int]) -> None:
        self.folder = folder
        self.files = files
        self.fetched: list[str] = []
        self.between: Callable[[], None] = lambda: None

    def HfApi(self) -> "FakeHub":  # noqa: N802 (its name there)
        return self

    def model_info(self, name: str, *, files_metadata: bool) -> SimpleNamespace:
        assert files_metadata
        siblings = [SimpleNamespace(rfilename=file, size=size) for file, size in self.files.items()]
        return SimpleNamespace(siblings=siblings)

    def snapshot_download(self, name: str, *, allow_patterns: list[str], tqdm_class: Any) -> str:
        received = tqdm_class(desc="Downloading bytes", total=0, initial=0, unit="B", unit_scale=True, bar_format="")
        written = tqdm_class(desc="Reconstructing", total=0, initial=0, unit="B", unit_scale=True, bar_format="")
        with tqdm_class(desc="Fetching files", total=len(allow_patterns)) as counted:
            for file in allow_patterns:
                received.total = (received.total or 0) + self.files[file]
                received.refresh()
                for bar in (received, written) * 2:
                    bar.update(self.files[file] // 2)
                    self.between()
                self.fetched.append(file)
                counted.update(1)
        received.set_description_str("Download complete")
        return str(self.folder)


@pytest.fixture
def fake(hub: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(hub / "fetched", {})
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    made.folder.mkdir(parents=True)
    return made


def test_safetensors_are_fetched_once_with_what_belongs_to_them(fake: FakeHub) -> None:
    wanted = {"model-1.safetensors": 100, "config.json": 2, "chat_template.jinja": 2, "tokenizer.json": 4}
    more = {"consolidated.safetensors": 100, "m.Q4_0.gguf": 50, "pytorch_model.bin": 100, "onnx/config.json": 2}
    fake.files = wanted | more | {"README.md": 2}
    assert locate("org/new") == fake.folder
    assert sorted(fake.fetched) == sorted(wanted)


def test_a_repository_of_gguf_alone_gives_its_file(fake: FakeHub) -> None:
    fake.files = {"m.gguf": 100, "mmproj-m.gguf": 60, "config.json": 2}
    assert locate("org/new") == fake.folder / "m.gguf"
    assert fake.fetched == ["m.gguf"]


def test_of_several_gguf_files_one_is_named(fake: FakeHub) -> None:
    fake.files = {"m-Q4_K_M.gguf": 100, "m-Q8_0.gguf": 200, "x/m-F16.gguf": 400, "model.safetensors": 800}
    assert locate("org/new:Q4_K_M") == fake.folder / "m-Q4_K_M.gguf"
    assert locate("org/new/x/m-F16.gguf") == fake.folder / "x/m-F16.gguf"
    assert fake.fetched == ["m-Q4_K_M.gguf", "x/m-F16.gguf"]
    del fake.files["model.safetensors"]
    several = r"org/new has several GGUF files; name one, as in org/new:Q4_K_M .*: m-Q4_K_M.gguf, m-Q8_0.gguf, x/m-F16"
    with pytest.raises(CheckpointError, match=several):
        locate("org/new")
    with pytest.raises(CheckpointError, match=r"Q2_K means none of the GGUF files of org/new; .*: m-Q4_K_M.gguf"):
        locate("org/new:Q2_K")
    fake.files = {"pytorch_model.bin": 1}
    with pytest.raises(CheckpointError, match="org/new has neither safetensors nor GGUF files to download"):
        locate("org/new")
    with pytest.raises(CheckpointError, match="org/new has no GGUF files to download"):
        locate("org/new:Q8_0")


def test_bytes_of_a_download_are_reported_and_nothing_is_drawn(
    fake: FakeHub, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.files = {"model.safetensors": 100, "config.json": 20}
    told: list[Progress] = []
    ticks = iter(range(0, 10**12, REPORT_NS))
    locate("org/new", Watch("new", report=told.append, clock_ns=lambda: next(ticks)))
    assert {(event.stage, event.detail, event.total) for event in told[1:]} == {("load", "downloading new", 120)}
    done = [event.done for event in told[1:]]
    assert done == [50, 50, 100, 100, 110, 110, 120, 120, 120]
    assert capfd.readouterr() == ("", "")


def test_a_download_can_be_stopped(fake: FakeHub) -> None:
    fake.files = {"model.safetensors": 100, "config.json": 20}
    stop: list[bool] = []
    fake.between = lambda: stop.append(True)
    with pytest.raises(Stopped):
        locate("org/new", Watch("new", should_stop=lambda: bool(stop)))
    assert fake.fetched == []


def test_a_model_is_downloaded_and_loaded_with_one_line_of_progress(fake: FakeHub) -> None:
    config = llama_config(hidden_size=32)
    file = write_gguf(fake.folder / "m.gguf", config, random_weights(config))
    fake.files = {"m.gguf": file.stat().st_size}
    *told, loaded = Service().answer(Load(model="org/new", compile="off"))
    assert isinstance(loaded, Loaded)
    details = [event.detail for event in told if isinstance(event, Progress)]
    assert details == ["new", "downloading new", "new"]


def test_downloads_need_the_extra_and_the_network(fake: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, **options: Any) -> str:
        raise ConnectionError(f"no route to the hub for {name}")

    fake.files = {"m.gguf": 1}
    monkeypatch.setattr(fake, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="cannot be downloaded: no route to the hub for org/none"):
        locate("org/none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"to download models, install kvscope\[hub\]"):
        locate("org/none")
