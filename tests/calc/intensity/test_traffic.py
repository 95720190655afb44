"""Traffic: the linear layers counted matrix by matrix, and what the batch does to both parts of a step."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.intensity.attention import Attention, Phase, attention_work
from calc.intensity.traffic import (
    attention_flops,
    commonest_experts,
    expected_experts,
    linear_flops,
    linear_params,
    linear_step,
    read_params,
)
from calc.model.count import parameters
from calc.model.edit import edit
from calc.model.parts import Mlp
from calc.sources.catalog import find_model
from calc.step.weights import as_stored, one_format
from tests.calc.intensity.points import decode_point
from tests.calc.strategies import LLAMA, QUICK, REFERENCE, models


def matrices(model):
    """(inputs, outputs, vectors in, vectors out) of every matrix product of a token; fused ones share the input."""
    q, kv, inner = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim, model.intermediate_size
    layer = [(model.hidden_size, q + 2 * kv), (q, model.hidden_size)]
    layer += [(model.hidden_size, inner * (2 if model.mlp is Mlp.GATED else 1)), (inner, model.hidden_size)]
    return model.n_layers * layer + [(model.hidden_size, model.vocab_size)]


def linear_activations(model):
    """Elements that a token moves in and out of the linear layers."""
    return linear_step(model, 1, weights=one_format(0), element_bytes=1).activation_bytes


@QUICK
@given(models())
def test_linear_layers_matrix_by_matrix(model):
    assert linear_params(model) == sum(i * o for i, o in matrices(model))
    assert linear_activations(model) == sum(i + o for i, o in matrices(model))


@QUICK
@given(models())
def test_linear_params_are_the_matrices_of_the_count(model):
    """All parameters without embedding look-up, positions, norms and biases; the head also when tied."""
    plain = edit(model, qkv_bias=False, o_bias=False, mlp_bias=False, head_bias=False, tied=False)
    counts = parameters(plain)
    assert linear_params(model) == counts.attention + counts.mlp + counts.head


def test_llama_linear_params():
    assert linear_params(LLAMA) == 8_030_261_248 - 525_336_576 - 266_240


def test_a_step_of_llama_by_hand():
    """Batch 1, 1024 tokens, GQA-4, standard attention: sums written out."""
    point = decode_point(LLAMA, 1, context=1024, group_size=4)
    flops, moved = attention_work(
        Attention.STANDARD, Phase.DECODE, n_keys=1024, head_dim=128, group_size=4, softmax_flops=5, element_bytes=2
    )
    kv_heads = 32 * 8
    weights = 7_504_658_432
    assert linear_flops(batch=1, parameters=weights) == 15_009_316_864
    linear = linear_step(LLAMA, 1, weights=one_format(2))
    linear_moved = linear.weight_bytes + linear.activation_bytes
    assert linear_moved == 15_009_316_864 + 2 * (32 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * 14336) + 4096 + 128256)
    assert (point.weight_bytes, point.activation_bytes) == (linear.weight_bytes, linear.activation_bytes)
    assert point.attention_bytes == kv_heads * moved
    assert point.linear_intensity == float(Fraction(15_009_316_864, linear_moved))
    assert point.attention_intensity == flops / moved
    assert point.step_intensity == float(Fraction(15_009_316_864 + kv_heads * flops, linear_moved + kv_heads * moved))


@QUICK
@given(models(), st.integers(1, 1000), st.integers(1, 10_000), st.integers(1, 8))
def test_attention_is_flat_and_linear_layers_rise(model, batch, context, group):
    low, high = (decode_point(model, n, context=context, group_size=group) for n in (batch, batch + 1))
    assert low.attention_intensity == high.attention_intensity
    assert low.linear_intensity < high.linear_intensity


@QUICK
@given(models(), st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 8))
def test_the_step_lies_between_its_parts(model, batch, context, group):
    point = decode_point(model, batch, context=context, group_size=group)
    low, high = sorted([point.attention_intensity, point.linear_intensity])
    assert low * (1 - 1e-12) <= point.step_intensity <= high * (1 + 1e-12)


@QUICK
@given(models(), st.integers(1, 10_000))
def test_linear_layers_never_pass_their_limits(model, batch):
    """2B/b while weights are all that is moved; 2 x parameters / activations / b however large the batch."""
    point = decode_point(model, batch, context=1, group_size=1)
    assert point.linear_intensity < min(batch, linear_params(model) / linear_activations(model)) * (1 + 1e-12)


def test_smaller_weights_raise_only_the_linear_layers():
    plain = decode_point(REFERENCE, 4, context=64, group_size=1)
    packed = decode_point(REFERENCE, 4, context=64, group_size=1, weight_element_bytes=Fraction(1, 2))
    assert packed.linear_intensity > plain.linear_intensity
    assert packed.attention_intensity == plain.attention_intensity


def test_plain_mlp_has_two_matrices():
    assert linear_params(LLAMA) - linear_params(edit(LLAMA, mlp=Mlp.PLAIN)) == 32 * 4096 * 14336


def test_a_batch_reads_the_experts_that_it_hits() -> None:
    """Mixtral: 8 experts, 2 per token. B tokens hit 8 (1 - (6/8)^B) of them on average; the rest is read once."""
    model = find_model("mixtral-8x22b")
    one = linear_params(model)
    assert read_params(model, 1) == one
    experts = 56 * 8 * 3 * 6144 * 16384
    for batch in (2, 4, 32):
        share = 1 - 0.75**batch
        assert read_params(model, batch) == pytest.approx(one - experts / 4 + experts * share, rel=1e-12)
    assert read_params(model, 10_000) == pytest.approx(one + experts * 3 / 4)
    dense = find_model("llama-3-8b")
    assert read_params(dense, 64) == linear_params(dense)


def test_intensity_of_experts_rises_more_slowly() -> None:
    """New tokens hit new experts, so that the weights read grow with them, until all are read."""
    model, batches = find_model("mixtral-8x22b"), (1, 2, 4096)
    first, *others = (decode_point(model, n, context=1024, group_size=6) for n in batches)
    for point in others:
        expected = point.batch * read_params(model, 1) / read_params(model, point.batch)
        activations = 1 + point.batch * linear_activations(model) / read_params(model, point.batch)
        assert point.linear_intensity / first.linear_intensity == pytest.approx(expected / activations, rel=1e-3)
    assert others[0].linear_intensity / first.linear_intensity == pytest.approx(1.211, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("llama-3-8b", 32 * 32 * (4 * 128 + 5)),
        ("deepseek-v2-lite", 27 * 16 * (2 * (512 + 64) + 2 * 512 + 5)),  # absorbed: 942,192
        ("jamba-v0.1", 4 * 32 * (4 * 128 + 5)),  # 4 of its 32 layers attend: 66,176
        ("qwen3-next-80b-a3b", 12 * 16 * (4 * 256 + 5)),  # 12 of 48: 197,568
    ],
)
def test_attention_is_counted_layer_by_layer(name, flops):
    assert attention_flops(find_model(name)) == flops


@QUICK
@given(models())
def test_attention_of_a_plain_model_is_that_of_the_study(model):
    each, _ = attention_work(
        Attention.STANDARD, Phase.DECODE, n_keys=1, head_dim=model.head_dim, group_size=model.group_size,
        softmax_flops=5, element_bytes=1,
    )  # fmt: skip
    assert attention_flops(model) == model.n_layers * model.n_kv_heads * each


def test_expected_experts_of_the_commonest_kind() -> None:
    """DeepSeek-V3: 8 of 256; 32 tokens hit 256 (1 - (31/32)^32) of them, 163.3."""
    part = commonest_experts(find_model("deepseek-v3"))
    assert part is not None
    assert expected_experts(part, 1) == 8
    assert expected_experts(part, 32) == pytest.approx(256 * (1 - (31 / 32) ** 32), rel=1e-12)
    assert commonest_experts(LLAMA) is None


def test_weights_are_read_at_the_bytes_of_their_part() -> None:
    """gpt-oss-20b: experts in MXFP4, attention, router and head in 16 bits, whatever the average is."""
    model = find_model("gpt-oss-20b")
    linear = linear_step(model, 1, weights=as_stored(model))
    attention = 24 * (2880 * (4096 + 2 * 512) + 4096 * 2880 + 64)
    rest = 24 * (2880 * 32 + 32) + 2880 * 201_088
    experts = 24 * 4 * 3 * 2880 * 2880
    assert model.stored is not None
    per_expert_weight = dict(model.stored.components)["experts"] / (24 * 32 * (3 * 2880 * 2880 + 3 * 2880))
    assert float(linear.weight_bytes) == pytest.approx(2 * (attention + rest) + experts * per_expert_weight, rel=1e-12)
