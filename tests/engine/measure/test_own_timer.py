"""Timing a model's own operators: what is run, and the whole model's times from fed-in times of its parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from engine.compiled.attach import attach
from engine.compiled.build import COMPILERS
from engine.errors import Stopped
from engine.measure import own_plan
from engine.measure.own import MeasureOwnTimes, Needs, OwnTimesMeasured, StepTime
from engine.measure.own_plan import Plan, Timed, shallow, without_head
from engine.measure.own_timer import OwnTimer, own_times
from engine.measure.turns import Turns
from engine.model.decoder import Decoder
from engine.process.service import Service
from tests.engine.models import VARIANTS, decoder

NEEDS = Needs(rows=4, context=40, prompt=24)


def plan(model: Decoder, needs: Needs = NEEDS, chunk: int | None = None) -> Plan:
    return Plan(decoder=model, needs=needs, chunk=chunk, flops_per_s=1e9)


def keys(which: Plan) -> list[Timed]:
    return [key for group in which.groups() for key in group]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_can_be_timed(variant: str) -> None:
    model = decoder(variant, dtype=torch.float32)
    timer = OwnTimer(decoder=model, needs=NEEDS)
    timer.round()
    times = timer.times()
    assert times is not None
    assert {p.batch for p in times.steps} >= {1}
    assert all(p.seconds > 0 for p in (*times.steps, *times.prompts))
    assert times.rounds == 1
    assert times.slowdown >= 1


def test_what_is_asked_for_is_what_is_timed() -> None:
    model = decoder(dtype=torch.float32)
    longest = model.config.max_positions - 1
    found = keys(plan(model))
    whole = [(key.rows, key.past) for key in found if key.kind == "whole"]
    assert whole == [(rows, n) for rows in (1, 4, 2) for n in sorted({min(32, longest), min(40, longest)})]
    assert [(k.rows, k.past) for k in found if k.kind == "prompt"] == [(24, 0)]
    assert [k.rows for k in found if k.kind == "linears"] == [1, 16]
    one = keys(plan(model, Needs(rows=1, context=8, prompt=0)))
    assert {key.kind for key in one} == {"whole", "linears", "fixed"}


def test_steps_over_several_tokens_of_a_text_are_timed_where_they_are_asked_for() -> None:
    needs = Needs(rows=1, context=40, prompt=0, text=6)
    assert [(k.rows, k.past) for k in keys(plan(decoder(dtype=torch.float32), needs)) if k.kind == "text"] == [
        (2, 40),
        (6, 40),
    ]
    at_the_end = Needs(rows=1, context=500, prompt=0, text=6)  # of the context nothing follows
    assert not [k for k in keys(plan(decoder(dtype=torch.float32), at_the_end)) if k.kind == "text"]
    for variant in ("llama", "latent"):
        timer = OwnTimer(decoder=decoder(variant, dtype=torch.float32), needs=needs)
        timer.round()
        times = timer.times()
        assert times is not None
        assert [(text.tokens, text.context) for text in times.texts] == [(2, 40), (6, 40)]


def test_a_long_prompt_is_timed_in_its_later_chunks_too() -> None:
    found = keys(plan(decoder(dtype=torch.float32, max_positions=4096), Needs(rows=1, context=8, prompt=2048), 128))
    assert [(k.rows, k.past) for k in found if k.kind == "prompt"] == [(32, 0), (128, 0), (128, 512), (128, 1920)]
    assert {k.rows for k in found if k.kind == "prompt-fixed"} == {32, 128}


def test_some_layers_stand_for_all_where_no_cache_holds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(dtype=torch.float32, n_layers=12)
    assert plan(model).n_timed == 12
    monkeypatch.setattr(own_plan, "LEAST_BYTES", 1)
    monkeypatch.setattr(own_plan, "last_cache_bytes", lambda: 0)
    assert plan(model).n_timed == 2
    kinds = {key.kind for key in keys(plan(model))}
    assert {"layers", "fixed"} <= kinds
    assert "whole" not in kinds
    assert plan(decoder("mixed", dtype=torch.float32)).n_timed == 3  # layers that differ do not stand for each other


def test_a_shallow_decoder_shares_the_weights() -> None:
    model = decoder(dtype=torch.float32, n_layers=4)
    first = shallow(model, 2)
    assert first.blocks == model.blocks[:2]
    assert (first.config.n_layers, model.config.n_layers) == (2, 4)
    ids = torch.tensor([[1, 2, 3]])
    headless = without_head(shallow(model, 2))
    if model.config.vocab_size > own_plan.HEAD_ROWS:
        words = own_plan.HEAD_ROWS
        assert torch.allclose(headless.forward(ids), first.forward(ids)[..., :words])
    assert model.forward(ids).size(-1) == model.config.vocab_size


def test_whole_times_by_hand() -> None:
    """Two of four layers in 3 s and the rest in 1: a step is 2 x 3 + 1. A prompt the same. Linears 2 x 0.5."""
    model = decoder(dtype=torch.float32, n_layers=4)
    seconds = {
        Timed("layers", 1, 8, 2): [3.0, 3.0, 30.0], Timed("fixed", 1, 0, 0): [1.0],
        Timed("prompt", 16, 0, 1): [0.5], Timed("prompt-fixed", 16, 0, 0): [0.25], Timed("linears", 1, 0, 2): [0.5],
    }  # fmt: skip
    times = own_times(plan(model), Turns({}, seconds=seconds, n_rounds=3, wall_s=76.5), load=1.5, took_s=4.0)
    assert times.steps == (StepTime(batch=1, context=8, seconds=7.0),)
    assert [(p.tokens, p.seconds) for p in times.prompts] == [(16, 2.25)]
    assert [(r.rows, r.seconds) for r in times.linears] == [(1, 1.0)]
    assert [(r.rows, r.seconds) for r in times.heads] == [(1, 1.0)]
    assert (times.rounds, times.load_average, times.took_s) == (3, 1.5, 4.0)
    assert times.slowdown == pytest.approx(76.5 / (9 + 1 + 0.5 + 0.25 + 0.5))  # the quiet time of three runs is 9


def test_the_head_of_a_compiled_step_is_what_the_same_layers_take_more_with_it() -> None:
    """Two of four layers in 3 s, 3.5 with the head: 2 x 3 + 0.5; over a longer context 2 x 4 + 0.5."""
    seconds = {
        Timed("layers", 1, 8, 2): [3.0], Timed("layers", 1, 64, 2): [4.0], Timed("headed", 1, 8, 2): [3.5],
    }  # fmt: skip
    times = own_times(plan(decoder(dtype=torch.float32, n_layers=4)), Turns({}, seconds=seconds, n_rounds=1))
    assert [(p.context, p.seconds) for p in times.steps] == [(8, 6.5), (64, 8.5)]


def test_a_whole_step_is_taken_as_it_is() -> None:
    seconds = {Timed("whole", 4, 8, 4): [3.0, 2.0, 9.0, 9.0, 9.0, 9.0]}
    times = own_times(plan(decoder(dtype=torch.float32, n_layers=4)), Turns({}, seconds=seconds, n_rounds=1))
    assert times.steps == (StepTime(batch=4, context=8, seconds=3.0),)  # a fifth of the runs took less


def test_slow_layers_are_timed_on_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 ms of layers: six of 10 ms each, all of 1 ms each, never fewer than two."""
    monkeypatch.setattr(own_plan, "STEP_S", 0.06)
    slow = plan(decoder(dtype=torch.float32, n_layers=12))
    assert replace(slow, layer_s=0.010).n_timed == 6
    assert replace(slow, layer_s=0.001).n_timed == 12
    assert replace(slow, layer_s=5.0).n_timed == 2


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="there is no C++ compiler")
def test_some_layers_of_a_compiled_step_are_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(dtype=torch.float32, n_layers=6, hidden_size=32, intermediate_size=32, vocab_size=64)
    attach(model, "on")
    monkeypatch.setattr(own_plan, "LEAST_BYTES", 1)
    monkeypatch.setattr(own_plan, "last_cache_bytes", lambda: 0)
    found = keys(plan(model))
    assert {key.kind for key in found} == {"layers", "headed", "prompt", "prompt-fixed"}
    assert max(key.rows for key in found if key.kind == "layers") == 4
    timer = OwnTimer(decoder=model, needs=NEEDS)
    timer.round()
    times = timer.times()
    assert times is not None
    assert (times.compiled, times.max_rows, times.layers_timed) == (True, 32, 2)
    assert model.decode_step is not None


