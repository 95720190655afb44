"""calc.fit.solve: every answer tried out with memory_report or plan, and one more than the answer does not fit."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.commands.options import study_from, study_parser
from calc.errors import SpecError
from calc.fit.degrees import ParallelSpec
from calc.fit.memory import memory_report, tp_problem
from calc.fit.parallel import plan
from calc.fit.rules import costs_of
from calc.fit.solve import (
    advice,
    batch_grid,
    devices_that_fit,
    fewest_devices,
    formats_that_fit,
    largest_batch,
    largest_context,
)
from calc.model.storage import FORMATS
from calc.model.stored_format import stored_format
from calc.model.study import Policy, Study
from calc.sources.catalog import devices, find_device, find_model
from tests.calc.layered_models import layered_studies
from tests.calc.strategies import LLAMA, QUICK, device, studies
from tests.examples import examples

GB, GIB = 10**9, 2**30
FEW = examples(25)
any_study = studies() | layered_studies()


def llama(memory_bytes=80 * GB, **changes):
    return Study(model=LLAMA, device=device(memory_bytes), **changes)


def row(study, tp, **changes):
    (found,) = memory_report(replace(study, tps=(tp,), **changes)).tp
    return found


# Context and batch


def test_context_and_batch_by_hand():
    answer = largest_context(costs_of(llama()))
    assert (answer.context, answer.unbounded, answer.missing_bytes) == (487_819, False, 0)
    assert answer.free_bytes == (80 * GB - 16_060_522_496) % 131_072
    assert largest_context(costs_of(llama(17 * GB))).context == 7_167 == (17 * GB - 16_060_522_496) // 131_072
    assert largest_context(costs_of(llama()), batch=59).context == (80 * GB - 16_060_522_496) // (59 * 131_072)
    assert (largest_batch(costs_of(llama())).batch, largest_batch(costs_of(llama(80 * GIB))).batch) == (59, 65)
    assert largest_batch(costs_of(llama(), 2)).batch == 134


def test_a_device_that_is_just_large_enough():
    exactly = 16_060_522_496 + GIB
    assert (largest_batch(costs_of(llama(exactly))).batch, largest_batch(costs_of(llama(exactly - 1))).batch) == (1, 0)
    assert largest_context(costs_of(llama(exactly))).context == 8192
    assert largest_batch(costs_of(llama(exactly))).free_bytes == 0


def test_longer_than_the_model_was_made_for_is_said():
    made_for = replace(llama(), model=find_model("llama-3-8b"))
    assert largest_context(costs_of(made_for)).beyond_model
    assert not largest_context(costs_of(made_for), batch=60).beyond_model


def test_a_windowed_model_has_no_largest_context():
    study = replace(llama(), model=find_model("mistral-7b-v0.1"))
    answer = largest_context(costs_of(study))
    assert (answer.unbounded, answer.context, answer.kv_bytes) == (True, 32_768, 536_870_912)
    assert largest_context(costs_of(study), batch=200).context == (80 * GB - 14_483_464_192) // (200 * 131_072)


def test_nothing_fits_is_an_answer():
    answer = largest_context(costs_of(llama(10 * GB)))
    assert (answer.context, answer.missing_bytes) == (None, 16_060_522_496 + 131_072 - 10 * GB)
    batch = largest_batch(costs_of(llama(10 * GB)))
    assert (batch.batch, batch.fits, batch.missing_bytes) == (0, False, 16_060_522_496 + GIB - 10 * GB)


@QUICK
@given(any_study, st.sampled_from(Policy), st.integers(1, 9), st.sampled_from([1, 2, 4]))
def test_the_context_is_the_largest(study, policy, batch, tp):
    study = replace(study, policy=policy)
    answer = largest_context(costs_of(study, tp), batch=batch)
    if answer.context is None:
        assert row(study, tp, context=1).max_batch < batch
        return
    assert row(study, tp, context=answer.context).max_batch >= batch
    if not answer.unbounded:
        assert row(study, tp, context=answer.context + 1).max_batch < batch


@QUICK
@given(any_study, st.sampled_from(Policy), st.lists(st.integers(1, 4000), min_size=1, max_size=4))
def test_the_grid_is_the_memory_table(study, policy, contexts):
    study = replace(study, policy=policy)
    grid = batch_grid(study, (1, 2, 3), contexts)
    assert [line.tp for line in grid] == [1, 2, 3]
    for line in grid:
        for cell, context in zip(line.cells, contexts, strict=True):
            expected = row(study, line.tp, context=context)
            assert (cell.batch, cell.batch > 0) == (expected.max_batch, expected.fits)
            assert cell.problem == expected.problem
            assert cell.runnable is (policy is Policy.EQUAL_SPLIT or expected.problem is None)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_below_one_is_refused(batch):
    with pytest.raises(SpecError, match="batch must be at least 1"):
        largest_context(costs_of(llama()), batch=batch)


# Devices


def test_fewest_devices_by_hand():
    assert fewest_devices(costs_of(llama())).devices == 1
    two = fewest_devices(costs_of(llama(10 * GB)))
    assert (two.devices, two.equal_split) == (2, 2)
    assert {(p.tp, p.pp) for p in two.plans if p.devices == 2} == {(1, 2), (2, 1)}
    batch = fewest_devices(costs_of(llama()), batch=1000)
    assert batch.equal_split == -(-(16_060_522_496 + 1000 * GIB) // (80 * GB))
    assert batch.plans[0].max_batch >= 1000


def test_uneven_stages_need_more_than_the_equal_split():
    """126 layers of Llama-3.1-405B in 24 GB: 34 shares would do, but no whole layers and heads fit 34 devices."""
    study = Study(model=find_model("llama-3.1-405b"), device=device(24 * GB))
    answer = fewest_devices(costs_of(study))
    assert answer.equal_split == 34
    assert min(plan.devices for plan in answer.plans) == 36


def test_plans_that_people_run_come_first():
    """A machine of 8 before a pipeline of 6, two machines before a pipeline of 11."""
    model = find_model("deepseek-v3")
    found = fewest_devices(
        costs_of(Study(model=model, device=find_device("h200-sxm"), weight_format=stored_format(model)))
    )
    assert (found.devices, found.plans[0].tp, found.plans[0].pp) == (8, 8, 1)
    assert (6, 1, 6, False) in [(p.devices, p.tp, p.pp, p.usual) for p in found.plans]
    large = fewest_devices(costs_of(replace(llama(), model=find_model("llama-3.1-405b"))))
    assert large.devices == 16
    assert {(p.tp, p.pp) for p in large.plans if p.usual} >= {(8, 2), (16, 1)}


@FEW
@given(any_study, st.integers(1, 4))
def test_fewest_devices_by_trying_all(study, batch):
    most = 6
    study = replace(study, device=replace(study.device, memory_bytes=study.device.memory_bytes * 3))
    ways = [
        (tp * pp, tp, pp)
        for tp in range(1, most + 1)
        for pp in range(1, most // tp + 1)
        if pp <= study.model.n_layers
        and study.model.n_heads % tp == 0
        and tp_problem(study.model, tp) is None
        and plan(study, ParallelSpec(tp=tp, pp=pp)).max_batch >= batch
    ]
    answer = fewest_devices(costs_of(study), batch=batch, most=most)
    assert (answer.devices is None) is (not ways)
    assert min((p.devices for p in answer.plans), default=None) == (min(ways)[0] if ways else None)
    assert {(p.devices, p.tp, p.pp) for p in answer.plans} <= set(ways)
    assert (answer.missing_bytes > 0) is (not ways)


def test_devices_of_the_catalog():
    answers = devices_that_fit(costs_of(llama()), batch=16)
    assert {a.id for a in answers} == set(devices())
    fitting = [a for a in answers if a.fits]
    assert [a.memory_bytes for a in fitting] == sorted(a.memory_bytes for a in fitting)
    assert answers[: len(fitting)] == tuple(fitting)
    for answer in answers:
        report = memory_report(replace(llama(), device=find_device(answer.id)))
        assert answer.max_batch == report.max_batch
        assert answer.fits is (report.max_batch >= 16)
        assert (answer.missing_bytes > 0) is not answer.fits


def test_a_device_that_no_server_could_use_says_why():
    answers = devices_that_fit(costs_of(llama(policy=Policy.REPLICATED), 3))
    assert not any(a.fits for a in answers)
    assert answers[0].reason == "32 query heads are not divisible by 3"


# Formats


@FEW
@given(any_study, st.integers(1, 3))
def test_formats_are_what_the_memory_table_says_of_them(study, batch):
    answers = formats_that_fit(costs_of(study), batch=batch)
    assert [a.fits for a in answers] == sorted((a.fits for a in answers), reverse=True)
    for answer in answers[::17]:
        weight, kv = (FORMATS[n] for n in (answer.weight_format, answer.kv_format))
        report = memory_report(replace(study, weight_format=weight, kv_format=kv))
        assert answer.max_batch == report.max_batch
        assert answer.fits is (report.max_batch >= batch)


def test_the_least_change_comes_first():
    first = formats_that_fit(costs_of(llama(17 * GB)))[0]
    assert (first.weight_format, first.kv_format) == ("bf16", "q8_0")
    shrunk = formats_that_fit(costs_of(llama(17 * GB, context=16_000)))
    assert shrunk[0].fits
    assert sum(a.fits for a in shrunk) < len(shrunk)
    own = formats_that_fit(costs_of(llama()))[0]
    assert (own.weight_format, own.kv_format, own.fits) == ("bf16", "bf16", True)


# Advice


@FEW
@given(any_study, st.integers(1, 4))
def test_advice_makes_it_fit(study, batch):
    report = memory_report(study)
    found = advice(costs_of(study), batch=batch)
    lacking = costs_of(study).admission(batch=batch).missing_bytes
    assert lacking == max(0, report.weight_bytes + batch * report.request_bytes - study.device.memory_bytes)
    assert (costs_of(study).shortage(batch) == "") is (lacking == 0)
    if not lacking:
        assert found == ()
    for step in found:
        value = step.options[1]
        if step.change == "context":
            assert memory_report(replace(study, context=int(value))).max_batch >= batch
        elif step.change in ("weight-format", "kv-format"):
            name = step.change.replace("-", "_")
            assert memory_report(replace(study, **{name: FORMATS[value]})).max_batch >= batch
        elif step.change == "device":
            assert memory_report(replace(study, device=find_device(value))).max_batch >= batch
        elif step.change == "batch":
            assert report.max_batch == int(value) < batch


def test_the_options_of_an_advice_are_options():
    costs = costs_of(llama(10 * GB))
    found = advice(costs)
    assert [step.change for step in found] == ["weight-format", "tp", "device"]
    changed = study_from(study_parser("kvscope").parse_args(["--gpu-memory", "10GB", *found[0].options]))
    assert memory_report(changed).fits
    assert costs.shortage(1).startswith("7.13 GB (6.64 GiB) are missing for one request")


def test_advice_of_stages_is_said_in_words():
    study = replace(llama(), model=find_model("llama-3.1-405b"))
    (devices_step,) = [s for s in advice(costs_of(study)) if s.change == "tp"]
    assert devices_step.text.startswith("Use 16 such devices (tensor parallelism ")
    both = advice(costs_of(replace(study, device=device(24 * GB))))
    assert ("--tp", "8", "--pp", "5") in [s.options for s in both]


def test_what_weighs_most_is_said_first():
    light = advice(costs_of(llama(17 * GB)))
    assert [step.change for step in light[:3]] == ["weight-format", "kv-format", "context"]
    assert light[2].options == ("--context", "7167")
    heavy = advice(costs_of(llama(20 * GB)), batch=16)
    assert heavy[0].change == "context"
    assert "the cache" in costs_of(llama(20 * GB)).shortage(16)


def test_the_studys_own_degrees_are_not_part_of_the_answer():
    assert largest_batch(costs_of(llama(tps=(8,)))).batch == 59
