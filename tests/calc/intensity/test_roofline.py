"""Least times of a pass, by hand on Llama-3-8B."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from calc.intensity.roofline import bound_s, decode_bytes, prefill_flops
from calc.sources.catalog import find_model

positive = st.fractions(min_value=Fraction(1, 1000), max_value=1000)


def test_a_decode_step_reads_the_weights_and_the_cache() -> None:
    assert decode_bytes(weight_bytes=16_000, kv_token_bytes=131_072, context=8192) == 16_000 + 131_072 * 8192


def test_a_prompt_goes_through_the_layers_whole_and_through_the_head_once() -> None:
    llama = find_model("llama-3-8b")
    layer = 4096 * 4096 * 2 + 2 * 4096 * 1024 + 3 * 4096 * 14336
    head = 128_256 * 4096
    assert prefill_flops(llama, 1, attention_flops=0) == 2 * (32 * layer + head)
    assert prefill_flops(llama, 100, attention_flops=7) == 200 * 32 * layer + 2 * head + 7


@given(positive, positive, positive, positive)
def test_the_slower_of_moving_and_computing_bounds(
    moved: Fraction, flops: Fraction, bandwidth: Fraction, peak: Fraction
) -> None:
    least = bound_s(moved_bytes=moved, flops=flops, bytes_per_s=bandwidth, flops_per_s=peak)
    assert least >= moved / bandwidth
    assert least >= flops / peak
    assert least in (moved / bandwidth, flops / peak)
