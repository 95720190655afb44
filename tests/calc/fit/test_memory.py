"""calc.fit.memory: the assignment's table to the byte; largest batches by brute force; ranks against the whole."""

from dataclasses import replace
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calc.explain.terms import evaluate
from calc.fit.memory import max_batch, memory_report, tp_problem
from calc.model.edit import edit
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from tests.calc.strategies import LLAMA, QUICK, device, formats, read_text, studies

GB, GIB = 10**9, 2**30


def llama(memory_bytes=80 * GB, **changes):
    return memory_report(Study(model=LLAMA, device=device(memory_bytes), **changes))


def test_the_assignments_table():
    report = llama()
    assert report.parameters.total == 8_030_261_248
    assert report.weight_bytes == 16_060_522_496
    assert report.kv_bytes_per_token == 131_072
    assert report.kv_bytes_per_request == 1_073_741_824
    assert (report.max_batch, report.fits) == (59, True)
    assert report.free_bytes == 80 * GB - 16_060_522_496


def test_the_other_reading_of_80():
    assert llama(80 * GIB).max_batch == 65


def test_tensor_parallelism_divides_everything():
    report = llama()
    rows = {row.tp: row for row in report.tp_tables[Policy.EQUAL_SPLIT]}
    assert (rows[2].weight_bytes_per_gpu, rows[2].kv_bytes_per_request_per_gpu, rows[2].max_batch) == (
        8_030_261_248,
        536_870_912,
        134,
    )
    assert {tp: row.max_batch for tp, row in rows.items()} == {
        tp: (80 * GB * tp - 16_060_522_496) // GIB for tp in (1, 2, 4, 8)
    }


def test_beyond_the_kv_heads_the_cache_shrinks_no_further():
    rows = llama(tps=(8, 16, 32)).tp_tables[Policy.REPLICATED]
    assert [row.kv_bytes_per_request_per_gpu for row in rows] == [GIB // 8] * 3
    equal = llama(tps=(8, 16, 32)).tp_tables[Policy.EQUAL_SPLIT]
    assert [row.kv_bytes_per_request_per_gpu for row in equal] == [GIB // 8, GIB // 16, GIB // 32]


def test_a_rank_by_hand():
    """Llama-3-8B on 16: a sixteenth of q, o, MLP, embedding and head; one KV head's k and v; all norms."""
    row = llama(tps=(16,)).tp_tables[Policy.REPLICATED][0]
    split = 32 * (2 * 4096 * 4096 + 176_160_768) + 2 * 525_336_576
    assert row.weight_bytes_per_gpu == 2 * (split // 16 + 32 * 2 * 4096 * 128 + 65 * 4096)


# Brute force


@QUICK
@given(st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 100))
def test_largest_batch_by_trying(memory, weights, request):
    assume(weights + request <= memory)
    batch = 10_000
    while weights + batch * request > memory:
        batch -= 1
    assert max_batch(memory_bytes=memory, weight_bytes=weights, kv_request_bytes=request) == batch


@QUICK
@given(studies())
def test_the_batch_fits_and_one_more_does_not(study):
    report = memory_report(study)
    used = report.weight_bytes + report.max_batch * report.kv_bytes_per_request
    if report.fits:
        assert report.max_batch >= 1
        assert used <= study.device.memory_bytes < used + report.kv_bytes_per_request
    else:
        assert report.max_batch == 0
        assert study.device.memory_bytes < report.weight_bytes + report.kv_bytes_per_request


@QUICK
@given(studies())
def test_rows_fit_and_one_more_does_not(study):
    for rows in memory_report(study).tp_tables.values():
        for row in rows:
            weights, kv = (Fraction(step.value) for step in row.steps[:2])
            assert row.weight_bytes_per_gpu == ceil(weights)
            assert row.kv_bytes_per_request_per_gpu == kv
            if row.fits:
                assert weights + row.max_batch * kv <= study.device.memory_bytes
                assert study.device.memory_bytes < weights + (row.max_batch + 1) * kv
            else:
                assert row.max_batch == 0
                assert row.problem or study.device.memory_bytes < weights + kv


@QUICK
@given(studies())
def test_a_single_gpu_is_the_plain_table(study):
    report = memory_report(replace(study, tps=(1,)))
    for rows in report.tp_tables.values():
        (row,) = rows
        assert (row.weight_bytes_per_gpu, row.max_batch, row.fits) == (
            report.weight_bytes,
            report.max_batch,
            report.fits,
        )
        assert row.kv_bytes_per_request_per_gpu == report.kv_bytes_per_request
        assert row.problem is None


@QUICK
@given(studies())
def test_all_ranks_together_hold_at_least_the_model(study):
    report = memory_report(study)
    for equal, whole in zip(*(report.tp_tables[p] for p in (Policy.EQUAL_SPLIT, Policy.REPLICATED)), strict=True):
        assert equal.tp * equal.weight_bytes_per_gpu >= report.weight_bytes
        assert equal.tp * equal.kv_bytes_per_request_per_gpu == report.kv_bytes_per_request
        if whole.problem is None:
            assert whole.tp * whole.weight_bytes_per_gpu >= report.weight_bytes
            assert whole.tp * whole.kv_bytes_per_request_per_gpu >= report.kv_bytes_per_request
            assert whole.weight_bytes_per_gpu >= equal.weight_bytes_per_gpu
            assert whole.kv_bytes_per_request_per_gpu >= equal.kv_bytes_per_request_per_gpu
            assert whole.max_batch <= equal.max_batch


@QUICK
@given(studies())
def test_every_shown_step_has_its_value(study):
    report = memory_report(study)
    rows = [row for table in report.tp_tables.values() for row in table]
    for term in (*report.steps, *(step for row in rows for step in row.steps)):
        assert evaluate(term.expression, term.values) == term.value
        assert read_text(term.substituted) == term.value, term.name


@QUICK
@given(studies())
def test_steps_lead_to_what_is_reported(study):
    """A reader who follows the steps finds every figure of the table, each made from those above it."""
    report = memory_report(study)
    values = {step.name.split(",")[0]: step.value for step in report.steps}
    assert values["Total parameters"] == report.parameters.total
    assert ceil(values["Parameter memory"]) == report.weight_bytes
    assert values["KV cache per token"] == report.kv_bytes_per_token
    assert ceil(values["KV cache per request"]) == report.kv_bytes_per_request
    if report.fits:
        assert values["Max batch size"] == report.max_batch
    else:
        assert values["Missing for one request"] == report.kv_bytes_per_request - report.free_bytes


# Monotone


@QUICK
@given(studies(), st.integers(1, 5000), st.integers(1, 10**8))
def test_more_context_never_helps_and_more_memory_never_hurts(study, tokens, extra):
    report = memory_report(study)
    longer = memory_report(replace(study, context=study.context + tokens))
    assert longer.kv_bytes_per_request >= report.kv_bytes_per_request
    assert longer.max_batch <= report.max_batch
    larger = memory_report(replace(study, device=device(study.device.memory_bytes + extra)))
    assert larger.max_batch >= report.max_batch


@QUICK
@given(studies(), formats)
def test_more_bits_never_help(study, stored):
    one, other = sorted([study.weight_format, stored], key=lambda f: Fraction(f.block_bytes, f.block_elems))
    small, large = (memory_report(replace(study, weight_format=f)) for f in (one, other))
    assert small.weight_bytes <= large.weight_bytes
    assert small.max_batch >= large.max_batch


@QUICK
@given(studies(), st.integers(1, 8))
def test_more_gpus_never_hurt_the_equal_split(study, factor):
    tps = (study.tps[0], study.tps[0] * factor)
    low, high = memory_report(replace(study, tps=tps)).tp_tables[Policy.EQUAL_SPLIT]
    assert high.max_batch >= low.max_batch


# What no server can run


SIX_OF_FOUR = {"n_heads": 24, "n_kv_heads": 4, "head_dim": 128}


@pytest.mark.parametrize(
    ("changes", "tp", "says"),
    [
        ({}, 3, "32 query heads are not divisible by 3"),
        ({}, 64, "32 query heads are not divisible by 64"),
        (
            {"n_heads": 24, "n_kv_heads": 4, "head_dim": 128},
            6,
            "4 KV heads are not divisible by 6 and do not repeat evenly on 6 GPUs",
        ),
        ({"intermediate_size": 14_337}, 2, "the inner dimension 14,337 is not divisible by 2"),
        ({"n_heads": 1, "n_kv_heads": 1}, 2, "1 query head is not divisible by 2"),
    ],
)
def test_impossible_degrees_are_named(changes, tp, says):
    model = edit(LLAMA, **changes)
    assert tp_problem(model, tp) == says
    report = memory_report(Study(model=model, device=device(), tps=(tp,)))
    assert report.tp_tables[Policy.REPLICATED][0].problem == says
    assert not report.tp_tables[Policy.REPLICATED][0].fits
    assert report.tp_tables[Policy.EQUAL_SPLIT][0].fits  # the assignment's rule divides regardless


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16, 32])
def test_possible_degrees_of_llama(tp):
    assert tp_problem(LLAMA, tp) is None


