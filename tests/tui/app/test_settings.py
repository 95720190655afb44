"""Settings: kept whole, read back exactly, and never a reason to fail."""

from __future__ import annotations

import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from calc.errors import SourceError
from calc.intensity.attention import Attention
from calc.model.cache_pair import cache_as, pair_format
from calc.model.named import named_format, weights_as
from calc.model.storage import parse_format
from calc.model.study import Policy, Study
from calc.sources.catalog import devices, find_device, find_model, models
from tests.each import each
from tui.app.settings import Remembered, Settings, load_settings, save_settings, settings_path
from tui.form.load import LoadAsked
from tui.form.serving import Serving
from tui.form.state import AppState, default_state

USUAL = default_state()
STATE = AppState(
    study=Study(
        model=find_model("qwen3-8b"),
        device=find_device("h100-sxm"),
        context=32768,
        weight_format=parse_format("q4_k"),
        kv_format=parse_format("0.5"),
        tps=(1, 3, 16),
        policy=Policy.REPLICATED,
    ),
    attention=Attention.FLASH,
    attention_context=4096,
    attention_head_dim=64,
    softmax_flops=0,
    load=LoadAsked(prompt="lognormal:800,0.7", prefix_hit=Fraction(1, 4), limits=(("e2e", 2.5),), arrivals="constant"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kvscope" / "settings.toml"


def test_what_is_saved_is_what_is_read(path: Path) -> None:
    settings = Settings(theme="nord", marker="dot", state=STATE)
    save_settings(path, settings)
    assert load_settings(path).settings == settings
    assert load_settings(path).problem is None
    assert [p.name for p in path.parent.iterdir()] == ["settings.toml"]


def test_changes_are_written_once_and_where_that_fails_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVSCOPE_CONFIG_DIR", str(tmp_path / "config"))
    kept = Remembered()
    assert (kept.settings, kept.problem, kept.folder) == (Settings(), "", tmp_path / "config")
    assert kept.write() == ""
    assert not (tmp_path / "config").exists()
    assert [kept.change(theme="nord"), kept.change(marker="dot")] == [True, False]
    assert kept.write() == ""
    assert Remembered().settings == Settings(theme="nord", marker="dot")
    (tmp_path / "config" / "settings.toml").unlink()
    (tmp_path / "config").rmdir()
    (tmp_path / "config").write_text("a file where the folder should be")
    assert kept.change(marker="hd")
    assert "File exists" in kept.write()
    assert kept.change(marker="braille")
    assert kept.write() == ""


def test_given_settings_are_neither_read_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSCOPE_CONFIG_DIR", str(tmp_path / "config"))
    kept = Remembered(Settings(theme="nord"))
    assert (kept.settings.theme, kept.folder) == ("nord", None)
    assert kept.change(theme="other")
    assert kept.write() == ""
    assert not (tmp_path / "config").exists()


@pytest.mark.parametrize("weights", ["Q4_K_M", "gguf-q8_0", "awq"])
def test_formats_worked_out_over_a_model_survive(path: Path, weights: str) -> None:
    model = STATE.study.model
    stored = weights_as(named_format(weights), model)
    study = replace(STATE.study, weight_format=stored, kv_format=cache_as(pair_format("q8_0/q4_0"), model))
    settings = Settings(state=replace(STATE, study=study))
    save_settings(path, settings)
    assert load_settings(path).settings == settings


@pytest.mark.slow
@each("name", [*models(), *devices()])
def test_the_whole_catalog_survives(path: Path, name: str) -> None:
    study = STATE.study
    study = replace(study, model=find_model(name)) if name in models() else replace(study, device=find_device(name))
    settings = Settings(state=replace(STATE, study=study))
    save_settings(path, settings)
    assert load_settings(path).settings == settings


def test_no_file_is_the_defaults_without_a_word(path: Path) -> None:
    loaded = load_settings(path)
    assert (loaded.settings, loaded.problem) == (Settings(), None)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"theme = ", "Invalid value"),
        (b"\xff\xfe", "codec can't decode"),
        (b"# " + b"x" * 2**20, "larger than 1 MiB"),
    ],
)
def test_a_broken_file_is_set_aside_and_reported(path: Path, content: bytes, reason: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    loaded = load_settings(path)
    assert loaded.settings == Settings()
    assert loaded.problem is not None
    assert reason in loaded.problem
    assert "\n" not in loaded.problem
    assert not path.exists()
    assert path.with_name("settings.toml.broken").read_bytes() == content


@pytest.mark.parametrize(
    ("old", "new", "lost"),
    [
        ("n_kv_heads = 8", "n_kv_heads = 5", "model"),
        ("context = 32768", "context = -1", "context"),
        ("n_layers = 36", "n_layers = true", "model"),
        ('policy = "replicated"', 'policy = "fair"', "policy"),
        ("block_elems = 256", "block_elems = 0", "weight_format"),
        ("attention_context = 4096", 'attention_context = "4096"', "attention_context"),
        ("memory_bytes", "memory_bites", "device"),
    ],
)
def test_one_bad_setting_costs_that_setting_alone(path: Path, old: str, new: str, lost: str) -> None:
    save_settings(path, Settings(theme="nord", state=STATE))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    loaded = load_settings(path)
    assert loaded.problem is not None
    assert loaded.problem.startswith(f"Ignored invalid settings: {lost} (")
    assert path.with_name("settings.toml.broken").read_text() == path.read_text()
    assert loaded.settings.theme == "nord"
    state, usual = loaded.settings.state, default_state()
    assert state is not None
    if lost == "attention_context":
        assert state == replace(STATE, attention_context=usual.attention_context)
    else:
        assert state == replace(STATE, study=replace(STATE.study, **{lost: getattr(usual.study, lost)}))


@pytest.mark.parametrize(
    ("content", "settings", "said"),
    [
        (b"theme = 3", Settings(), "theme must be a name, not 3"),
        (b'marker = "ink"\ntheme = "nord"', Settings(theme="nord"), "marker must be braille, hd, dot, not 'ink'"),
        (b"state = 1", Settings(), "state must be a table"),
        (
            b"[state]\ncontext = 5\n[state.serving]\ntp = 2\nload = 7",
            Settings(state=replace(USUAL, study=replace(USUAL.study, context=5), serving=Serving(tp=2))),
            "serving.load (the served load has an invalid value)",
        ),
        (
            b'[state.load]\ntp = "2"\nprompt = "some"\narrivals = "poisson"',
            Settings(state=replace(USUAL, load=LoadAsked(tp=2))),
            "load.prompt (",
        ),
    ],
)
def test_what_is_good_in_a_file_is_taken(path: Path, content: bytes, settings: Settings, said: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    loaded = load_settings(path)
    assert loaded.settings == settings
    assert loaded.problem is not None
    assert loaded.problem.startswith(f"Ignored invalid settings: {said}")


def test_keys_of_a_newer_version_are_ignored(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('theme = "nord"\nfuture = 1\n')
    assert load_settings(path).settings == Settings(theme="nord")


def test_a_failing_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_settings(path, Settings(theme="nord"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SourceError, match="No space left"):
        save_settings(path, Settings(theme="gruvbox"))
    assert load_settings(path).settings.theme == "nord"
    assert [p.name for p in path.parent.iterdir()] == ["settings.toml"]


def test_the_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVSCOPE_CONFIG_DIR", str(tmp_path))
    assert settings_path() == tmp_path / "settings.toml"
    monkeypatch.delenv("KVSCOPE_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert settings_path().name == "settings.toml"
    assert settings_path().parent.name == "kvscope"
