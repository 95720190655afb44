"""What the text of the spec form means: values, errors by field, names of what was edited."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.model.parts import Mlp, Norm
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.sources.catalog import devices, find_device, find_model, manual_device, models
from calc.units import GB, GIB, parse_size
from tests.each import each
from tui.form.draft import (
    MODEL_FLAGS,
    Draft,
    auto_head_dim,
    device_with_memory,
    field_texts,
    format_beside,
    hint,
    memory_text,
    origin_of_model,
    read_draft,
)

LLAMA = find_model("llama-3-8b")
STUDY = Study(model=LLAMA, device=manual_device(80 * GB))


def draft(study: Study = STUDY, **changes: Any) -> Draft:
    """The form as it stands for `study`, some of its texts or parts changed."""
    texts = field_texts(study)
    parts: dict[str, Any] = {
        "flags": {name: getattr(study.model, name) for name in MODEL_FLAGS},
        "mlp": study.model.mlp,
        "norm": study.model.norm,
        "policy": study.policy,
        "model_origin": study.model,
        "device_origin": study.device,
    }
    for name, value in changes.items():
        (texts if name in texts else parts)[name] = value
    return Draft(texts=texts, **parts)


def test_the_untouched_form_is_the_study() -> None:
    reading = read_draft(draft(), STUDY)
    assert reading.study == STUDY
    assert reading.errors == {}


@each("name", sorted(models()))
def test_every_catalog_model_survives_the_form(name: str) -> None:
    study = replace(STUDY, model=find_model(name))
    assert read_draft(draft(study), STUDY).study == study


@each("name", sorted(devices()))
def test_every_catalog_device_survives_the_form(name: str) -> None:
    study = replace(STUDY, device=find_device(name))
    assert read_draft(draft(study), STUDY).study == study


def test_an_edited_number_is_taken_and_the_model_named_edited() -> None:
    model = read_draft(draft(n_kv_heads="32"), STUDY).study.model
    assert (model.n_kv_heads, model.title, model.provenance) == (
        32,
        "llama-3-8b (edited)",
        f"{LLAMA.source}, edited",
    )


def test_going_back_to_the_origin_drops_edited() -> None:
    edited = read_draft(draft(n_layers="33"), STUDY).study
    back = read_draft(draft(edited, n_layers="32", model_origin=LLAMA), edited).study
    assert back.model == LLAMA


def test_edited_is_said_once() -> None:
    edited = read_draft(draft(n_layers="33"), STUDY).study
    again = read_draft(draft(edited, n_layers="34"), edited).study
    assert again.model.title == "llama-3-8b (edited)"
    assert origin_of_model(again.model) == LLAMA


@pytest.mark.parametrize(
    ("field", "text", "where", "said"),
    [
        ("n_layers", "", "n_layers", "Layers is empty"),
        ("n_layers", "0", "n_layers", "Layers must be at least 1, not 0"),
        ("n_layers", "-4", "n_layers", "Layers must be at least 1, not -4"),
        ("n_layers", "1.5", "n_layers", "Layers must be a whole number, not 1.5"),
        ("hidden_size", "many", "hidden_size", "Embedding h1 must be a number such as 8192"),
        ("vocab_size", "1e30", "vocab_size", "Vocabulary must be at most"),
        ("n_kv_heads", "5", "n_kv_heads", "n_heads 32 is not divisible by n_kv_heads 5"),
        ("n_heads", "33", "n_kv_heads", "n_heads 33 is not divisible by n_kv_heads 8"),
        ("head_dim", "x", "head_dim", "Head dim must be a number"),
        ("memory_bytes", "80", "memory_bytes", "80GB is 80,000,000,000 B, 80GiB is 85,899,345,920 B"),
        ("memory_bytes", "0GB", "memory_bytes", "Memory must be more than zero"),
        ("context", "8 kilo", "context", "Context has an unknown suffix"),
        ("weight_format", "bf15", "weight_format", "unknown storage format 'bf15'"),
        ("kv_format", "0", "kv_format", "bytes per element must lie between"),
        ("tp", "1,,2", "tp", "TP is empty"),
        ("tp", "8..1", "tp", "TP range 8..1 goes down"),
        ("n_sliding_layers", "40", "n_sliding_layers", "n_sliding_layers 40 exceeds n_layers 32"),
        ("n_sliding_layers", "4", "window", "window must be given when there are sliding layers"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(field: str, text: str, where: str, said: str) -> None:
    reading = read_draft(draft(**{field: text}), STUDY)
    assert said in reading.errors[where]
    assert reading.study == STUDY


def test_two_fields_can_be_wrong_at_once() -> None:
    reading = read_draft(draft(n_heads="33", context="0"), STUDY)
    assert set(reading.errors) == {"n_kv_heads", "head_dim", "context"}


def test_a_bad_model_field_does_not_hold_back_the_rest() -> None:
    reading = read_draft(draft(n_kv_heads="5", context="16Ki", memory_bytes="40GiB"), STUDY)
    assert set(reading.errors) == {"n_kv_heads"}
    assert reading.study.context == 16384
    assert reading.study.device.memory_bytes == 40 * GIB
    assert reading.study.model == LLAMA


def test_an_empty_head_dim_follows_embedding_and_heads() -> None:
    model = read_draft(draft(hidden_size="8192"), STUDY).study.model
    assert (model.hidden_size, model.head_dim) == (8192, 256)
    assert auto_head_dim({"hidden_size": "5Ki", "n_heads": "40"}) == "128 auto"
    assert auto_head_dim({"hidden_size": "5120", "n_heads": "33"}) == "auto"


def test_a_typed_head_dim_stays() -> None:
    model = read_draft(draft(hidden_size="8192", head_dim="128"), STUDY).study.model
    assert (model.hidden_size, model.head_dim) == (8192, 128)


def test_a_head_dim_that_cannot_follow_says_what_to_do() -> None:
    reading = read_draft(draft(hidden_size="4097"), STUDY)
    assert reading.errors == {"head_dim": "4,097 is not divisible by 32 query heads: type the head dim"}


def test_switches_are_taken() -> None:
    flags = {**dict.fromkeys(MODEL_FLAGS, False), "tied": True, "qkv_bias": True}
    model = read_draft(draft(flags=flags, mlp=Mlp.PLAIN, norm=Norm.LAYER), STUDY).study.model
    assert (model.tied, model.qkv_bias, model.mlp, model.norm) == (True, True, Mlp.PLAIN, Norm.LAYER)
    assert read_draft(draft(policy=Policy.REPLICATED), STUDY).study.policy is Policy.REPLICATED


def test_bytes_an_element_can_be_typed() -> None:
    study = read_draft(draft(weight_format="0.5", kv_format="9/16"), STUDY).study
    assert study.weight_format.bytes_per_element == Fraction(1, 2)
    assert study.kv_format.bytes_per_element == Fraction(9, 16)
    assert read_draft(draft(study), study).study == study


def test_another_memory_keeps_what_is_known_of_a_device() -> None:
    h100 = find_device("h100-sxm")
    less = device_with_memory(h100, 70 * GIB)
    assert (less.name, less.memory_bytes) == (f"{h100.name} (edited)", 70 * GIB)
    assert less.ridge() == h100.ridge()
    assert device_with_memory(h100, h100.memory_bytes) is h100
    assert device_with_memory(STUDY.device, 24 * GB) == manual_device(24 * GB)


@given(st.integers(min_value=1, max_value=10**15))
def test_a_memory_text_reads_back_exactly(n_bytes: int) -> None:
    assert parse_size(memory_text(n_bytes)) == n_bytes


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("n_layers", "32", ""),
        ("vocab_size", "128Ki", "= 131,072"),
        ("context", "8192", "= 8,192 tokens"),
        ("context", "8k", "= 8,000 tokens"),
        ("memory_bytes", "80 GB", "= 74.51 GiB"),
        ("memory_bytes", "80GiB", "= 85.90 GB"),
        ("weight_format", "q4_k", "0.5625 B each (144 B for 256)"),
        ("kv_format", "int4", "0.5 B each"),
        ("tp", "1..8", "= 1, 2, 4, 8"),
        ("tp", "1,2", ""),
        ("context", "lots", ""),
        ("window", "", ""),
    ],
)
def test_hints_say_how_a_text_was_read(name: str, text: str, shown: str) -> None:
    assert hint(name, text) == shown


def quantized(**changes: Any) -> Study:
    """A study of a model whose repository is quantized, as the app opens it."""
    model = find_model("qwen3-32b-fp8")
    return replace(STUDY, model=model, weight_format=format_beside(STUDY, model), **changes)


def test_an_edited_quantized_model_is_counted_in_16_bits_and_says_so() -> None:
    study = quantized()
    assert field_texts(study)["weight_format"] == "stored"
    reading = read_draft(draft(study, vocab_size="151937"), study)
    assert reading.errors == {}
    assert reading.study.weight_format is FORMATS["bf16"]
    assert any("16 bits" in note and note.startswith("edited") for note in reading.study.model.notes)
    back = read_draft(draft(study), reading.study)
    assert back.study == study


def test_stored_is_an_error_where_nothing_was_stored() -> None:
    reading = read_draft(draft(weight_format="stored"), STUDY)
    assert "the stored format of this model is not known" in reading.errors["weight_format"]


@pytest.mark.parametrize(
    ("weights", "cache", "shown"),
    [("q4-k-m", "q8_0/q4_0", "Q4_K_M"), ("AWQ", "bf16/FP8", "awq"), ("gguf-q8_0", "auto", "gguf-Q8_0")],
)
def test_formats_by_name_are_read_and_shown_again(weights: str, cache: str, shown: str) -> None:
    reading = read_draft(draft(weight_format=weights, kv_format=cache), STUDY)
    assert reading.errors == {}
    texts = field_texts(reading.study)
    assert texts["weight_format"] == shown
    assert read_draft(draft(reading.study), STUDY).study == reading.study


def test_a_mix_is_worked_out_again_for_the_model_as_it_is_edited() -> None:
    reading = read_draft(draft(weight_format="Q4_K_M", n_layers="16"), STUDY)
    whole = read_draft(draft(weight_format="Q4_K_M"), STUDY).study.weight_format
    assert reading.study.weight_format.block_bytes < whole.block_bytes
    assert format_beside(reading.study, find_model("llama-3.1-8b")).name == "Q4_K_M"


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("weight_format", "Q4_K_M", "by tensor: some stay wider, see the notes"),
        ("weight_format", "auto", "as in the checkpoint, else 2 B each"),
        ("kv_format", "q8_0/q4_0", "K 1.0625 B and V 0.5625 B each"),
    ],
)
def test_hints_of_named_formats(name: str, text: str, shown: str) -> None:
    assert hint(name, text) == shown
