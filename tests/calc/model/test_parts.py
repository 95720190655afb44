"""The tensors of a part: their sum is what its formula says, for every part of the catalog and for drawn ones."""

from hypothesis import given
from hypothesis import strategies as st

from calc.model.compressed import Compressor, WindowRow
from calc.model.layers import Attention, Dense, Experts, GatedDelta, KimiDelta, Latent, Mamba1, Mamba2, ShortConv
from calc.model.parts import Mlp
from calc.model.tensors import BIAS, KV, LINEAR, ROUTER, SPLIT, WHOLE, Attended, Tensor
from calc.sources.catalog import models
from tests.each import each


def counted(part, width):
    """Parameters by the part's formula, with what the formula leaves out."""
    one = int(part.term(width).value)
    if part.kind == "experts":
        return part.n_experts * one + part.router_params
    return one + part.extra_params if part.kind == "dense" else one


@each("entry", models().values())
def test_tensors_of_the_catalog_sum_to_the_formulas(entry):
    for layer in entry.sizes.groups:
        for part in (*layer.mixers, *layer.feed_forwards):
            assert sum(tensor.params for tensor in part.tensors(layer.hidden_size)) == counted(part, layer.hidden_size)
        parts = (*layer.mixers, *layer.feed_forwards)
        whole = sum(counted(part, layer.hidden_size) for part in parts) + layer.norm_params
        assert sum(tensor.params for tensor in layer.tensors()) == whole


sizes = st.integers(1, 9)
flags = st.booleans()
some = st.sampled_from([0, 3])
PARTS = st.one_of(
    st.builds(
        Attention,
        n_heads=st.just(6), n_kv_heads=st.sampled_from([1, 2, 3, 6]), head_dim=sizes, value_dim=sizes, qkv_bias=flags,
        o_bias=flags, gated=flags, keys=flags, values=flags, shared=flags, extra_params=some,
    ),
    st.builds(
        Latent,
        n_heads=sizes, kv_lora_rank=sizes, nope_dim=sizes, rope_dim=sizes, value_dim=sizes, q_lora_rank=some,
        index_heads=some, index_dim=some, bias=flags, gated=flags, extra_params=some,
    ),
    st.builds(
        WindowRow,
        n_heads=st.just(6), head_dim=sizes, rope_dim=sizes, q_lora_rank=sizes, o_groups=st.sampled_from([1, 2, 3]),
        o_lora_rank=sizes, window=sizes,
    ),
    st.builds(
        Compressor,
        head_dim=st.sampled_from([4, 8]), ratio=st.sampled_from([2, 4]), overlap=flags, q_lora_rank=sizes,
        index_heads=some, index_dim=st.sampled_from([4, 12]),
    ),
    st.builds(Mamba1, inner=sizes, state=sizes, kernel=sizes, dt_rank=sizes, extra_params=some, conv_bias=flags),
    st.builds(
        Mamba2,
        inner=sizes, n_heads=sizes, groups=sizes, state=sizes, kernel=sizes, extra_params=some, conv_bias=flags,
        norm=flags,
    ),
    st.builds(
        GatedDelta,
        key_heads=sizes, key_dim=sizes, value_heads=sizes, value_dim=sizes, kernel=sizes, extra_params=some,
    ),
    st.builds(KimiDelta, n_heads=sizes, head_dim=sizes, kernel=sizes, gate_rank=some, whole_gate=st.booleans()),
    st.builds(Dense, intermediate_size=sizes, mlp=st.sampled_from(Mlp), bias=flags, shared=flags, extra_params=some),
    st.builds(
        Experts,
        n_experts=st.integers(2, 9), top_k=st.integers(1, 2), expert_size=sizes, router_params=st.integers(0, 99),
        mlp=st.sampled_from(Mlp), bias=flags, input_size=st.none() | sizes,
    ),
)  # fmt: skip


@given(part=PARTS, width=sizes)
def test_tensors_of_any_part_sum_to_its_formula(part, width):
    assert sum(tensor.params for tensor in part.tensors(width)) == counted(part, width)


