"""Options read from text: values, and one sentence for anything else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from calc.errors import QuantityError
from engine.records import TO_THE_END
from engine.speculation import Speculate
from tui.form import sampling as form


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (form.read_new_tokens, "1k", 1000),
        (form.read_new_tokens, "all", TO_THE_END),
        (form.read_temperature, "", 0.0),
        (form.read_temperature, "0.7", 0.7),
        (form.read_top_k, " ", None),
        (form.read_top_k, "40", 40),
        (form.read_top_p, "", None),
        (form.read_top_p, "1", 1.0),
        (form.read_seed, "0", 0),
        (form.read_seed, "", None),
        (form.read_path, "  ", None),
        (form.read_path, " model.pt ", "model.pt"),
        (form.read_atol, "1e-4", 1e-4),
        (form.read_lengths, "10,50,100", (10, 50, 100)),
        (form.read_lengths, "1..8", (1, 2, 4, 8)),
        (form.read_ids, "1, 2 ,3", (1, 2, 3)),
        (form.read_ids, "ids: 4 5", (4, 5)),
        (form.read_ids, "IDS:[7,8]", (7, 8)),
        (form.read_ids, "The 3 of us", None),
        (form.read_ids, "", None),
    ],
)
def test_read(read: Callable[[str], object], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (form.read_new_tokens, "0", "at least 1"),
        (form.read_new_tokens, "", "empty"),
        (form.read_new_tokens, "-3", "at least 1"),
        (form.read_temperature, "hot", "must be a number"),
        (form.read_temperature, "-1", "0 (greedy) to 100"),
        (form.read_temperature, "nan", "0 (greedy) to 100"),
        (form.read_temperature, "inf", "0 (greedy) to 100"),
        (form.read_top_k, "0", "at least 1"),
        (form.read_top_k, "2.5", "whole number"),
        (form.read_top_p, "0", "above 0"),
        (form.read_top_p, "1.5", "above 0 and at most 1"),
        (form.read_seed, "-1", "at least 0"),
        (form.read_seed, "1e30", "at most"),
        (form.read_atol, "0", "above 0"),
        (form.read_lengths, "10,,20", "empty"),
        (form.read_lengths, "0", "at least 1"),
        (form.read_path, "a\0b", "NUL"),
    ],
)
def test_refuse(read: Callable[[str], object], text: str, message: str) -> None:
    with pytest.raises(QuantityError, match=r".") as caught:
        read(text)
    assert message in str(caught.value)


def test_the_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert form.read_path("~/model.pt") == "/home/someone/model.pt"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", form.MoreSampling()),
        ("min-p 0.05, repetition 1.1", form.MoreSampling(min_p=0.05, repetition_penalty=1.1)),
        ("presence -0.5 model", form.MoreSampling(presence_penalty=-0.5, model_sampling=True)),
        ("speculate lookup,4, min-p 0.1", form.MoreSampling(min_p=0.1, speculate=Speculate(tokens=4))),
        ("speculate '~/a b.gguf'", form.MoreSampling(speculate=Speculate(draft="~/a b.gguf"))),
        (r'stop "END of it", stop "\n\n"', form.MoreSampling(stop=("END of it", "\n\n"))),
    ],
)
def test_rarer_options_in_one_field(text: str, expected: form.MoreSampling) -> None:
    assert form.read_more(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("min-p", "'min-p' is not known or has no value"),
        ("top-z 3", "'top-z' is not known"),
        ("min-p 2", "min-p must be 0 to 1"),
        ('stop "END', "in quotes"),
        ("stop", "has no value"),
        ("speculate", "has no value"),
        ("speculate 4", "names no draft method"),
    ],
)
def test_rarer_options_that_cannot_be_read_are_named(text: str, words: str) -> None:
    with pytest.raises(QuantityError, match=words):
        form.read_more(text)
