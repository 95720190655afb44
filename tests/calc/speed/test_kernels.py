"""Times of operators and passes, worked by hand, and what must hold for any of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import SpecError
from calc.model.storage import FORMATS, StorageFormat
from calc.model.study import DeviceSpec
from calc.sources.catalog import devices, find_device, find_model, manual_device
from calc.speed.constants import DEFAULTS, constants_of
from calc.speed.kernels import Device, Fullest, device_for_times, filling, fullest_rank, reach_of, timed
from calc.speed.passes import highest_peak, time_of, worked
from calc.step.model import pass_operators
from calc.step.operators import Kind, Operator, Pass, Phase
from calc.step.weights import as_stored, one_format
from tests.examples import examples

QUICK = examples(40)
LLAMA = find_model("llama-3-8b")


def device(name: str = "h100-sxm", weights: str = "bf16") -> Device:
    """A device for weights in a format of that name, in the bytes that the name says."""
    spec, halves = find_device(name), 4 if weights == "bf16" else 1 if "fp4" in weights else 2
    return device_for_times(spec, constants_of(spec), StorageFormat(weights, 2, halves))


def operator(name: str, work: Pass) -> Operator:
    return next(one for one in pass_operators(LLAMA, work) if one.name == name)


def test_a_product_of_one_row_is_read_at_the_bandwidth_that_products_reach() -> None:
    """Gate and up of Llama-3-8B on an H100: 2 · 4,096 · 28,672 B and vectors, at 0.807 of 3.35 TB/s after 3.9 us."""
    work = Pass(phase=Phase.DECODE, batch=1, context=1024)
    found = timed(operator("mlp.gate_up_proj", work), work, device())
    moved = 2 * (4096 * 28_672 + 4096 + 28_672)
    assert found.time_s == pytest.approx(32 * (3.9e-6 + moved / (3.35e12 * 0.807)))
    assert found.limited_by == "memory bandwidth"


def test_a_product_of_many_rows_is_computed_at_the_peak_that_products_reach() -> None:
    """4,096 tokens: 2 · 4,096 · 4,096 · 28,672 FLOPs at 0.758 of 989 TFLOP/s."""
    work = Pass(phase=Phase.PREFILL, batch=1, context=4096)
    found = timed(operator("mlp.gate_up_proj", work), work, device())
    assert found.time_s == pytest.approx(32 * (3.9e-6 + 2 * 4096 * 4096 * 28_672 / (989.4e12 * 0.758)), rel=2e-3)
    assert found.limited_by == "arithmetic"


def test_decode_attention_reads_the_cache_at_its_own_rate() -> None:
    """8 rows of 1,024 tokens: 8 · 1,024 · 2 · 8 · 128 · 2 B per layer at 0.73 of the bandwidth, after 13 us."""
    work = Pass(phase=Phase.DECODE, batch=8, context=1024)
    found = timed(operator("full attention", work), work, device())
    moved = 8 * 1024 * 2 * 8 * 128 * 2 + 2 * 8 * 32 * 128 * 2
    assert found.time_s == pytest.approx(32 * (13e-6 + moved / (3.35e12 * 0.73)))


def test_all_reduces_take_the_measured_link() -> None:
    """Llama-3-8B on 8 H100: 64 sums of 4,096 · 2 B, a rank sends 7/4 of that, at 328.95 GB/s after 5.4 us."""
    work = Pass(phase=Phase.DECODE, batch=1, context=1024, tp=8)
    found = timed(operator("all-reduce", work), work, device())
    assert found.time_s == pytest.approx(64 * (5.4e-6 + 4096 * 2 * 7 / 4 / 328.95e9))
    assert found.limited_by == "communication"


def test_nothing_beats_reading_the_weights_and_the_cache_once() -> None:
    """(8,030,261,248 - 525,336,576 of the embedding - 266,240 of norms) · 2 B and 1,024 · 131,072 B at 3.35 TB/s."""
    found = time_of(worked(LLAMA, Pass(phase=Phase.DECODE, batch=1, context=1024)), device())
    assert found.bound_s == pytest.approx((7_504_658_432 * 2 + 1024 * 131_072) / 3.35e12)
    assert found.expected_s > found.bound_s


def test_nothing_beats_the_arithmetic_of_a_prompt() -> None:
    """2 FLOPs per weight and token, the head once, and the causal half of attention: 2 · 2 · 32 · 128 per pair."""
    n = 4096
    found = time_of(worked(LLAMA, Pass(phase=Phase.PREFILL, batch=1, context=n)), device())
    flops = 2 * n * (7_504_658_432 - 525_336_576) + 2 * 525_336_576 + 32 * 4 * 32 * 128 * n * (n + 1) / 2
    assert found.bound_s == pytest.approx(flops / find_device("h100-sxm").peak_flops_per_s["bf16"])


def test_the_bound_takes_the_experts_of_one_token_and_the_middle_those_that_are_hit() -> None:
    model = find_model("mixtral-8x7b")
    work = Pass(phase=Phase.DECODE, batch=64, context=128)
    found = time_of(worked(model, work), device())
    experts = sum(one.operator.weight_bytes for one in found.operators if one.operator.kind is Kind.EXPERTS)
    one_expert = 3 * 4096 * 14_336 * 2
    assert experts == pytest.approx(32 * 8 * one_expert, rel=1e-6)
    dense = (model.n_layers * (4096 * 4096 * 2 + 2 * 4096 * 1024 + 4096 * 8) + 4096 * 32_000) * 2
    cache = 64 * 128 * 32 * 2 * 8 * 128 * 2
    assert found.least_memory_s * 3.35e12 == pytest.approx(dense + 32 * 2 * one_expert + cache, rel=1e-3)


def test_weights_in_8_bits_are_multiplied_in_8_bits_only_where_they_are_floats() -> None:
    assert device(weights="fp8, blocks of 128 x 128").path(1.0) == "fp8"
    assert device(weights="int8").path(1.0) == "bf16"
    assert device(weights="nvfp4").path(0.5625) == "bf16"  # no FP4 units on Hopper
    assert device("b200-sxm", weights="nvfp4").path(0.5625) == "fp4"
    assert device("a100-80gb", weights="fp8").path(1.0) == "bf16"  # no FP8 units on Ampere


def test_the_bound_of_narrow_weights_takes_the_fastest_arithmetic_there_is() -> None:
    """An engine may quantize activations too: 624 TOP/s in int8 on an A100, not 312 in 16 bits."""
    assert highest_peak(device("a100-80gb")) == 312e12
    assert highest_peak(device("a100-80gb", "int8")) == 624e12
    assert highest_peak(device("a100-80gb", "q8_0")) == 624e12
    assert highest_peak(device("rtx-4090")) == 2 * find_device("rtx-4090").peak_flops_per_s["bf16"]
    assert highest_peak(device("rtx-4090", "q8_0")) == max(find_device("rtx-4090").peak_flops_per_s.values())


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="the bandwidth and the 16-bit peak of a device with 80 GB"):
        device_for_times(manual_device(80 * 10**9), DEFAULTS, FORMATS["bf16"])


def test_every_device_has_constants_and_most_families_were_measured() -> None:
    known = [entry.name for entry in devices().values() if constants_of(entry.spec).known]
    assert {"NVIDIA H100 SXM", "NVIDIA A100 SXM 80GB", "NVIDIA B200 SXM", "NVIDIA RTX 4090"} <= set(known)
    assert not any(name.startswith(("AMD", "Apple", "Google", "Intel")) for name in known)


def spec(bandwidth: float, peak: float) -> DeviceSpec:
    return replace(manual_device(80 * 10**9), bandwidth_bytes_per_s=bandwidth, peak_flops_per_s={"bf16": peak})


@QUICK
@given(batch=st.integers(1, 300), context=st.integers(1, 20_000), tp=st.sampled_from((1, 2, 4, 8)))
def test_time_never_falls_as_there_is_more_to_do(batch: int, context: int, tp: int) -> None:
    work = Pass(phase=Phase.DECODE, batch=batch, context=context, tp=tp, weight_bytes=one_format(2))
    here = device()
    now = time_of(worked(LLAMA, work), here).expected_s
    assert time_of(worked(LLAMA, replace(work, batch=batch + 1)), here).expected_s >= now
    assert time_of(worked(LLAMA, replace(work, context=context + 100)), here).expected_s >= now


@QUICK
@given(name=st.sampled_from(("llama-3-8b", "deepseek-v3", "gpt-oss-120b", "qwen3.5-35b-a3b")), batch=st.integers(1, 64))
def test_the_bound_is_below_what_is_expected_for_every_kind_of_model(name: str, batch: int) -> None:
    model = find_model(name)
    work = Pass(phase=Phase.DECODE, batch=batch, context=2048, weight_bytes=as_stored(model))
    stored = "bf16" if model.stored is None else model.stored.name
    found = time_of(worked(model, work), device("b200-sxm", stored))
    assert 0 < found.bound_s <= found.expected_s
    assert sum(one.time_s for one in found.operators) == pytest.approx(found.expected_s)


def test_a_slower_device_is_slower() -> None:
    work = Pass(phase=Phase.DECODE, batch=4, context=512)
    times = [
        time_of(worked(LLAMA, work), device_for_times(spec(b, 1e14), DEFAULTS, FORMATS["bf16"])).expected_s
        for b in (1e12, 2e12)
    ]
    assert times[0] > times[1]


def test_the_fullest_rank_is_waited_for() -> None:
    """Two ranks, 8 tokens of Qwen3-30B-A3B: 32 rows in the mean, and the fuller one has 0.589 deviations more: 4·√½·…

    Deviation of the rows: sqrt(32 · 1/2) = 4. Of 64 experts a rank expects to use 64 (1 - (15/16)^8) = 25.81 with a
    deviation of sqrt(25.81 · (1 - 25.81/64)) = 3.92.
    """
    model, work = find_model("qwen3-30b-a3b"), Pass(phase=Phase.DECODE, batch=8, context=100, tp=2, ep=2)
    experts = next(one for one in pass_operators(model, work) if one.kind is Kind.EXPERTS)
    found = fullest_rank(experts, work)
    assert found.compute == pytest.approx(1 + 0.589 * 4 / 32, rel=1e-3)
    assert found.memory == pytest.approx(1 + 0.589 * 3.924 / 25.81, rel=1e-3)
    assert fullest_rank(experts, replace(work, ep=1)) == Fullest()


@QUICK
@given(batch=st.integers(1, 3000), ep=st.sampled_from((2, 4, 8, 16)))
def test_the_fullest_rank_never_does_less_with_more_tokens(batch: int, ep: int) -> None:
    model = find_model("qwen3-30b-a3b")

    def time_s(n: int) -> float:
        work = Pass(phase=Phase.DECODE, batch=n, context=100, tp=ep, ep=ep)
        return sum(timed(one, work, device()).memory_s for one in pass_operators(model, work))

    assert time_s(batch + 1) >= time_s(batch) * (1 - 1e-12)


def test_narrow_experts_times_16_bits_are_an_operator_of_their_own() -> None:
    """gpt-oss on Hopper, which has no FP4: what was measured for mxfp4 weights times 16 bits; llama.cpp has its own."""
    model, work = find_model("gpt-oss-20b"), Pass(phase=Phase.DECODE, batch=64, context=100)
    narrow = replace(work, weight_bytes=as_stored(model))
    experts = next(one for one in pass_operators(model, narrow) if one.kind is Kind.EXPERTS)
    known = constants_of(find_device("h100-sxm")).experts
    assert reach_of(experts, narrow, device("h100-sxm", "mxfp4")) == (known["w4a16"], "bf16")
    assert reach_of(experts, narrow, replace(device("h100-sxm", "mxfp4"), tiled=False)) == (known["bf16"], "bf16")
    assert reach_of(experts, narrow, device("b200-sxm", "mxfp4"))[1] == "fp4"


# Operators by hand


def test_prefill_attention_computes_its_triangle() -> None:
    """2,048 tokens: half of 32 heads x 2,048² scores of 2 · 128 products each for K and V and 5 FLOPs of softmax."""
    work = Pass(phase=Phase.PREFILL, batch=1, context=2048)
    found = timed(operator("full attention", work), work, device())
    flops = 32 * 2048 * 2049 // 2 * (4 * 128 + 5)
    assert found.time_s == pytest.approx(32 * (13e-6 + flops / (989.5e12 * 0.548)), rel=1e-3)
    assert found.limited_by == "arithmetic"


def test_the_head_sees_one_token_of_a_prompt() -> None:
    """128,256 x 4,096 weights of 2 B, whatever the prompt."""
    work = Pass(phase=Phase.PREFILL, batch=1, context=2048)
    moved = 2 * (128_256 * 4096 + 4096 + 128_256)
    found = timed(operator("lm_head", work), work, device())
    assert found.time_s == pytest.approx(3.9e-6 + moved / (3.35e12 * 0.807))


def test_experts_of_one_token_are_read_and_start_once_for_both_products() -> None:
    """Qwen3-30B-A3B: 8 of 128 experts, gate and up of 768 x 2,048; half of 35.65 us; a tile of 16 rows for one row."""
    model, work = find_model("qwen3-30b-a3b"), Pass(phase=Phase.DECODE, batch=1, context=100)
    up = next(one for one in pass_operators(model, work) if one.name == "mlp.experts.0.gate_up_proj")
    moved = 8 * 2 * (2 * 768 * 2048 + 2048 + 2 * 768)
    found = timed(up, work, device())
    assert found.time_s == pytest.approx(48 * (35.65e-6 / 2 + moved / (3.35e12 * 0.891)))
    flops = 8 * 16 * 2 * 2 * 768 * 2048
    assert found.compute_s == pytest.approx(48 * flops / (989.5e12 * 0.482), rel=1e-3)


def test_experts_of_many_tokens_fill_tiles_of_64_rows() -> None:
    """1,024 tokens: 8,192 rows over all 128 experts, 64 each: whole tiles. 1,152 tokens: 72 rows fill two, 128."""
    model = find_model("qwen3-30b-a3b")
    for tokens, factor in ((1024, 1.0), (1152, 128 / 72)):
        work = Pass(phase=Phase.DECODE, batch=tokens, context=100)
        up = next(one for one in pass_operators(model, work) if one.kind is Kind.EXPERTS)
        assert filling(up, work) == pytest.approx(factor, rel=1e-3)


def test_an_element_by_element_operator_moves_vectors() -> None:
    """65 norms of Llama-3-8B: 2 us each, and for 4 tokens twice read, twice written 4,096 x 2 B, and the weights."""
    work = Pass(phase=Phase.DECODE, batch=4, context=100)
    found = timed(operator("norm, residual", work), work, device())
    moved = 4 * 2 * 2 * 4096 * 2 + 4096 * 2
    assert found.time_s == pytest.approx(65 * (2e-6 + moved / (3.35e12 * 0.7)))
    assert found.limited_by == "overhead"


def test_an_exchange_starts_twice() -> None:
    """DeepSeek-V3 in 8 groups: 61 exchanges of 8 tokens, there and back."""
    model = find_model("deepseek-v3")
    work = Pass(phase=Phase.DECODE, batch=64, context=2048, tp=8, ep=8, groups=8)
    exchange = next(one for one in pass_operators(model, work) if one.kind is Kind.EXCHANGE)
    link = constants_of(find_device("h100-sxm")).all_reduce[8]
    sent = 8 * 7168 * 2 * 8 * 2 * 7 / 8
    assert timed(exchange, work, device()).time_s == pytest.approx(61 * (2 * link.t0_s + sent / link.bytes_per_s))


def test_a_send_crosses_one_link() -> None:
    work = Pass(phase=Phase.DECODE, batch=8, context=100, tp=2, stages=4)
    send = next(one for one in pass_operators(LLAMA, work) if one.kind is Kind.SEND)
    link = constants_of(find_device("h100-sxm")).all_reduce[2]
    assert timed(send, work, device()).time_s == pytest.approx(3 * (link.t0_s + 8 * 4096 * 2 / link.bytes_per_s))
