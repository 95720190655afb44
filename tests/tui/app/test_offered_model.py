"""Weights that the app was started with, or that were opened, are what Generate runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from calc.sources import load_model
from engine.model.made_weights import random_weights
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
from tui.form.state import AppState, default_state
from tui.panes.generate import GeneratePane

pytestmark = pytest.mark.panes("generate")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    config = llama_config()
    return [str(write_gguf(tmp_path / f"{name}.gguf", config, random_weights(config))) for name in ("one", "two")]


def state_of(file: str) -> AppState:
    state = default_state()
    return replace(state, study=replace(state.study, model=load_model(file, any_storage=True)))


def model_of(app: KvscopeApp) -> str:
    pane = app.pane("generate")
    assert isinstance(pane, GeneratePane)
    return pane.form.model_text


async def test_the_file_of_the_command_line_is_offered(files: list[str]) -> None:
    app = KvscopeApp(state_of(files[0]), settings=Settings(), start_engine=False)
    async with app.run_test():
        assert model_of(app) == files[0]


async def test_one_that_is_opened_takes_its_place_but_not_that_of_a_chosen_one(files: list[str]) -> None:
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test():
        assert model_of(app) == ""
        for file in files:
            assert await app.open_model(file) is None
            assert model_of(app) == file
        pane = app.pane("generate")
        assert isinstance(pane, GeneratePane)
        pane.form.model_text = "own/choice"
        assert await app.open_model(files[0]) is None
        assert model_of(app) == "own/choice"


async def test_a_model_without_weights_here_is_not_offered(files: list[str]) -> None:
    gone = state_of(files[0])
    Path(files[0]).unlink()
    app = KvscopeApp(gone, settings=Settings(), start_engine=False)
    async with app.run_test():
        assert await app.open_model("deepseek-v3") is None  # its stored bytes are known, from elsewhere
        assert model_of(app) == ""
