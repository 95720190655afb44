"""The copied command gives the study back."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calc.commands.options import study_from, study_parser
from calc.model.cache_pair import pair_format
from calc.model.named import named_format, weights_as
from calc.model.parts import Mlp
from calc.model.storage import StorageFormat, parse_format
from calc.model.study import Policy, Study
from calc.sources import load_model
from calc.sources.catalog import devices, find_device, find_model, manual_device, models
from calc.units import GB, GIB
from tests.each import each
from tui.form.command_line import memory_command, unsaid
from tui.form.draft import device_with_memory, edited_model

STUDY = Study(model=find_model("llama-3-8b"), device=manual_device(80 * GB))


def parsed(command: str) -> Study:
    words = shlex.split(command)
    assert words[:2] == ["kvscope", "memory"]
    return study_from(study_parser("kvscope memory").parse_args(words[2:]))


def edited(**values: Any) -> Study:
    return replace(STUDY, model=edited_model(STUDY.model, values))


def test_the_default_study_needs_no_options() -> None:
    assert memory_command(STUDY) == "kvscope memory"
    assert parsed("kvscope memory") == STUDY


def mix(name: str) -> StorageFormat:
    """A mix of the study's model."""
    return weights_as(named_format(name), STUDY.model)


@pytest.mark.parametrize(
    ("study", "command"),
    [
        (replace(STUDY, context=32768), "kvscope memory --context 32768"),
        (replace(STUDY, model=find_model("qwen3-8b")), "kvscope memory --model qwen3-8b"),
        (replace(STUDY, device=find_device("h100-sxm")), "kvscope memory --device h100-sxm"),
        (replace(STUDY, device=manual_device(24 * GIB)), "kvscope memory --gpu-memory 24GiB"),
        (replace(STUDY, weight_format=parse_format("fp8")), "kvscope memory --weight-format fp8"),
        (replace(STUDY, kv_format=parse_format("0.5")), "kvscope memory --kv-bytes 0.5"),
        (replace(STUDY, weight_format=mix("Q4_K_M")), "kvscope memory --weight-format Q4_K_M"),
        (replace(STUDY, weight_format=mix("gguf-q8_0")), "kvscope memory --weight-format gguf-Q8_0"),
        (replace(STUDY, kv_format=pair_format("q8_0/q4_0")), "kvscope memory --kv-format q8_0/q4_0"),
        (replace(STUDY, tps=(1, 3), policy=Policy.REPLICATED), "kvscope memory --tp 1,3 --policy replicated"),
        (edited(n_kv_heads=32), "kvscope memory --n-kv-heads 32"),
        (edited(tied=True, mlp=Mlp.PLAIN), "kvscope memory --mlp plain --tied"),
        (edited(hidden_size=8192, head_dim=256), "kvscope memory --hidden-size 8192"),
        (edited(hidden_size=8192, head_dim=128), "kvscope memory --head-dim 128 --hidden-size 8192"),
        (edited(head_dim=64), "kvscope memory --head-dim 64"),
    ],
)
def test_only_what_differs_is_said_and_it_reads_back(study: Study, command: str) -> None:
    assert memory_command(study) == command
    assert parsed(command) == study


@each("name", sorted(models()))
def test_every_model_reads_back(name: str) -> None:
    study = replace(STUDY, model=find_model(name))
    assert parsed(memory_command(study)) == study
    assert unsaid(study) == ()


@each("name", sorted(devices()))
def test_every_device_reads_back(name: str) -> None:
    study = replace(STUDY, device=find_device(name))
    assert parsed(memory_command(study)) == study


def test_a_device_with_another_memory_reads_back() -> None:
    study = replace(STUDY, device=device_with_memory(find_device("h100-sxm"), 70 * GIB))
    assert memory_command(study) == "kvscope memory --device h100-sxm --gpu-memory 70GiB"
    assert parsed(memory_command(study)) == study


def test_a_head_dim_that_never_followed_is_kept() -> None:
    study = replace(STUDY, model=edited_model(find_model("qwen3-32b"), {"n_heads": 32}))
    assert memory_command(study) == "kvscope memory --model qwen3-32b --n-heads 32"
    assert parsed(memory_command(study)) == study


def test_a_file_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "my model.toml"
    path.write_text(
        "n_layers = 2\nn_heads = 4\nn_kv_heads = 2\nhead_dim = 8\nhidden_size = 32\nintermediate_size = 64\n"
        "vocab_size = 100\n"
    )
    study = replace(STUDY, model=load_model(str(path)))
    command = memory_command(study)
    assert command == f"kvscope memory --model '{path}'"
    assert parsed(command) == study
    more = replace(study, model=edited_model(study.model, {"n_layers": 3}))
    assert parsed(memory_command(more)) == more


def test_a_field_without_an_option_is_named() -> None:
    assert unsaid(edited(qkv_bias=True, n_layers=31)) == ("qkv_bias",)