def test_a_budget_of_nothing_is_one_look_at_what_a_generation_needs() -> None:
    """A step of one row over two contexts and the most wanted prompt, once."""
    timer = OwnTimer(decoder=decoder(dtype=torch.float32), needs=NEEDS, budget_s=0.0)
    timer.rounds()
    times = timer.times()
    assert times is not None
    assert (times.rounds, {step.batch for step in times.steps}, len(times.prompts)) == (1, {1}, 1)


def test_a_stop_is_heard_at_once() -> None:
    timer = OwnTimer(decoder=decoder(dtype=torch.float32), needs=NEEDS)
    with pytest.raises(Stopped):
        timer.rounds(lambda: True)
    assert timer.times() is None


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    held = Service()
    yield held
    held.close()


def test_a_model_is_timed_once(service: Service) -> None:
    def times(needs: Needs, **options: object) -> OwnTimesMeasured:
        request = MeasureOwnTimes(needs=needs, threads=1, compile="off", **options)  # type: ignore[arg-type]
        last = list(service.answer(request))[-1]
        assert isinstance(last, OwnTimesMeasured)
        return last

    first = times(NEEDS)
    assert first.times is not None
    assert not first.times.compiled
    assert times(NEEDS) == first
    assert times(Needs(rows=1, context=8, prompt=8)) == first  # asks for no more
    further = times(Needs(rows=1, context=50, prompt=8))
    assert further.times is not None
    assert further.times != first.times
    assert max(p.context for p in further.times.steps) == 50
