"""The work of a latency sweep: worked by hand for the assignment's model, 20 tokens after a prompt of 10."""

from __future__ import annotations

import pytest

from tests.records import model_info
from tui.live.sweep_work import sweep_work

ASSIGNMENT = model_info(
    name="assignment", path="none.pt", n_layers=2, n_heads=1, n_kv_heads=1, head_dim=50, hidden_size=50,
    intermediate_size=100, vocab_size=1000, max_positions=128, gated_mlp=False, tied=False, norm="layernorm",
    mlp_bias=True, head_bias=True, learned_positions=True, read_bytes_per_s=1e9, matmul_flops_per_s=1e9,
)  # fmt: skip


def test_the_work_of_both_arms_is_what_a_hand_finds() -> None:
    """Per token 2 x 40,000 FLOPs in the layers and 2 x 50,000 in the head; attention 2 x (4 x 50 + 5) per pair.

    With: 10 x 80,000 + 100,000 + 410 x 100, then 19 x 180,000 + 410 x (11 + ... + 29).
    Without: 80,000 x (10 + ... + 29) + 20 x 100,000 + 410 x (10^2 + ... + 29^2).
    Bytes: 20 times 90,000 weights of 4 bytes; with the cache 800 more per token that a step attends to.
    """
    (work,) = sweep_work(ASSIGNMENT, [10], new_tokens=20)
    assert work.with_cache.flops == 941_000 + 19 * 180_000 + 410 * 380 == 4_516_800
    assert work.without_cache.flops == 80_000 * 390 + 2_000_000 + 410 * 8_270 == 36_590_700
    assert work.without_cache.moved_bytes == 20 * 360_000
    assert work.with_cache.moved_bytes == 20 * 360_000 + 800 * 380


def test_the_least_time_is_the_slower_of_reading_and_multiplying_of_each_pass() -> None:
    (work,) = sweep_work(ASSIGNMENT, [10], new_tokens=2)
    steps_s = (941_000, 360_000 + 800 * 11)  # the prompt is arithmetic, the step reading
    assert work.with_cache.least_s == pytest.approx(sum(steps_s) / 1e9)


def test_without_rates_there_is_no_least_time() -> None:
    bare = model_info(path="none.pt")
    (work,) = sweep_work(bare, [10], new_tokens=2)
    assert (work.with_cache.least_s, work.without_cache.least_s) == (None, None)
