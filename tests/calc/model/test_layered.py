"""Tensor parallelism of layers given one by one, against sums worked out by hand."""

import pytest

from calc.intensity.traffic import linear_params
from calc.model.cache import mixers_state_bytes, rank_cache_elements
from calc.model.count import parameters
from calc.model.layers import (
    Attention,
    Dense,
    Experts,
    GatedDelta,
    KimiDelta,
    Latent,
    LayerSpec,
    Mamba1,
    Mamba2,
    ShortConv,
    mixers_of,
)
from calc.model.parts import Mlp
from calc.model.shares import shares, tp_problem
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS

WIDTH = 8
GQA = Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4)
MLA = Latent(n_heads=2, kv_lora_rank=4, nope_dim=3, rope_dim=2, value_dim=5, q_lora_rank=6)
SPARSE_MLA = Latent(
    n_heads=2, kv_lora_rank=4, nope_dim=3, rope_dim=2, value_dim=5, q_lora_rank=6, index_heads=2, index_dim=4
)
MAMBA2 = Mamba2(inner=16, n_heads=4, groups=2, state=3, kernel=4)
EXPERTS = Experts(n_experts=4, top_k=2, expert_size=6, router_params=32)


def model(*layers, tied=False):
    made = tuple(
        LayerSpec(hidden_size=WIDTH, norm_params=2 * WIDTH, mixers=mixers, feed_forwards=parts)
        for mixers, parts in layers
    )
    return ModelSpec(name="small", vocab_size=16, tied=tied, layers=made)


def split(spec, tp):
    found = shares(spec)
    return {"split_params": found.split, "rank_kv_params": found.rank_kv(tp), "whole_params": found.whole}


class TestExperts:
    # embedding 16*8, head 16*8; q 8*16, o 16*8, k and v 8*8 each; experts 4 of 3*8*6; router 4*8; norms 16 and 8
    spec = model(((GQA,), (EXPERTS,)))

    def test_total(self):
        assert parameters(self.spec).total == 128 + 128 + (128 + 128 + 64 + 64) + 4 * 144 + 32 + 16 + 8
        assert parameters(self.spec).active == 1272 - 2 * 144

    @pytest.mark.parametrize(("tp", "own_kv"), [(1, 128), (2, 64), (4, 64)])
    def test_experts_are_divided_routers_and_norms_are_not_and_kv_heads_are_repeated(self, tp, own_kv):
        assert split(self.spec, tp) == {
            "split_params": 128 + 128 + 128 + 128 + 576,
            "rank_kv_params": own_kv,
            "whole_params": 32 + 16 + 8,
        }

    def test_a_shared_expert_is_divided_but_its_gate_and_bias_are_not(self):
        shared = Dense(intermediate_size=6, mlp=Mlp.PLAIN, bias=True, extra_params=WIDTH)
        more = split(model(((GQA,), (EXPERTS, shared))), 2)
        assert more["split_params"] == 1088 + 2 * 8 * 6 + 6
        assert more["whole_params"] == 56 + 8 + 8

    def test_the_experts_size_must_divide(self):
        assert tp_problem(self.spec, 4) == "the experts' inner dimension 6 is not divisible by 4"
        assert tp_problem(self.spec, 2) is None


