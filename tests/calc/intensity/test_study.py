"""calc.intensity.study: the report holds the same numbers as the formulas, in every series; bad queries are refused."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import SpecError
from calc.intensity.attention import Attention, Phase, attention_work, phase_cost
from calc.intensity.study import (
    DEFAULT_BATCHES,
    DEFAULT_CONTEXTS,
    IntensityQuery,
    intensity_report,
    textbook_report,
)
from calc.model.edit import edit
from tests.calc.intensity.points import decode_point
from tests.calc.strategies import LLAMA, QUICK, device, models

QUERY = IntensityQuery(model=LLAMA, device=device())

queries = st.builds(
    IntensityQuery,
    model=models(),
    device=st.just(device()),
    attention=st.sampled_from(Attention),
    context=st.integers(1, 10**6),
    head_dim=st.integers(1, 512),
    group_size=st.integers(1, 16),
    element_bytes=st.sampled_from([1, 2, Fraction(17, 16), Fraction(9, 16)]),
    weight_element_bytes=st.sampled_from([2, Fraction(9, 16), Fraction(17, 32)]),
    softmax_flops=st.sampled_from([0, 5, 3, Fraction(7, 2)]),
    causal=st.booleans(),
    contexts=st.lists(st.integers(1, 10**6), min_size=1, max_size=4).map(tuple),
    batches=st.lists(st.integers(1, 10**6), min_size=1, max_size=4).map(tuple),
)


def test_the_assignments_point():
    report = intensity_report(QUERY)
    assert (report.prefill.flops, report.prefill.bytes) == (542_113_792, 9_437_184)
    assert (report.decode.flops, report.decode.bytes) == (529_408, 532_992)


def test_default_series():
    assert DEFAULT_CONTEXTS == (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
    assert DEFAULT_BATCHES == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    report = intensity_report(QUERY)
    assert tuple(p.context for p in report.prefill_by_context) == DEFAULT_CONTEXTS
    assert tuple(p.batch for p in report.decode_by_batch) == DEFAULT_BATCHES


@QUICK
@given(queries)
def test_every_point_is_the_formulas(query):
    report = textbook_report(query)
    names = ("head_dim", "group_size", "element_bytes", "softmax_flops", "causal")
    sizes = {n: getattr(query, n) for n in names}
    for point in report.prefill_by_context:
        work = attention_work(query.attention, Phase.PREFILL, n_keys=point.context, **sizes)
        assert (point.flops, point.bytes) == work
        assert point.intensity == float(Fraction(work[0]) / Fraction(work[1]))
    assert report.prefill == phase_cost(query.attention, Phase.PREFILL, context=query.context, **sizes)
    assert report.decode == phase_cost(query.attention, Phase.DECODE, context=query.context, **sizes)
    other = Attention.FLASH if query.attention is Attention.STANDARD else Attention.STANDARD
    assert report.other_prefill == phase_cost(other, Phase.PREFILL, context=query.context, **sizes)
    assert report.other_decode == phase_cost(other, Phase.DECODE, context=query.context, **sizes)
    for point in report.decode_by_batch:
        assert point.attention_intensity == pytest.approx(report.decode.intensity, rel=1e-12)


@QUICK
@given(queries)
def test_prefill_rises_towards_its_limit(query):
    report = textbook_report(query)
    points = sorted(report.prefill_by_context, key=lambda p: p.context)
    assert all(a.intensity <= b.intensity for a, b in pairwise(points))
    limit = report.prefill.limit
    assert (limit is None) == (query.attention is Attention.FLASH)
    assert limit is None or all(p.intensity < limit for p in points)


def test_both_group_sizes_are_there():
    report = intensity_report(QUERY)
    own = decode_point(LLAMA, 256, context=1024, group_size=4)
    assert report.decode_by_batch_grouped[-1] == own
    assert report.decode_by_batch[-1] == decode_point(LLAMA, 256, context=1024, group_size=1)
    assert own.attention_intensity > 3.7 > 1 > report.decode_by_batch[-1].attention_intensity


def test_head_dim_of_the_query_counts():
    report = intensity_report(replace(QUERY, head_dim=64))
    assert report.decode_by_batch[0] == decode_point(edit(LLAMA, head_dim=64), 1, context=1024, group_size=1)


@pytest.mark.parametrize("name", ["context", "head_dim", "group_size"])
@pytest.mark.parametrize("value", [0, -5, 10**13, 10**400, 1.5, True, "8"])
def test_impossible_sizes_are_refused(name, value):
    with pytest.raises(SpecError, match=f"^{name} must be") as caught:
        replace(QUERY, **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("name", ["contexts", "batches"])
@pytest.mark.parametrize("value", [(), (0,), (1, -1), (10**13,), (1.5,)])
def test_impossible_series_are_refused(name, value):
    with pytest.raises(SpecError, match=f"^{name} (needs|must be)") as caught:
        replace(QUERY, **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("name", ["element_bytes", "weight_element_bytes"])
@pytest.mark.parametrize("value", [0, -1, 65, Fraction(-1, 2)])
def test_impossible_element_sizes_are_refused(name, value):
    with pytest.raises(SpecError, match=f"^{name} must be above 0"):
        replace(QUERY, **{name: value})
