"""calc.fit.costs: for any context what memory_report says for one, and the array what the integer says."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from calc.fit.costs import rank_costs, request_elements
from calc.fit.memory import memory_report
from calc.model.edit import edit
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from tests.calc.layered_models import layered_studies
from tests.calc.strategies import LLAMA, QUICK, device, studies

any_study = studies() | layered_studies()


@QUICK
@given(any_study, st.sampled_from(Policy), st.integers(1, 5000))
def test_the_same_as_the_memory_table_at_any_context(study, policy, context):
    study = replace(study, policy=policy)
    memory = study.device.memory_bytes
    rows = memory_report(replace(study, context=context)).tp
    for costs, row in zip(rank_costs(study), rows, strict=True):
        assert costs.kv_bytes(context) == row.kv_bytes_per_request_per_gpu
        assert costs.weight_bytes == row.weight_bytes_per_gpu
        assert costs.state_bytes == row.state_bytes_per_sequence_per_gpu
        assert costs.max_batch(memory, context) == row.max_batch
        assert (costs.max_batch(memory, context) > 0) is row.fits
        assert costs.problem == row.problem


@QUICK
@given(any_study, st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_an_array_of_contexts_is_every_context(study, contexts):
    for costs in rank_costs(study):
        array = costs.kv_scaled(np.array(contexts, dtype=np.int64))
        assert array.tolist() == [costs.kv_scaled(context) for context in contexts]


@QUICK
@given(any_study, st.integers(1, 50), st.integers(1, 5000))
def test_missing_bytes_are_what_is_missing(study, batch, context):
    """With exactly that much more memory the batch fits, with a byte less it does not."""
    for costs in rank_costs(study):
        memory = study.device.memory_bytes
        missing = costs.missing_bytes(memory, context, batch)
        assert costs.missing_bytes(memory + missing, context, batch) == 0
        if missing:
            assert costs.missing_bytes(memory + missing - 1, context, batch) == 1
        if costs.runnable and costs.request(context):
            assert (costs.max_batch(memory, context) >= batch) is (missing == 0)


def test_elements_of_a_request():
    assert request_elements(LLAMA)(8192) == 2 * 32 * 8 * 128 * 8192
    assert request_elements(LLAMA, 16)(8192) == 2 * 32 * 1 * 128 * 8192
    windowed = edit(LLAMA, n_sliding_layers=16, window=4096)
    assert request_elements(windowed)(8192) == 2 * 8 * 128 * (16 * 8192 + 16 * 4096)


def test_part_bytes_stay_exact():

    (costs,) = rank_costs(Study(model=LLAMA, device=device(), kv_format=FORMATS["q8_0"], tps=(3,)))
    assert costs.kv_bytes(1) == Fraction(2 * 32 * 8 * 128 * 34, 32 * 3)
