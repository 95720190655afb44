"""calc.commands.options: words into models, devices and studies."""

from __future__ import annotations

import pytest

from calc.commands.options import study_from, study_parser
from calc.errors import SpecError
from calc.model.edit import derived_head_dim
from calc.model.parts import Mlp
from calc.model.study import Policy


def study(*words):
    return study_from(study_parser("kvscope").parse_args(words))


def test_defaults():
    plain = study()
    assert plain.model.name == "llama-3-8b"
    assert (plain.device.memory_bytes, plain.context, plain.tps) == (80 * 10**9, 8192, (1, 2, 4, 8))
    assert (plain.weight_format.name, plain.kv_format.name, plain.policy) == ("bf16", "bf16", Policy.EQUAL_SPLIT)


def test_overrides_change_what_they_say_and_mark_the_model():
    changed = study("--n-layers", "16", "--mlp", "plain", "--tied", "--vocab-size", "32k").model
    assert (changed.n_layers, changed.mlp, changed.tied, changed.vocab_size) == (16, Mlp.PLAIN, True, 32_000)
    assert changed.title == "llama-3-8b (edited)"
    assert study("--n-layers", "32", "--untied").model == study().model


def test_sizes_without_a_model_bring_no_limit_of_the_default():
    assert study("--n-layers", "16").model.max_context is None
    assert study("--tied").model.max_context == study().model.max_context == 8192
    assert study("--model", "llama-3-8b", "--n-layers", "16").model.max_context == 8192


def test_all_sizes_are_a_model_typed_in():
    words = ["--n-layers", "2", "--n-heads", "8", "--n-kv-heads", "2", "--head-dim", "16", "--hidden-size", "64"]
    made = study(*words, "--intermediate-size", "96", "--vocab-size", "1000", "--mlp", "plain", "--tied").model
    assert (made.title, made.source, made.max_context) == ("typed-in model", "typed in", None)
    assert (made.n_layers, made.head_dim, made.vocab_size, made.mlp, made.tied) == (2, 16, 1000, Mlp.PLAIN, True)


def test_the_head_dimension_follows_the_hidden_size_unless_it_is_given():
    assert study("--hidden-size", "8192").model.head_dim == 256
    assert study("--hidden-size", "8192", "--head-dim", "128").model.head_dim == 128
    assert study("--n-heads", "64", "--n-kv-heads", "8").model.head_dim == 64
    assert study("--model", "gemma-7b", "--n-layers", "2").model.head_dim == 256  # not hidden / heads: kept
    with pytest.raises(SpecError, match="set --head-dim"):
        derived_head_dim(100, 3)


def test_sliding_layers_keep_their_share():
    assert study("--model", "mistral-7b-v0.1", "--n-layers", "10").model.n_sliding_layers == 10


def test_device_and_memory_together():
    catalog = study("--device", "a100-80gb").device
    assert catalog.bandwidth_bytes_per_s
    same = study("--device", "a100-80gb", "--gpu-memory", f"{catalog.memory_bytes}B").device
    assert same == catalog
    other = study("--device", "a100-80gb", "--gpu-memory", "70GB").device
    assert (other.memory_bytes, other.name) == (70 * 10**9, f"{catalog.name} (edited)")
    assert other.reading.startswith("70 GB read as 70 x 10^9 B")


@pytest.mark.parametrize(
    ("words", "each"),
    [
        (["--weight-bytes", "0.5"], (1, 2)),
        (["--weight-bytes", "9/16"], (9, 16)),
        (["--weight-format", "Q4_K"], (144, 256)),
        (["--weight-format", "bfloat16"], (2, 1)),
    ],
)
def test_weight_formats(words, each):
    stored = study(*words).weight_format
    assert stored.block_bytes * each[1] == stored.block_elems * each[0]