class TestLatent:
    # q_a 8*6 and its norm 6, q_b 6*2*5; kv_a 8*6 and its norm 4, kv_b 4*2*8; o 10*8
    def test_projections_into_the_latents_are_on_every_rank(self):
        parts = split(model(((MLA,), (Dense(intermediate_size=4),))), 2)
        assert parts == {
            "split_params": 128 + 128 + (60 + 64 + 80) + 3 * 8 * 4,
            "rank_kv_params": 0,
            "whole_params": (48 + 6 + 48 + 4) + 16 + 8,
        }

    def test_the_indexer_is_on_every_rank(self):
        dense = (Dense(intermediate_size=4),)
        plain, sparse = split(model(((MLA,), dense)), 2), split(model(((SPARSE_MLA,), dense)), 2)
        indexer = 6 * 2 * 4 + 8 * 4 + 8 * 2 + 2 * 4
        assert sparse["whole_params"] - plain["whole_params"] == indexer
        assert sparse["split_params"] == plain["split_params"]

    @pytest.mark.parametrize("tp", [1, 2])
    def test_its_cache_is_whole_on_every_rank_beside_divided_kv_heads(self, tp):
        spec = model(((MLA,), (Dense(intermediate_size=4),)), ((GQA,), (Dense(intermediate_size=4),)))
        held = rank_cache_elements(spec, tp)
        assert (held.latent, held.full) == (6, 16 // tp)


class TestRecurrences:
    @pytest.mark.parametrize(
        ("tp", "elements"),
        [(1, 16 * 3 + (16 + 2 * 2 * 3) * 4), (2, 8 * 3 + (8 + 2 * 3) * 4), (4, 4 * 3 + (4 + 2 * 3) * 4)],
    )
    def test_mamba2_keeps_a_group_on_every_rank(self, tp, elements):
        assert MAMBA2.rank_state_elements(tp) == elements

    def test_heads_are_divided(self):
        delta = GatedDelta(key_heads=2, key_dim=3, value_heads=4, value_dim=5, kernel=4)
        assert delta.state_elements == 4 * 3 * 5 + (2 * 2 * 3 + 4 * 5) * 4
        assert delta.rank_state_elements(2) == delta.state_elements / 2

    def test_bytes_of_a_sequence_on_a_rank(self):
        spec = model(((MAMBA2,), (Dense(intermediate_size=4),)), ((GQA,), (Dense(intermediate_size=4),)))
        assert mixers_state_bytes(mixers_of(spec.layers), FORMATS["bf16"], 4) == 2 * 52
        attending = model(((GQA,), (EXPERTS,)))
        assert mixers_state_bytes(mixers_of(attending.layers), FORMATS["bf16"], 4) == 0

    @pytest.mark.parametrize(
        ("mixer", "tp", "problem"),
        [
            (MAMBA2, 3, "the 4 heads of a mamba-2 layer are not divisible by 3"),
            (
                Mamba2(inner=24, n_heads=12, groups=4, state=3, kernel=4),
                6,
                "the 4 groups of a mamba-2 layer are not divisible by 6 and do not repeat evenly",
            ),
            (
                GatedDelta(key_heads=2, key_dim=3, value_heads=4, value_dim=5, kernel=4),
                4,
                "the 2 key heads of a gated delta layer are not divisible by 4",
            ),
            (KimiDelta(n_heads=4, head_dim=4, kernel=4), 8, "the 4 heads of a kimi delta layer are not divisible by 8"),
            (
                Mamba1(inner=20, state=4, kernel=4, dt_rank=2),
                8,
                "the 20 channels of a mamba layer are not divisible by 8",
            ),
            (ShortConv(kernel=3, width=8), 3, "the 8 channels of a short convolution layer are not divisible by 3"),
        ],
    )
    def test_what_does_not_divide_is_said(self, mixer, tp, problem):
        spec = model(((mixer,), (Dense(intermediate_size=24),)))
        assert tp_problem(spec, tp) == problem
        assert tp_problem(spec, 1) is None


class TestSharedBlocks:
    """Zamba: one block of attention and MLP, used again by a later layer."""

    dense = Dense(intermediate_size=4)
    again = (Attention(n_heads=4, n_kv_heads=2, head_dim=4, value_dim=4, shared=True),)
    spec = model(((GQA,), (dense,)), (again, (Dense(intermediate_size=4, shared=True),)))

    def test_counted_once_but_cached_and_worked_twice(self):
        once = model(((GQA,), (self.dense,)))
        assert parameters(self.spec).total == parameters(once).total + 2 * WIDTH
        assert rank_cache_elements(self.spec, 1).full == 2 * rank_cache_elements(once, 1).full == 32
        assert linear_params(self.spec) - linear_params(once) == 384 + 96

    @pytest.mark.parametrize("tp", [1, 2, 4])
    def test_divided_once(self, tp):
        once, twice = split(model(((GQA,), (self.dense,))), tp), split(self.spec, tp)
        assert twice["split_params"] == once["split_params"]
        assert twice["rank_kv_params"] == once["rank_kv_params"]
        assert twice["whole_params"] == once["whole_params"] + 2 * WIDTH
