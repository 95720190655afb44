"""What is shown of an operator's time is what was computed."""

from __future__ import annotations

from fractions import Fraction

import pytest

from calc.commands.tables import term_value
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model
from calc.speed.asked import Asked, Load
from calc.speed.crossings import compute_bound_prompt, products_compute_bound_batch
from calc.speed.derivation import time_terms, token_terms
from calc.speed.estimate import estimate
from calc.speed.room import room_of
from calc.speed.steps import Steps
from calc.step.operators import Phase


def steps(model: str, *, tp: int = 1, engine: str = "vllm", tokens: int = 1024) -> Steps:
    study = Study(model=find_model(model), device=find_device("h100-sxm"), policy=Policy.REPLICATED)
    return Steps(study=study, asked=Asked(engine=engine, tp=tp, prompt_tokens=tokens, new_tokens=1))


@pytest.mark.parametrize("model", ["llama-3-8b", "gpt-oss-20b", "deepseek-v3"])
@pytest.mark.parametrize("phase", list(Phase))
def test_the_derived_time_of_every_operator_is_its_time(model: str, phase: Phase) -> None:
    at = steps(model, tp=2)
    done = at.prefill(4) if phase is Phase.PREFILL else at.decode(4, 1024)
    for one in done.operators:
        whole, run, *rest = time_terms(one.operator, done.work, at.device)
        assert float(whole.value) == pytest.approx(one.time_s, rel=1e-12)
        assert float(whole.value) == pytest.approx(one.operator.count * float(run.value))
        assert {term.name for term in one.operator.terms} <= {term.name for term in rest}


def test_a_product_is_worked_out_by_hand() -> None:
    """The QKV product of Llama-3-8B, one row: 4,096 x 6,144 weights of 2 B, 32 layers; Hopper's measured reach."""
    at = steps("llama-3-8b")
    step = at.decode(1, 1024)
    one = next(o for o in step.operators if o.operator.name == "self_attn.qkv_proj")
    whole, run, intensity, *_ = time_terms(one.operator, step.work, at.device)
    reach = at.device.constants.product["bf16"]
    moved = 4096 * 6144 * 2 + 2 * 4096 + 2 * 6144
    by_hand = reach.t0_s + moved / (3.35e12 * reach.bandwidth)
    assert float(run.value) == pytest.approx(by_hand)
    assert float(whole.value) == pytest.approx(32 * by_hand)
    assert float(intensity.value) == pytest.approx(2 * 4096 * 6144 / moved)
    assert run.formula == "t_0 + max(F / π_r, Q / β_r)"
    assert term_value(run).endswith(" µs")


def test_products_cross_where_their_arithmetic_takes_as_long_as_their_bytes() -> None:
    at = steps("llama-3-8b")
    batch = products_compute_bound_batch(at)
    assert batch is not None
    products = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj", "lm_head")

    def sides(n: int) -> tuple[float, float]:
        found = [one for one in at.decode(n, 1024).operators if one.operator.name in products]
        return sum(one.compute_s for one in found), sum(one.memory_s for one in found)

    assert sides(batch)[0] >= sides(batch)[1]
    assert sides(batch - 1)[0] < sides(batch - 1)[1]


def test_the_shortest_prompt_that_arithmetic_limits() -> None:
    tokens = compute_bound_prompt(steps("llama-3-8b"))
    assert tokens is not None
    longer, shorter = steps("llama-3-8b", tokens=tokens).prefill(), steps("llama-3-8b", tokens=tokens - 1).prefill()
    assert longer.compute_s >= longer.memory_s
    assert shorter.compute_s < shorter.memory_s


@pytest.mark.parametrize("load", list(Load))
@pytest.mark.parametrize("drafted", [0, 3])
def test_the_derived_time_per_token_is_that_of_the_estimate(load: Load, drafted: int) -> None:
    study = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"), policy=Policy.REPLICATED)
    asked = Asked(load=load, count=None if load is Load.MAX else 16, drafted=drafted, acceptance=Fraction(1, 2))
    answer = estimate(study, asked, room_of(study, asked))
    assert answer.tpot is not None
    assert answer.user_rate is not None
    time, *_, seen = token_terms(Steps(study=study, asked=asked), int(answer.batch))
    assert float(time.value) == pytest.approx(answer.tpot.mid)
    assert float(seen.value) == pytest.approx(answer.user_rate.mid)
