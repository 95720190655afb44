"""Evaluation: the assignment's own files, the oracle's logits, cases that must fail, files that must be refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CasesError, OptionError
from engine.measure.kinds.evaluate import rounding_note, tolerance_note
from engine.measure.runners.evaluate import (
    EXPECTATIONS,
    cached_logits,
    default_atol,
    doubling_chunks,
    evaluate_cases,
    expected_decimals,
    load_cases,
    max_abs_error,
)
from engine.model.decoder import Decoder
from engine.model.reference import config_from_reference, from_reference_name
from engine.weights.checkpoint import load_checkpoint
from tests.engine import oracle
from tests.engine.reference import Reference

STATE = oracle.random_state_dict()
CONFIG = config_from_reference({name: values.shape for name, values in STATE.items()})
MODEL = Decoder(CONFIG, {from_reference_name(n): t for n, t in oracle.as_tensors(STATE).items()})
IDS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]]
LOGITS = [oracle.logits(STATE, row).tolist() for row in IDS]


def write(path: Path, *cases: Any) -> Path:
    path.write_text(json.dumps(list(cases)))
    return path


def case(**changes: Any) -> dict[str, Any]:
    return {"input_ids": IDS, **dict.fromkeys(EXPECTATIONS, LOGITS)} | changes


# --- the assignment's own files, and our equal of them ----------------------------------------------------


@pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-4), ("float32", None)])
@pytest.mark.parametrize("cached", [False, True])
def test_the_assignments_weights_and_cases_pass(
    reference: Reference, dtype: str, atol: float | None, cached: bool
) -> None:
    loaded = load_checkpoint(reference.weights, dtype=dtype)
    cases = load_cases(reference.cases, loaded.config)
    results = list(evaluate_cases(loaded.decoder, cases, atol=atol, cached=cached))
    assert [r.prompt_tokens for r in results] == [1, 2, 5, 10, 6]
    assert all(r.passed for r in results)
    if dtype == "float64":  # all that is left is the rounding of the file to five decimals
        errors = [r.max_abs_error for r in results]
        if cached:
            errors += [r.cache_max_abs_error for r in results] + [r.sequential_max_abs_error for r in results]
        assert all(e is not None and 4e-6 < e <= 5.0000001e-6 for e in errors)


def test_cached_equals_uncached_exactly_on_the_assignments_weights(reference: Reference) -> None:
    decoder = load_checkpoint(reference.weights, dtype="float64").decoder
    ids = torch.randint(1000, (2, 128), generator=torch.Generator().manual_seed(0))
    uncached = decoder.forward(ids)
    for sizes in ([128], [1] * 128, doubling_chunks(128)):
        assert max_abs_error(cached_logits(decoder, ids, sizes), uncached) < 1e-9


def test_the_float32_tolerance_covers_what_float32_does_to_these_weights(reference: Reference) -> None:
    exact = load_checkpoint(reference.weights, dtype="float64").decoder
    single = load_checkpoint(reference.weights, dtype="float32").decoder
    ids = torch.randint(1000, (8, 128), generator=torch.Generator().manual_seed(0))
    error = max_abs_error(single.forward(ids), exact.forward(ids))
    assert 1e-4 < error < default_atol(torch.float32)


def test_cached_minus_uncached_is_apart_from_the_rounding_of_the_file(reference: Reference) -> None:
    loaded = load_checkpoint(reference.weights, dtype="float64")
    cases = load_cases(reference.cases, loaded.config)
    assert expected_decimals(cases) == 5
    results = list(evaluate_cases(loaded.decoder, cases, cached=True))
    assert all(r.max_abs_difference is not None and r.max_abs_difference < 1e-10 for r in results)
    assert max(r.max_abs_error or 0 for r in results) > 4e-6
    (rounding,) = rounding_note(expected_decimals(cases))
    assert "5 decimals, so their own rounding error is up to 5e-06" in rounding
    assert next(evaluate_cases(loaded.decoder, cases)).max_abs_difference is None


def test_logits_in_full_have_no_rounding(tmp_path: Path) -> None:
    assert expected_decimals(load_cases(write(tmp_path / "c.json", case()), CONFIG)) is None
    assert rounding_note(None) == ()
    rounded = [[[round(x, 2) for x in row] for row in rows] for rows in LOGITS]
    cases = load_cases(write(tmp_path / "c.json", case(**dict.fromkeys(EXPECTATIONS, rounded))), CONFIG)
    assert expected_decimals(cases) == 2


def test_a_tolerance_says_what_it_lets_through(reference: Reference) -> None:
    """The figure of the note: a norm epsilon of 1e-6 for 1e-5 passes in float32 and fails in float64."""
    assert tolerance_note("float64", 1e-4) == ()
    (note,) = tolerance_note("float32", 2e-2)
    assert "a norm epsilon of 1e-6 instead of 1e-5 moves them by 7e-04" in note
    loaded = load_checkpoint(reference.weights, dtype="float64")
    wrong = Decoder(replace(loaded.config, norm_eps=1e-6), weights_of(reference))
    cases = load_cases(reference.cases, loaded.config)
    error = max(max_abs_error(wrong.forward(c.input_ids), loaded.decoder.forward(c.input_ids)) for c in cases)
    assert default_atol(torch.float64) < error < default_atol(torch.float32)


def weights_of(reference: Reference) -> dict[str, torch.Tensor]:
    state = torch.load(reference.weights, weights_only=True)
    return {from_reference_name(name): tensor.double() for name, tensor in state.items()}


# --- against the oracle -----------------------------------------------------------------------------------


def test_the_oracles_logits_pass_at_rounding_error(tmp_path: Path) -> None:
    cases = load_cases(write(tmp_path / "cases.json", case()), CONFIG)
    (plain,) = evaluate_cases(MODEL, cases, atol=1e-12)
    assert plain.passed
    assert plain.prompt_tokens == 7
    assert (plain.cache_max_abs_error, plain.sequential_max_abs_error, plain.chunked_max_abs_error) == (None,) * 3
    (cached,) = evaluate_cases(MODEL, cases, atol=1e-12, cached=True)
    assert cached.passed
    for error in (cached.cache_max_abs_error, cached.sequential_max_abs_error, cached.chunked_max_abs_error):
        assert error is not None
        assert error <= 1e-12


def last(logits: list[Any]) -> list[Any]:
    return [row[-1:] for row in logits]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (IDS, LOGITS),
        (IDS, last(LOGITS)),
        (IDS, [row[-1] for row in LOGITS]),
        (IDS[:1], LOGITS[:1]),
        (IDS[:1], LOGITS[0]),
        (IDS[0], LOGITS[0]),
        (IDS[0], LOGITS[0][-1]),
        (IDS[0], [LOGITS[0][-1]]),
        ([[3]], [[LOGITS[0][0]]]),
    ],
    ids=["B,T,V", "B,1,V", "B,V", "1,T,V", "T,V", "1-D ids", "V", "1,V", "one token"],
)
def test_all_forms_of_expected_logits(tmp_path: Path, ids: Any, expected: Any) -> None:
    for key in EXPECTATIONS:
        cases = load_cases(write(tmp_path / "c.json", {"input_ids": ids, key: expected}), CONFIG)
        (result,) = evaluate_cases(MODEL, cases, atol=1e-12, cached=True)
        assert result.passed, key


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("expected_logits_no_cache", "max_abs_error"),
        ("expected_logits_with_cache", "cache_max_abs_error"),
        ("expected_logits_sequential", "sequential_max_abs_error"),
    ],
)
def test_one_wrong_logit_fails_where_it_is(tmp_path: Path, key: str, field: str) -> None:
    wrong = json.loads(json.dumps(LOGITS))
    wrong[1][4][30] += 0.25
    cases = load_cases(write(tmp_path / "c.json", case(), case(**{key: wrong})), CONFIG)
    good, bad = evaluate_cases(MODEL, cases, cached=True)
    assert good.passed
    assert not bad.passed
    assert getattr(bad, field) == pytest.approx(0.25)
    assert next(evaluate_cases(MODEL, cases[1:])).passed is (key != "expected_logits_no_cache")


def test_a_cache_that_is_wrong_is_caught(tmp_path: Path) -> None:
    """A decoder whose cache forgets one token equals the expected logits uncached, and fails cached."""
    broken = Decoder(CONFIG, {from_reference_name(n): t for n, t in oracle.as_tensors(STATE).items()})
    forward = broken.forward

    def forgetful(ids: torch.Tensor, cache: Any = None, **options: Any) -> torch.Tensor:
        logits = forward(ids, cache, **options)
        if cache is not None and cache.length == 3:
            cache.storage[..., 1, :] = 0
        return logits

    broken.forward = forgetful  # type: ignore[method-assign]
    cases = load_cases(write(tmp_path / "c.json", case()), CONFIG)
    assert next(evaluate_cases(broken, cases)).passed
    result = next(evaluate_cases(broken, cases, cached=True))
    assert not result.passed
    assert result.cache_max_abs_error is not None
    assert result.cache_max_abs_error < 1e-12  # one pass never looks back
    assert result.sequential_max_abs_error is not None
    assert result.sequential_max_abs_error > 1e-3
    assert result.chunked_max_abs_error is not None
    assert result.chunked_max_abs_error > 1e-3


def test_results_come_one_at_a_time(tmp_path: Path) -> None:
    cases = load_cases(write(tmp_path / "c.json", case(), case()), CONFIG)
    calls = iter(evaluate_cases(MODEL, cases))
    assert next(calls).case == 0
    assert next(calls).case == 1


def test_nan_is_a_failure_without_a_number() -> None:
    assert max_abs_error(torch.tensor([[[math.nan, 1.0]]]), torch.zeros(1, 1, 2)) == math.inf


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (2, [1, 1]), (6, [1, 2, 3]), (7, [1, 2, 4]), (10, [1, 2, 4, 3])])
def test_chunks_double(n: int, sizes: list[int]) -> None:
    assert doubling_chunks(n) == sizes


# --- tolerance --------------------------------------------------------------------------------------------


def test_default_tolerances() -> None:
    assert default_atol(torch.float64) == 1e-4
    assert default_atol(torch.float32) == 2e-2
    with pytest.raises(OptionError, match="bfloat16 has no default tolerance"):
        default_atol(torch.bfloat16)


@pytest.mark.parametrize("atol", [-1e-9, math.nan, math.inf])
def test_impossible_tolerances_are_refused_at_the_call(atol: float) -> None:
    with pytest.raises(OptionError, match="atol"):
        evaluate_cases(MODEL, [], atol=atol)


# --- files that must be refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON"),
        ("[{]", "is not JSON"),
        ("{}", "must hold a JSON list"),
        ("[]", "at least one case"),
        ("[3]", "case 0 must be an object with input_ids"),
        ('[{"expected_logits_no_cache": []}]', "case 0 must be an object with input_ids"),
    ],
)
def test_what_is_no_list_of_cases_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "cases.json").write_text(content)
    with pytest.raises(CasesError, match=words) as caught:
        load_cases(tmp_path / "cases.json", CONFIG)
    assert "cases.json" in caught.value.message
    assert caught.value.exit_code == 2


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CasesError, match=r"absent\.json cannot be read: No such file"):
        load_cases(tmp_path / "absent.json", CONFIG)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": [[0, 31]]}, "token id 31 is outside the vocabulary; ids run from 0 to 30"),
        ({"input_ids": [[-1]]}, "token id -1"),
        ({"input_ids": [[2**70]]}, "input_ids"),
        ({"input_ids": [[1] * 25]}, "25 tokens long; the model has 24 positions"),
        ({"input_ids": []}, "the prompt is empty"),
        ({"input_ids": [[]]}, "the prompt is empty"),
        ({"input_ids": [[1.5]]}, "must be whole numbers"),
        ({"input_ids": [[True]]}, "must be whole numbers"),
        ({"input_ids": [["a"]]}, "not a rectangular list of numbers"),
        ({"input_ids": [[1, 2], [3]]}, "not a rectangular list of numbers"),
        ({"input_ids": [[[1]]]}, r"shape \[1, 1, 1\]"),
        ({"input_ids": "1 2 3"}, "must be a list of numbers"),
        (dict.fromkeys(EXPECTATIONS), "has none of expected_logits_no_cache"),
        (
            {"expected_logits_no_cache": [[[0.0] * 31] * 6] * 2},
            r"no_cache has shape \[2, 6, 31\]; expected \[2, 7, 31\]",
        ),
        ({"expected_logits_with_cache": [[[0.0] * 30] * 7] * 2}, r"with_cache has shape \[2, 7, 30\]"),
        ({"expected_logits_sequential": [0.0, [1.0]]}, "sequential is not a rectangular list"),
        ({"expected_logits_sequential": 3}, "sequential must be a list"),
    ],
)
def test_impossible_cases_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "cases.json", case(), case(**changes))
    with pytest.raises(CasesError, match=f"cases.json: case 1.*{words}"):
        load_cases(path, CONFIG)
