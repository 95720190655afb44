"""The prediction beside the measurement: calc's spec of a loaded model, cache bytes, and the work of both ways."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.intensity.attention import Attention, Phase, attention_work
from calc.intensity.traffic import linear_flops, linear_params
from calc.model.count import parameters
from calc.model.edit import edit
from calc.model.parts import Mlp, Norm
from calc.model.spec import ModelSpec
from engine.records import ModelInfo
from tests.examples import examples
from tests.records import batch_row
from tests.tui.fake_engine import TOKEN_BYTES, model
from tui.live.predict import (
    Work,
    cache_token_term,
    generation_work,
    predicted_batches,
    predicted_cache_bytes,
    predicted_times,
    read_weight_bytes,
    spec_of,
)

INFO: ModelInfo = model(None, tokenizer=True)


def reference() -> ModelInfo:
    """The assignment's model as the engine describes it (FACTS: 1000 words, 50 wide, 128 learned positions)."""
    return msgspec.structs.replace(
        INFO,
        n_heads=1,
        n_kv_heads=1,
        head_dim=50,
        hidden_size=50,
        intermediate_size=100,
        vocab_size=1000,
        max_positions=128,
        dtype="float64",
        gated_mlp=False,
        tied=False,
        norm="layernorm",
        mlp_bias=True,
        head_bias=True,
        learned_positions=True,
        kv_bytes_per_token=2 * 2 * 50 * 8,
    )


def test_the_spec_has_the_switches_of_the_loaded_model() -> None:
    spec = spec_of(reference())
    assert (spec.mlp, spec.norm, spec.n_learned_positions) == (Mlp.PLAIN, Norm.LAYER, 128)
    # Embeddings 50,000 + 6,400; a layer 4 x 2,500 + 10,000 + 150 + 200; final norm 100; head 50,000 + 1,000.
    assert parameters(spec).total == 50_000 + 6_400 + 2 * (10_000 + 10_150 + 200) + 100 + 51_000
    assert spec_of(INFO).mlp is Mlp.GATED
    assert spec_of(INFO).n_learned_positions == 0


def test_predicted_bytes_are_those_the_engine_reports() -> None:
    assert cache_token_term(INFO).value == INFO.kv_bytes_per_token == TOKEN_BYTES
    assert cache_token_term(reference()).value == reference().kv_bytes_per_token
    assert predicted_cache_bytes(INFO, 205) == 205 * TOKEN_BYTES
    assert predicted_cache_bytes(INFO, 0) == 0


