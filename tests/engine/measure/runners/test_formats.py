"""Formats side by side: what is measured is what the decoders themselves say."""

from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.errors import OptionError, TokenizerError
from engine.generation_events import GenerationStarted
from engine.measure.format_loss import loss_ids
from engine.measure.kinds.formats import (
    FormatChoice,
    FormatMeasured,
    Formats,
    FormatsFinished,
    FormatsResult,
    check,
    parse_formats,
    table,
)
from engine.measure.runners.formats import LoadDType, choice_name, run_formats
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from engine.process.events import Failed, Generate, Loaded
from engine.process.service import Service
from engine.records import Cancelled, DType, Event, Progress
from engine.weights.checkpoint import LoadedModel, load_checkpoint
from tests.engine.models import llama_config

CHOICES = (FormatChoice(dtype="bfloat16"), FormatChoice(dtype="int4"), FormatChoice(dtype="float32", cache="int8"))


def load(dtype: DType) -> LoadedModel:
    return load_checkpoint(dtype=dtype)


def loading(make: Callable[[str], LoadedModel] = load) -> LoadDType:
    """`make` as the service gives it: a load that could say how far it is."""

    def run(dtype: str) -> Generator[Progress, None, LoadedModel]:
        yield from ()
        return make(dtype)

    return run


def result_of(request: Formats) -> tuple[FormatsResult, list[Event]]:
    events: list[Event] = list(run_formats(request, loading()))
    last = events[-1]
    assert isinstance(last, FormatsFinished)
    return last.result, events


def test_rows_are_what_the_decoders_say() -> None:
    """Errors against one forward pass over the whole text; bytes against the model's own count."""
    result, events = result_of(Formats(choices=CHOICES, n_tokens=20, compile="off"))
    assert [(row.dtype, row.cache) for row in result.rows] == [
        ("float32", "full"), ("bfloat16", "full"), ("int4", "full"), ("float32", "int8"),
    ]  # fmt: skip
    assert [event.row for event in events if isinstance(event, FormatMeasured)] == list(result.rows)
    reference, half, four, cached = result.rows
    assert (reference.mean_error, reference.max_error, reference.n_same) == (0.0, 0.0, 19)

    exact, rounded = load("float32"), load("bfloat16")
    assert exact.tokenizer is not None
    ids = torch.tensor([loss_ids(exact.tokenizer, limit=20)])
    truth = exact.decoder.forward(ids)[0, :-1]
    error = (rounded.decoder.forward(ids)[0, :-1].float() - truth).abs()
    assert half.mean_error == pytest.approx(error.mean().item(), rel=0.1)
    assert half.weight_bytes * 2 == reference.weight_bytes == exact.weight_bytes
    surprise = torch.nn.functional.cross_entropy(truth.double(), ids[0, 1:])
    assert reference.perplexity == pytest.approx(surprise.exp().item(), rel=1e-5)
    assert four.weight_bytes == load("int4").weight_bytes < half.weight_bytes
    assert 0 < half.mean_error < four.mean_error
    assert cached.mean_error > 0
    assert cached.kv_bytes_per_token * 4 < reference.kv_bytes_per_token * 2
    for row in result.rows:
        assert 0 < row.tpot_p50_s <= row.tpot_p95_s
        assert row.tokens_per_s == pytest.approx(1 / row.tpot_p50_s)


def test_progress_names_what_comes_and_the_reference_runs_once() -> None:
    _, events = result_of(Formats(choices=(FormatChoice(dtype="float32"), *CHOICES[:1]), n_tokens=4, compile="off"))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total, event.detail) for event in progress] == [(0, 2, "float32"), (1, 2, "bfloat16")]
    assert progress[0].remaining_s is None
    assert progress[1].remaining_s is not None


def test_a_choice_that_cannot_be_had_is_noted() -> None:
    def broken(dtype: DType) -> LoadedModel:
        if dtype == "int4":
            raise OptionError("dtype", "int4 is not for this model")
        return load(dtype)

    events = list(run_formats(Formats(choices=CHOICES[:2], n_tokens=4, compile="off"), loading(broken)))
    last = events[-1]
    assert isinstance(last, FormatsFinished)
    assert [row.dtype for row in last.result.rows] == ["float32", "bfloat16"]
    assert last.result.notes == ("int4 was left out: int4 is not for this model.",)


