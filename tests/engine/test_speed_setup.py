"""bench/speed_setup.py: the float32 file is the same model; llama.cpp is built once, or why not is said."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bench.speed_setup import Shape, bytes_read, elements_read, float32_file, llama_python, random_file
from engine.compiled.attach import unsupported
from engine.model.made_weights import random_weights
from engine.weights.checkpoint import load_checkpoint
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config


def test_the_float32_file_is_the_same_model(tmp_path: Path) -> None:
    config = llama_config(hidden_size=64, intermediate_size=96, head_dim=16)
    metadata = {"tokenizer.ggml.pre": "smollm", "x.list": [1.5, 2.0]}
    source = write_gguf(tmp_path / "m.gguf", config, random_weights(config), kind="Q4_1", metadata=metadata)
    target = float32_file(source, tmp_path)
    assert target == tmp_path / "m.F32.gguf"
    ids = torch.tensor([[3, 1, 4]])
    one, two = (load_checkpoint(path, dtype="float32") for path in (source, target))
    assert torch.equal(one.decoder.forward(ids), two.decoder.forward(ids))
    assert one.config == two.config
    assert bytes_read(target) == 4 * (one.decoder.n_parameters - 29 * 64)  # a head of its own: no table
    made = target.stat().st_mtime_ns
    assert float32_file(source, tmp_path).stat().st_mtime_ns == made


def test_random_weights_are_a_model_that_has_the_compiled_step(tmp_path: Path) -> None:
    file = random_file(tmp_path, Shape(hidden=256, inner=512, n_layers=2, vocab_size=96))
    model = load_checkpoint(file, dtype="bfloat16")
    layer = 2 * 256 * 256 + 2 * 64 * 256 + 3 * 256 * 512
    assert elements_read(file) == 96 * 256 + 2 * layer + 256 + 2 * 2 * 256 + 32  # norms, and a factor for each pair
    assert bytes_read(file) == 2 * (96 * 256 + 2 * layer) + 4 * (5 * 256 + 32)
    assert (model.config.n_heads, model.config.n_kv_heads, model.config.tied) == (4, 1, True)
    assert unsupported(model.decoder) is None
    assert random_file(tmp_path) == file  # not made again


class FakePip:
    """Stands for the commands that would make an environment."""

    def __init__(self, folder: Path, *, fails: str = "") -> None:
        self.commands: list[Sequence[str]] = []
        self._python, self._fails = folder / "llama/bin/python", fails

    def __call__(self, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        self.commands.append(command)
        failed = bool(self._fails) and self._fails in command
        if "venv" in command and not failed:
            self._python.parent.mkdir(parents=True, exist_ok=True)
            self._python.touch()
        return subprocess.CompletedProcess(command, int(failed), "", "no compiler was found" if failed else "")


def test_llama_cpp_is_built_once_and_said_before(tmp_path: Path) -> None:
    pip, said = FakePip(tmp_path), list[str]()
    python = llama_python(tmp_path, run=pip, say=said.append)
    assert python == tmp_path / "llama/bin/python"
    assert [command[1:3] for command in pip.commands] == [["-m", "venv"], ["-m", "pip"]]
    assert "llama-cpp-python" in pip.commands[1]
    assert "10 to 20 minutes" in said[0]
    assert llama_python(tmp_path, run=pip, say=said.append) == python
    assert len(said) == 1
    assert pip.commands[2:] == [[str(python), "-c", "import llama_cpp"]]


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_build_that_fails_is_said(step: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"llama-cpp-python could not be built: no compiler was found"):
        llama_python(tmp_path, run=FakePip(tmp_path, fails=step), say=lambda text: None)


def test_an_environment_without_llama_cpp_is_built_anew(tmp_path: Path) -> None:
    llama_python(tmp_path, run=FakePip(tmp_path), say=lambda text: None)
    pip = FakePip(tmp_path, fails="import llama_cpp")
    llama_python(tmp_path, run=pip, say=lambda text: None)
    assert len(pip.commands) == 3