def test_replicated_is_the_tables_policy():
    study = Study(model=LLAMA, device=device(), tps=(16,), policy=Policy.REPLICATED)
    report = memory_report(study)
    assert report.tp is report.tp_tables[Policy.REPLICATED]
    assert memory_report(replace(study, policy=Policy.EQUAL_SPLIT)).tp[0].max_batch > report.tp[0].max_batch


# Does not fit: an answer


def test_weights_alone_too_large():
    report = llama(10 * GB)
    assert (report.fits, report.max_batch) == (False, 0)
    missing = report.steps[-1]
    assert (missing.name, missing.unit) == ("Missing for one request", "B")
    assert missing.value == 16_060_522_496 + GIB - 10 * GB
    assert missing.substituted == "16,060,522,496 + 1,073,741,824 − 10,000,000,000"


def test_the_last_byte_counts():
    exact = 16_060_522_496 + GIB
    assert (llama(exact).max_batch, llama(exact).fits) == (1, True)
    assert (llama(exact - 1).max_batch, llama(exact - 1).fits) == (0, False)


@pytest.mark.parametrize(
    ("name", "weight_bytes"),
    [("fp32", 32_121_044_992), ("fp8", 8_030_261_248), ("int4", 4_015_130_624), ("q4_k", 4_517_021_952)],
)
def test_weight_formats(name, weight_bytes):
    assert llama(weight_format=FORMATS[name]).weight_bytes == weight_bytes


def test_absurd_sizes_are_worked_out():
    """A trillion of everything in the most layers there can be: exact integers, nothing overflows."""
    most, layers = 10**12, 10_000
    fields = ("n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
    model = edit(LLAMA, n_layers=layers, **dict.fromkeys(fields, most))
    report = memory_report(Study(model=model, device=device(10**18), context=most))
    assert report.kv_bytes_per_token == 4 * layers * most**2
    layer = 4 * most**3 + 3 * most**2 + 2 * most
    assert report.parameters.total == 2 * most**2 + layers * layer + most
    assert not report.fits
