"""The models on this machine, offered where the engine is asked for one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import OptionList

from calc.model.stored import StoredWeights
from engine.process.events import Generate
from engine.weights.local_models import FoundModel
from tests.tui.live_engine import live_app, open_pane, until
from tui.live.load_memory import forecast, stored_bytes, weight_bytes
from tui.live.predict import read_spec
from tui.panes.benchmark import BenchmarkPane
from tui.panes.generate import GeneratePane
from tui.widgets.model_files import BUNDLED, BY_PATH, model_files
from tui.widgets.option import Option
from tui.widgets.path_bar import PathBar
from tui.widgets.picker import Picker

pytestmark = pytest.mark.panes("generate", "benchmark")

FOUND = [
    FoundModel(name="Qwen/Qwen3-0.6B", reference="Qwen/Qwen3-0.6B", size_bytes=1_503_300_328, where="Hugging Face"),
    FoundModel(name="llama3.2:1b", reference="/o/blobs/sha256-1", size_bytes=1_321_082_688, where="Ollama"),
]
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
    "intermediate_size": 96, "vocab_size": 50, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two models, the only ones to be found."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS", "LLAMA_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KVSCOPE_MODELS", str(tmp_path / "mine"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("alpha", "beta"):
        (folder / f"{name}.gguf").write_bytes(b"GGUF" + bytes(1000))
    return folder


def test_the_list_has_the_bundled_model_a_path_and_what_is_found() -> None:
    pick = model_files(FOUND)
    assert [choice.key for choice in pick.search("")] == [BUNDLED, BY_PATH, "Qwen/Qwen3-0.6B", "/o/blobs/sha256-1"]
    assert [choice.cells for choice in pick.search("ollama 1B")] == [("llama3.2:1b", "1.32 GB", "Ollama")]
    assert pick.search("nothing") == []
    preview = pick.search("qwen")[0].preview()
    assert preview.startswith("Qwen/Qwen3-0.6B\n1.50 GB on disk")
    assert pick.custom("./m.gguf") == "./m.gguf"
    assert pick.custom("qwen") is None


async def choose(pilot: Pilot[None], *keys: str) -> None:
    await pilot.press("f9")
    await until(pilot, lambda: isinstance(pilot.app.screen, Picker))
    await pilot.press(*keys)
    await until(pilot, lambda: not isinstance(pilot.app.screen, Picker))


@pytest.mark.slow
async def test_f9_offers_models_even_from_the_prompt(models: Path) -> None:
    async with live_app().run_test(size=(120, 40)) as pilot:
        pane = await open_pane(pilot, "f7", GeneratePane)
        option = pane.query_one("#option-model", Option)
        await choose(pilot, *"beta", "enter")
        assert option.text == str(models / "beta.gguf")
        await choose(pilot, "escape")
        assert option.text == str(models / "beta.gguf")
        await pilot.press("f9")
        await until(pilot, lambda: isinstance(pilot.app.screen, Picker))
        highlighted = pilot.app.screen.query_one("#choices", OptionList).highlighted
        assert highlighted == 3  # the present one: after the bundled one, a path, and alpha
        await pilot.press("escape")
        await choose(pilot, "up", "up", "up", "enter")
        assert option.text == ""
        await pilot.press("enter")
        await until(pilot, lambda: pane.run is not None and pane.run.over)
        assert pane.run is not None
        assert pane.run.request.model is None


@pytest.mark.slow
async def test_a_path_can_be_typed_with_completion(models: Path) -> None:
    async with live_app().run_test(size=(80, 24)) as pilot:
        pane = await open_pane(pilot, "f8", BenchmarkPane)
        await choose(pilot, "down", "enter")
        bar = pilot.app.screen.query_one(PathBar)
        await until(pilot, lambda: bar.is_open)
        await pilot.press(*str(models / "al"), "tab", "enter")
        await until(pilot, lambda: not bar.is_open)
        assert pane.query_one("#option-model-model", Option).text == str(models / "alpha.gguf")
        assert pane.query_one("#benchmark-sweep").is_on_screen


def test_what_a_model_will_take_is_said_before_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    spec = read_spec(str(tmp_path))
    assert spec is not None
    embedding, layer = 50 * 64, 4 * 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert weight_bytes(spec, "bfloat16") == 2 * (embedding + 2 * layer + 64)
    monkeypatch.setattr("tui.live.load_memory.available_bytes", lambda: 1000)
    sure = forecast(Generate(prompt="x", model=str(tmp_path), dtype="bfloat16"), None)
    assert "about 146.30 kB of weights, 45.18 MB with cache and engine, 1.00 kB of memory free: it will not fit" in sure
    unsure = forecast(Generate(prompt="x", model=str(tmp_path), tp=2), None)
    assert "at most 292.61 kB of weights on 2 ranks, 240.36 MB with cache and engine" in unsure
    assert unsure.endswith("1.00 kB of memory free: it may not fit")
    assert forecast(Generate(prompt="x"), None) == ""

    snapshot = tmp_path / "hub/models--org--tiny/snapshots/abcdef"
    snapshot.mkdir(parents=True)
    (tmp_path / "config.json").rename(snapshot / "config.json")
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "at most 292.61 kB" in forecast(Generate(prompt="x", model="org/tiny"), None)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [
        ("file (Q8_0, F32)", 1003.0),
        ("file (Q4_K, Q6_K, F32)", 1003.0),
        ("file (F16, F32)", 1003.0),
        ("file (BF16, F32)", 292_608.0),  # at most: a small model is widened
    ],
)
def test_a_files_blocks_are_kept_as_they_are(stored: str, kept: float, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    spec = read_spec(str(tmp_path))
    assert spec is not None
    assert stored_bytes(spec) is None
    facts = StoredWeights(name=stored, split_bytes=1000, kv_bytes=1, whole_bytes=2)
    assert weight_bytes(replace(spec, stored=facts), "auto") == kept
