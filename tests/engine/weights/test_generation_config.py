"""generation_config.json: what a model's makers suggest, and what of it is used."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.model.generate import GenerationOptions
from engine.weights.generation_config import ModelSampling, model_sampling, read_generation_config


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}, "temperature 0.6, top-k 20, top-p 0.95"),
        ({"do_sample": True}, "temperature 1"),
        ({"temperature": 0.7, "repetition_penalty": 1.05, "top_p": 1.0}, "temperature 0.7, repetition-penalty 1.05"),
        ({"do_sample": False, "temperature": 0.7}, ""),
        ({"do_sample": True, "temperature": "warm", "top_k": 0, "min_p": 0.0}, "temperature 1"),
        ({"do_sample": True, "temperature": 0, "top_p": 0.9}, ""),
        ({"do_sample": True, "top_k": 10**400, "temperature": 10**400}, "temperature 1"),
        ({}, ""),
    ],
)
def test_what_is_suggested(document: dict[str, Any], text: str) -> None:
    assert model_sampling(document).text == text


def test_options_that_are_stated_win(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": True, "temperature": 0.6, "top_k": 20}))
    suggested = model_sampling(read_generation_config(tmp_path))
    filled = suggested.fill(GenerationOptions(top_k=5, top_p=0.9))
    assert (filled.temperature, filled.top_k, filled.top_p) == (0.6, 5, 0.9)
    assert ModelSampling().fill(GenerationOptions()) == GenerationOptions()