@given(kernel=sizes, width=sizes, bias=flags)
def test_tensors_of_a_short_convolution_sum_to_its_formula(kernel, width, bias):
    part = ShortConv(kernel=kernel, width=width, bias=bias)
    assert sum(tensor.params for tensor in part.tensors(width)) == counted(part, width)


def test_a_llama_layer_by_hand():
    layer = models()["llama-3-8b"].spec.layers[0]
    assert list(layer.tensors()) == [
        Tensor("self_attn.q_proj", 4096, 4096, SPLIT, fused="qkv_proj"),
        Tensor("self_attn.k_proj", 1024, 4096, KV, kv_heads=8, fused="qkv_proj"),
        Tensor("self_attn.v_proj", 1024, 4096, KV, kv_heads=8, fused="qkv_proj"),
        Tensor("self_attn.o_proj", 4096, 4096, SPLIT, summed=True),
        Tensor("mlp.gate_proj", 14336, 4096, fused="gate_up_proj"),
        Tensor("mlp.up_proj", 14336, 4096, fused="gate_up_proj"),
        Tensor("mlp.down_proj", 4096, 14336, summed=True),
        Tensor("norms", 8192, share=WHOLE, role="norm"),
    ]


def test_a_latent_is_on_every_rank_and_its_heads_are_divided():
    part = Latent(n_heads=2, kv_lora_rank=4, nope_dim=3, rope_dim=2, value_dim=5, q_lora_rank=6)
    shapes = {t.name: (t.rows, t.columns, t.share) for t in part.tensors(8) if t.role == LINEAR}
    assert shapes == {
        "q_a_proj": (6, 8, WHOLE),
        "q_b_proj": (10, 6, SPLIT),
        "kv_a_proj_with_mqa": (6, 8, WHOLE),
        "kv_b_proj": (16, 4, SPLIT),
        "o_proj": (8, 10, SPLIT),
    }
    absorbed, expanded = part.attended(), part.attended(absorbed=False)
    assert absorbed == Attended("latent attention, absorbed", 2, 4 + 2, 4, kv_heads=1, token_elements=6)
    assert expanded == Attended("latent attention, expanded", 2, 3 + 2, 5, kv_heads=2, token_elements=10)


def test_absorbed_attention_multiplies_the_same_weights_in_two_pieces_per_head():
    part = Latent(n_heads=2, kv_lora_rank=4, nope_dim=3, rope_dim=2, value_dim=5, q_lora_rank=6)
    pieces = {t.name: t for t in part.absorbed_tensors(8)}
    assert (pieces["kv_b_proj.k"].rows, pieces["kv_b_proj.k"].columns, pieces["kv_b_proj.k"].copies) == (4, 3, 2)
    assert (pieces["kv_b_proj.v"].rows, pieces["kv_b_proj.v"].columns, pieces["kv_b_proj.v"].copies) == (5, 4, 2)
    assert sum(t.params for t in pieces.values()) == sum(t.params for t in part.tensors(8))


def test_a_sparse_latent_is_absorbed_in_both_phases_and_attends_to_what_is_picked():
    part = Latent(
        n_heads=2, kv_lora_rank=4, nope_dim=3, rope_dim=2, value_dim=5, index_heads=3, index_dim=7, index_topk=9
    )
    assert part.attended() == part.attended(absorbed=False)
    assert (part.attended().most, part.attended().index_heads, part.attended().index_dim) == (9, 3, 7)


def test_a_token_goes_through_its_own_experts():
    part = Experts(n_experts=8, top_k=2, expert_size=6, router_params=8 * 4 + 8, bias=True)
    found = {t.name: t for t in part.tensors(4)}
    assert (found["gate"].role, found["gate"].params, found["gate.bias"].params) == (ROUTER, 32, 8)
    up, bias = found["experts.0.up_proj"], found["experts.0.down_proj.bias"]
    assert (up.params, up.active_params, up.expert) == (8 * 24, 2 * 24, True)
    assert (bias.share, bias.role, bias.params) == (WHOLE, BIAS, 8 * 4)