@pytest.mark.parametrize(("dtype", "size"), [("float64", 8), ("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_every_dtype_has_its_bytes(dtype: str, size: int) -> None:
    info = msgspec.structs.replace(INFO, dtype=dtype)
    assert cache_token_term(info).value == 2 * 2 * 2 * 64 * size


def work_step_by_step(spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Work:
    """The same sums, a step at a time, each from calc's own formulas."""

    def attention(phase: Phase, n: int) -> int:
        flops, _ = attention_work(
            Attention.STANDARD,
            phase,
            n_keys=n,
            head_dim=spec.head_dim,
            group_size=spec.group_size,
            softmax_flops=5,
            element_bytes=1,
        )
        return int(flops) * spec.n_layers * spec.n_kv_heads

    def linear(n: int) -> int:
        return int(linear_flops(batch=n, parameters=linear_params(spec)))

    cached = linear(prompt_tokens) + attention(Phase.PREFILL, prompt_tokens)
    recomputed = cached
    for n in range(prompt_tokens + 1, prompt_tokens + new_tokens):
        cached += linear(1) + attention(Phase.DECODE, n)
        recomputed += linear(n) + attention(Phase.PREFILL, n)
    return Work(cached, recomputed)


@examples(30)
@given(prompt=st.integers(1, 60), new=st.integers(1, 60), kv=st.sampled_from([1, 2, 3, 6]))
def test_work_in_closed_form_is_the_sum_of_the_steps(prompt: int, new: int, kv: int) -> None:
    spec = edit(spec_of(INFO), n_kv_heads=kv)
    assert generation_work(spec, prompt_tokens=prompt, new_tokens=new) == work_step_by_step(spec, prompt, new)


def test_one_token_is_the_same_work_either_way() -> None:
    work = generation_work(spec_of(INFO), prompt_tokens=17, new_tokens=1)
    assert work.ratio == 1


def test_least_times_by_hand() -> None:
    """A two-layer model at 1 GB/s and 1 TFLOP/s: a token reads all weights and 60 tokens of cache."""
    info = msgspec.structs.replace(INFO, read_bytes_per_s=1e9, matmul_flops_per_s=1e12)
    layer = 2 * 384 * 6 * 64 + 2 * 384 * 2 * 64 + 3 * 384 * 896
    weights = 4 * (2 * layer + 2048 * 384)
    bounds = predicted_times(info, "full", prompt_tokens=50, new_tokens=20)
    assert bounds is not None
    assert bounds.step_bytes == weights + 60 * TOKEN_BYTES
    assert bounds.tpot_s == pytest.approx((weights + 60 * TOKEN_BYTES) / 1e9)
    assert bounds.ttft_s == pytest.approx(weights / 1e9)  # reading the weights takes longer than 50 tokens' FLOPs
    slow = msgspec.structs.replace(info, matmul_flops_per_s=1e9)
    computed = predicted_times(slow, "full", prompt_tokens=50, new_tokens=20)
    assert computed is not None
    attention = attention_flops(spec_of(INFO), 50)
    assert computed.ttft_s == pytest.approx((2 * 50 * 2 * layer + 2 * 2048 * 384 + attention) / 1e9)
    assert computed.tpot_s == bounds.tpot_s

    # 40 of the 50 were in the cache: ten run through the layers, and attend to all before them; a step reads the same.
    again = predicted_times(slow, "full", prompt_tokens=50, new_tokens=20, reused_tokens=40)
    assert again is not None
    attention -= attention_flops(spec_of(INFO), 40)
    assert again.ttft_s == pytest.approx((2 * 10 * 2 * layer + 2 * 2048 * 384 + attention) / 1e9)
    assert again.tpot_s == bounds.tpot_s


def attention_flops(spec: ModelSpec, n_tokens: int) -> int:
    flops, _ = attention_work(
        Attention.STANDARD, Phase.PREFILL, n_keys=n_tokens, head_dim=spec.head_dim, group_size=spec.group_size,
        softmax_flops=5, element_bytes=4,
    )  # fmt: skip
    return int(flops) * spec.n_layers * spec.n_kv_heads


def test_without_the_machines_rates_there_are_no_times() -> None:
    assert predicted_times(INFO, "full", prompt_tokens=50, new_tokens=20) is None


def test_an_int4_model_reads_its_head_in_8_bits() -> None:
    spec = spec_of(INFO)
    head = 2048 * 384
    layers = linear_params(spec) - head
    assert read_weight_bytes(spec, "int4") == layers * 20 / 32 + head * 34 / 32
    assert read_weight_bytes(spec, "bfloat16") == 2 * (layers + head)


def test_batches_by_hand() -> None:
    """Bandwidth from batch 1; 2 rows read one more cache; 64 rows at 1 GFLOP/s are bound by arithmetic."""
    layer = 2 * 384 * 6 * 64 + 2 * 384 * 2 * 64 + 3 * 384 * 896
    linear = 2 * layer + 2048 * 384
    weights, cache = 4 * linear, 60 * TOKEN_BYTES
    spec = spec_of(INFO)
    prompt_flops = 2 * 100 * 2 * layer + 2 * 2048 * 384 + attention_flops(spec, 100)
    rows = [batch_row(1, 0.001), batch_row(2, 0.0015), batch_row(64, 0.9)]
    predicted = predicted_batches(INFO, rows, prefill_tokens=100, prefill_s=prompt_flops / 1e9)
    assert predicted is not None
    assert predicted.bytes_per_s == pytest.approx((weights + cache) / 0.001)
    assert predicted.flops_per_s == pytest.approx(1e9)
    one, two, many = predicted.tokens_per_s
    # A row: every weight once, and (2 + 5 + 2 x 64 x 2) FLOPs or so a token and head: calc's decode formula.
    flops, _ = attention_work(
        Attention.STANDARD, Phase.DECODE, n_keys=1, head_dim=64, group_size=3, softmax_flops=5, element_bytes=4
    )
    a_row = 2 * linear + int(flops) * 2 * 2 * 60
    assert many == pytest.approx(1e9 / a_row)
    assert predicted.computing == (True, True, True)  # 1 GFLOP/s is slow: 7 MFLOP a row against 1 ms
    assert one == two == pytest.approx(many)

    fast = predicted_batches(INFO, rows, prefill_tokens=100, prefill_s=prompt_flops / 1e12)
    assert fast is not None
    assert fast.tokens_per_s[0] == pytest.approx(1000)  # what was measured: the bandwidth comes from it
    assert fast.tokens_per_s[1] == pytest.approx(2 * (weights + cache) / (weights + 2 * cache) / 0.001)
    assert fast.tokens_per_s[2] == pytest.approx(64 * (weights + cache) / (weights + 64 * cache) / 0.001)
    assert fast.computing == (False, False, False)
    between = predicted_batches(INFO, rows, prefill_tokens=100, prefill_s=prompt_flops / 1e11)
    assert between is not None
    assert between.computing == (False, False, True)
    assert between.tokens_per_s[2] == pytest.approx(1e11 / a_row)


def test_without_batch_1_the_smallest_gives_the_bandwidth() -> None:
    rows = [batch_row(8, 0.002), batch_row(4, 0.001)]
    predicted = predicted_batches(INFO, rows, prefill_tokens=256, prefill_s=1e-9)
    assert predicted is not None
    assert predicted.tokens_per_s[1] == pytest.approx(4000)
    assert predicted.smallest == 4
    assert "(measured at the smallest batch, 4)" in predicted.basis
    assert "(measured on a prompt of 256 tokens)" in predicted.basis
    assert predicted_batches(INFO, [], prefill_tokens=256, prefill_s=1.0) is None
