"""Attention: the goldens worked by hand, and Algorithm 0 simulated with every element and FLOP counted."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import SpecError
from calc.explain.terms import evaluate, substituted, to_text
from calc.intensity.attention import Attention, Phase, attention_steps, attention_work, phase_cost
from tests.calc.strategies import QUICK, read_text

SIZES = {"head_dim": 128, "group_size": 1, "softmax_flops": 5, "element_bytes": 2}


class Memory:
    """Device memory in which every access of an element is counted."""

    def __init__(self):
        self.reads = self.writes = self.flops = 0

    def array(self, *shape):
        return Counted(self, np.zeros(shape, dtype=int))


class Counted:
    """An array that counts: ``load`` and ``store`` are the only ways in."""

    def __init__(self, memory, seen):
        self.memory, self.seen = memory, seen

    def load(self):
        """All of it, once, to the chip."""
        self.memory.reads += self.seen.size

    def store(self, *at):
        self.memory.writes += 1
        self.seen[at] += 1


def simulate(*, n_queries, n_keys, head_dim, group_size, standard):
    """Attention of one KV head as Algorithm 0 does it, in loops; (FLOPs, reads, writes) of each of the three steps.

    A multiply-add is counted where it happens; the softmax counts maximum, subtraction, exponential, sum and
    division for each element. K and V come from memory once for the group, Q, S, P, O for each query head.
    """
    totals = []
    step = Memory()
    keys, queries = step.array(n_keys, head_dim), step.array(group_size, n_queries, head_dim)
    scores = step.array(group_size, n_queries, n_keys)
    keys.load()
    queries.load()
    for h in range(group_size):
        for i in range(n_queries):
            for j in range(n_keys):
                for _ in range(head_dim):
                    step.flops += 2
                if standard:
                    scores.store(h, i, j)
    totals.append((step.flops, step.reads, step.writes))

    step = Memory()
    scores, weights = step.array(group_size, n_queries, n_keys), step.array(group_size, n_queries, n_keys)
    if standard:
        scores.load()
    for h in range(group_size):
        for i in range(n_queries):
            for j in range(n_keys):
                for _operation in ("max", "subtract", "exp", "sum", "divide"):
                    step.flops += 1
                if standard:
                    weights.store(h, i, j)
    totals.append((step.flops, step.reads, step.writes))

    step = Memory()
    weights, values = step.array(group_size, n_queries, n_keys), step.array(n_keys, head_dim)
    out = step.array(group_size, n_queries, head_dim)
    if standard:
        weights.load()
    values.load()
    for h in range(group_size):
        for i in range(n_queries):
            for k in range(head_dim):
                for _ in range(n_keys):
                    step.flops += 2
                out.store(h, i, k)
    totals.append((step.flops, step.reads, step.writes))
    return totals


@pytest.mark.parametrize("kind", Attention)
@pytest.mark.parametrize("phase", Phase)
@QUICK
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_every_step_against_a_counting_simulation(kind, phase, n_keys, head_dim, group_size):
    sizes = {"n_keys": n_keys, "head_dim": head_dim, "group_size": group_size}
    counted = simulate(n_queries=n_keys if phase is Phase.PREFILL else 1, standard=kind is Attention.STANDARD, **sizes)
    steps = attention_steps(kind, phase, softmax_flops=5, **sizes)
    assert [(s.flops, s.reads, s.writes) for s in steps] == counted
    flops, moved = attention_work(kind, phase, softmax_flops=5, element_bytes=2, **sizes)
    assert flops == sum(f for f, _, _ in counted)
    assert moved == 2 * sum(r + w for _, r, w in counted)


def test_prefill_worked_by_hand():
    """FACTS section 0: N = 1024, d = 128, two bytes."""
    cost = phase_cost(Attention.STANDARD, Phase.PREFILL, context=1024, head_dim=128)
    assert (cost.flops, cost.bytes) == (542_113_792, 9_437_184)
    assert round(cost.intensity, 2) == 57.44
    assert (
        round(phase_cost(Attention.STANDARD, Phase.PREFILL, context=1024, head_dim=128, softmax_flops=0).intensity, 2)
        == 56.89
    )


def test_decode_worked_by_hand():
    cost = phase_cost(Attention.STANDARD, Phase.DECODE, context=1024, head_dim=128)
    assert (cost.flops, cost.bytes) == (529_408, 532_992)
    assert round(cost.intensity, 3) == 0.993


def test_flash_prefill_is_q_k_v_and_o_once():
    cost = phase_cost(Attention.FLASH, Phase.PREFILL, context=1024, head_dim=128)
    assert (cost.flops, cost.bytes) == (542_113_792, 4 * 1024 * 128 * 2)
    assert cost.limit is None
    assert cost.limit_formula is None


def test_formulas_in_n_and_d():
    prefill = phase_cost(Attention.STANDARD, Phase.PREFILL, context=1024, head_dim=128)
    decode = phase_cost(Attention.STANDARD, Phase.DECODE, context=1024, head_dim=128)
    assert to_text(prefill.flops_formula) == "4 · N² · d + 5 · N²"
    assert to_text(prefill.bytes_formula) == "b · (4 · N² + 4 · N · d)"
    assert to_text(prefill.limit_formula) == "(4 · d + 5) / (4 · b)"
    assert to_text(decode.flops_formula) == "4 · N · d + 5 · N"
    assert to_text(decode.bytes_formula) == "b · (2 · N · d + 4 · N + 2 · d)"
    assert to_text(decode.intensity_formula) == "(4 · N · d + 5 · N) / (2 · b · N · d + 4 · b · N + 2 · b · d)"


def test_without_softmax_prefill_tends_to_d_over_b():
    cost = phase_cost(Attention.STANDARD, Phase.PREFILL, context=64, head_dim=128, softmax_flops=0)
    assert to_text(cost.limit_formula) == "d / b"
    assert cost.limit == 64


def test_the_limit_is_where_the_values_go():
    cost = phase_cost(Attention.STANDARD, Phase.PREFILL, context=1024, head_dim=128)
    far = phase_cost(Attention.STANDARD, Phase.PREFILL, context=10**9, head_dim=128)
    assert far.intensity == pytest.approx(cost.limit, rel=1e-6)
    assert far.intensity < cost.limit


def test_group_of_one_is_not_written():
    cost = phase_cost(Attention.STANDARD, Phase.PREFILL, context=8, head_dim=4)
    assert "g" not in to_text(cost.intensity_formula)
    grouped = phase_cost(Attention.STANDARD, Phase.PREFILL, context=8, head_dim=4, group_size=2)
    assert "g" in to_text(grouped.bytes_formula)


sizes = st.fixed_dictionaries(
    {
        "context": st.integers(1, 10**6),
        "head_dim": st.integers(1, 1024),
        "group_size": st.integers(1, 64),
        "element_bytes": st.sampled_from([1, 2, 4, Fraction(17, 16), Fraction(9, 16), Fraction(1, 2)]),
        "softmax_flops": st.sampled_from([0, 5]),
    }
)


@pytest.mark.parametrize("kind", Attention)
@pytest.mark.parametrize("phase", Phase)
@QUICK
@given(sizes)
def test_step_table_sums_to_the_total(kind, phase, size):
    cost = phase_cost(kind, phase, **size)
    assert sum(step.flops for step in cost.steps) == cost.flops
    assert sum(Fraction(step.read_bytes) + Fraction(step.write_bytes) for step in cost.steps) == cost.bytes
    assert cost.intensity == float(Fraction(cost.flops) / Fraction(cost.bytes))


@pytest.mark.parametrize("kind", Attention)
@pytest.mark.parametrize("phase", Phase)
@QUICK
@given(sizes)
def test_every_formula_has_its_value_as_text(kind, phase, size):
    """The formulas as a reader sees them, numbers put in and read back."""
    cost = phase_cost(kind, phase, **size)
    assert read_text(substituted(cost.flops_formula, cost.values)) == cost.flops
    assert read_text(substituted(cost.bytes_formula, cost.values)) == cost.bytes
    assert read_text(substituted(cost.intensity_formula, cost.values)) == Fraction(cost.flops) / Fraction(cost.bytes)
    for step in cost.steps:
        element = Fraction(size["element_bytes"])
        assert evaluate(step.flops_formula, cost.values) == step.flops
        assert read_text(substituted(step.reads_formula, cost.values)) * element == step.read_bytes
        assert read_text(substituted(step.writes_formula, cost.values)) * element == step.write_bytes


@pytest.mark.parametrize("kind", Attention)
@pytest.mark.parametrize("phase", Phase)
def test_arrays_are_lists_of_numbers(kind, phase):
    contexts = [1, 64, 1000, 2**20]
    flops, moved = attention_work(kind, phase, n_keys=np.array(contexts, dtype=object), **SIZES)
    assert list(zip(flops, moved, strict=True)) == [attention_work(kind, phase, n_keys=n, **SIZES) for n in contexts]


@QUICK
@given(st.integers(1, 10**6), st.integers(1, 512), st.integers(1, 64))
def test_grouping_spares_the_cache_reads_only(context, head_dim, group):
    """g heads one by one against g heads on one KV head: the same FLOPs, (g - 1) fewer readings of K and V."""
    shape = {"n_keys": context, "head_dim": head_dim, "softmax_flops": 5, "element_bytes": 2}
    alone = attention_work(Attention.STANDARD, Phase.DECODE, group_size=1, **shape)
    shared = attention_work(Attention.STANDARD, Phase.DECODE, group_size=group, **shape)
    assert shared[0] == group * alone[0]
    assert group * alone[1] - shared[1] == (group - 1) * 2 * context * head_dim * 2


@QUICK
@given(st.integers(1, 10**5), st.integers(1, 512), st.integers(1, 16))
def test_flash_spares_s_and_p_only(context, head_dim, group):
    shape = {"n_keys": context, "head_dim": head_dim, "group_size": group, "softmax_flops": 5, "element_bytes": 2}
    for phase, scores in ((Phase.PREFILL, group * context**2), (Phase.DECODE, group * context)):
        standard = attention_work(Attention.STANDARD, phase, **shape)
        flash = attention_work(Attention.FLASH, phase, **shape)
        assert standard[0] == flash[0]
        assert standard[1] - flash[1] == 4 * scores * 2


@pytest.mark.parametrize("name", ["context", "head_dim", "group_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_below_one_are_refused(name, value):
    with pytest.raises(SpecError, match=f"{name} must be at least 1") as caught:
        phase_cost(Attention.STANDARD, Phase.PREFILL, **{"context": 1, "head_dim": 1, name: value})
    assert caught.value.field == name
