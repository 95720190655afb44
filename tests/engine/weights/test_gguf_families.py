"""GGUF files of every architecture: the logits of the folder that they were made from, and those of llama.cpp.

`test_huggingface.py` holds the folder's logits equal to transformers'. llama.cpp's were written by
bench/gguf_architectures.py, which runs it on the very same files.
"""

import json
from pathlib import Path

import pytest
import torch

from engine.families.gguf import ARCHITECTURES
from engine.weights.checkpoint import load_checkpoint
from engine.weights.formats import GroupedLinear, linear_layers
from tests.engine.gguf_conversion import CASES, GOLDEN, IDS, KEPT, converted, save_named, tolerance

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_a_file_gives_the_logits_of_its_folder_and_of_llama_cpp(name: str, tmp_path: Path) -> None:
    case, ids = CASES[name], torch.tensor([IDS])
    save_named(case, tmp_path)
    ours = load_checkpoint(converted(tmp_path, case), dtype="float64").decoder.forward(ids)
    if not case.own:
        folder = load_checkpoint(tmp_path, dtype="float64").decoder.forward(ids)
        torch.testing.assert_close(ours, folder, rtol=0, atol=max(5e-5, tolerance(case) / 10))  # float32 there: eps, ..
    theirs = torch.tensor(json.loads(GOLDEN.read_text())[name], dtype=torch.float64)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours[0, list(KEPT)], theirs, rtol=0, atol=tolerance(case))


@pytest.mark.parametrize("name", ["llama-fused", "qwen3-next", "qwen3-next-fused", "granite-moe", "gpt-neox", "glm4"])
def test_blocks_stay_blocks_where_rows_are_moved(name: str, tmp_path: Path) -> None:
    """Matrices that are taken apart or put into another order are kept as the file has them, and mean the same."""
    case = CASES[name]
    save_named(case, tmp_path)
    file = converted(tmp_path, case, kind="Q8_0")
    kept, wide = (load_checkpoint(file, dtype=dtype) for dtype in ("auto", "float32"))
    assert kept.is_mix
    assert {layer.parts[0].format for layer in linear_layers(kept.decoder) if isinstance(layer, GroupedLinear)} == {
        "int8"
    }
    ids = torch.tensor([IDS])
    torch.testing.assert_close(kept.decoder.forward(ids), wide.decoder.forward(ids), rtol=0, atol=2e-2)


def test_every_architecture_was_compared_with_llama_cpp() -> None:
    assert {case.architecture for case in CASES.values()} == set(ARCHITECTURES)
    assert set(json.loads(GOLDEN.read_text())) == set(CASES)