def test_without_a_tokenizer_there_is_no_text_to_measure_on() -> None:
    with pytest.raises(TokenizerError, match="has no tokenizer, but formats are measured on text"):
        list(run_formats(Formats(compile="off"), loading(lambda dtype: replace(load(dtype), tokenizer=None))))


def test_it_stops_when_told_to() -> None:
    asked = iter([False] * 10 + [True] * 1000)
    events = list(run_formats(Formats(n_tokens=30, compile="off"), loading(), lambda: next(asked)))
    assert isinstance(events[-1], Cancelled)
    assert not any(isinstance(event, FormatMeasured) for event in events)


def test_the_compiled_step_serves_8_bit_caches_too() -> None:
    choices = (FormatChoice(dtype="float32", cache="int8"),)
    result, _ = result_of(Formats(choices=choices, n_tokens=4, compile="on"))
    assert [row.compiled for row in result.rows] == [True, True]


def test_the_service_answers_and_refuses(tmp_path: Path) -> None:
    service = Service()
    events = list(service.answer(Formats(choices=CHOICES[:1], n_tokens=4, compile="off", request_id=7)))
    assert isinstance(events[-1], FormatsFinished)
    assert {event.request_id for event in events} == {7}
    # What was measured last is still there: a prompt in that format loads nothing.
    assert [event.model.dtype for event in events if isinstance(event, Loaded)] == ["bfloat16"]
    again = list(service.answer(Generate(prompt_ids=(1, 2), max_new_tokens=2, dtype="bfloat16", compile="off")))
    assert isinstance(again[0], GenerationStarted)
    missing = list(service.answer(Formats(model=str(tmp_path / "none.gguf"))))[-1]
    assert isinstance(missing, Failed)
    assert "none.gguf" in missing.message


def test_a_stopped_comparison_leaves_no_model_that_nobody_knows_of() -> None:
    service = Service()
    events = list(service.answer(Formats(choices=CHOICES[:1], n_tokens=4, compile="off"), lambda: True))
    assert isinstance(events[-1], Cancelled)
    after = list(service.answer(Generate(prompt_ids=(1, 2), max_new_tokens=2, dtype="float32", compile="off")))
    assert any(isinstance(event, Loaded) for event in after)


def test_auto_is_reported_as_what_it_runs() -> None:
    result, _ = result_of(Formats(choices=(FormatChoice(dtype="auto"),), n_tokens=4, compile="off"))
    assert [(row.dtype, row.n_same) for row in result.rows] == [("float32", 3), ("float32", 3)]


def test_text_for_people() -> None:
    result, _ = result_of(Formats(choices=CHOICES, n_tokens=4, compile="off"))
    lines = table(result).text().splitlines()
    assert lines[0] == "formats of bundled against float32, on 3 tokens of text"
    assert lines[2].split()[:2] == ["float32", "full"]
    assert "3 of 3" in lines[2]
    assert len(lines) == 2 + 4 + 1


def test_formats_are_read_from_text() -> None:
    assert parse_formats("bfloat16, int8/int8,bfloat16") == (
        FormatChoice(dtype="bfloat16"), FormatChoice(dtype="int8", cache="int8"),
    )  # fmt: skip
    for wrong in ("auto", "fp8", "", "int8/", "int8/half"):
        with pytest.raises(OptionError, match=r"is not a format|is not a kind"):
            parse_formats(wrong)
    assert [choice_name(c.dtype, c.cache) for c in CHOICES] == ["bfloat16", "int4", "float32, int8 cache"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Formats(choices=()), "name at least one"),
        (Formats(n_tokens=1), "tokens must be"),
        (Formats(threads=0), "threads must be"),
    ],
)
def test_what_cannot_be_measured_is_refused(request_: Formats, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check(request_)


def test_a_model_of_few_positions_is_read_as_far_as_it_goes() -> None:
    config = llama_config(vocab_size=2048, max_positions=9)
    bundled = load("float32")

    def small(dtype: str) -> LoadedModel:
        weights = random_weights(config, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        return replace(bundled, config=config, decoder=Decoder(config, weights))

    events = list(run_formats(Formats(choices=CHOICES[:1], compile="off"), loading(small)))
    last = events[-1]
    assert isinstance(last, FormatsFinished)
    assert [row.n_tokens for row in last.result.rows] == [8, 8]
