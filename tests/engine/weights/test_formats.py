"""Packed weights: what the numbers stand for, against the formats' definitions; and the measured loss."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engine.errors import PromptError
from engine.measure.format_loss import format_loss, read_along
from engine.model.decoder import Decoder
from engine.model.layers import Linear
from engine.model.made_weights import random_weights
from engine.weights.formats import GROUP, QUANTIZED, FormatMaker, GroupedLinear, QuantizedFormat, pack, packed, unpack
from tests.engine.models import llama_config


def _matrix(rows: int, cols: int, *, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * scale


def test_int8_by_hand() -> None:
    weight = torch.zeros(1, GROUP)
    weight[0, :4] = torch.tensor([127.0, -64.0, 1.4, -1.6])
    result = pack(weight, "int8")
    assert result.scales is not None
    assert result.scales[0, 0] == 1.0
    # A panel: 16 rows of 32 columns, four columns of a row side by side; 128 stands for 0.
    assert result.values.view(8, 16, 4)[:2, 0].flatten()[:5].tolist() == [255, 64, 129, 126, 128]


def test_int4_by_hand() -> None:
    weight = torch.arange(GROUP, dtype=torch.float32).clamp_max(15)[None] * 0.5 - 2
    result = pack(weight, "int4")
    assert result.scales is not None
    assert result.scales.view(2, 16)[:, 0].tolist() == [0.5, -2.0]
    assert result.values.shape == (1, 16 * GROUP // 2)
    # Columns 0 to 3 are in the low halves of the first vector, 16 to 19, all at the highest step, in the high ones.
    assert result.values.view(4, 16, 4)[0, 0].tolist() == [step | 15 << 4 for step in range(4)]
    assert torch.equal(unpack(result), weight)


@given(
    st.integers(0, 2**20), st.integers(1, 5), st.integers(1, 4), st.floats(1e-3, 100), st.sampled_from(["int8", "int4"])
)
def test_error_is_half_a_step_of_the_group(
    seed: int, rows: int, groups: int, scale: float, kind: QuantizedFormat
) -> None:
    weight = _matrix(rows, groups * GROUP, seed=seed, scale=scale)
    parts = weight.view(rows, groups, GROUP)
    step = parts.abs().amax(-1) / 127 if kind == "int8" else (parts.amax(-1) - parts.amin(-1)) / 15
    error = (unpack(pack(weight, kind)) - weight).view(parts.shape).abs().amax(-1)
    # Half a step, and what float16 takes from the scale (times up to 127 steps) and the minimum.
    allowed = step / 2 + parts.abs().amax(-1) * 2**-10 + 1e-7 * 127
    assert bool((error <= allowed).all())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_packing_what_was_packed_loses_nothing(kind: QuantizedFormat) -> None:
    """So weights that came out of a Q8_0 or Q4_1 file go back in exactly."""
    once = unpack(pack(_matrix(40, 96, seed=2), kind))
    assert torch.equal(unpack(pack(once, kind)), once)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_constant_groups(kind: QuantizedFormat) -> None:
    zeros = torch.zeros(2, GROUP)
    assert torch.equal(unpack(pack(zeros, kind)), zeros)
    assert torch.equal(unpack(pack(zeros + 0.5, "int4")), zeros + 0.5)


def test_bytes_of_a_group() -> None:
    for kind, group_bytes in (("int8", 34), ("int4", 20)):
        result = pack(_matrix(64, 128), kind)  # type: ignore[arg-type]
        assert result.scales is not None
        assert result.values.nbytes + result.scales.nbytes == 64 * 128 // GROUP * group_bytes


def test_linear_is_the_product_with_what_it_stands_for() -> None:
    weight, bias, x = _matrix(24, 64), _matrix(1, 24, seed=1)[0], _matrix(5, 64, seed=2)
    for kind in ("int8", "int4"):
        layer = GroupedLinear(pack(weight, kind, bias))  # type: ignore[arg-type]
        expected = x @ unpack(layer.parts[0]).t() + bias
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer.add_to(x[:, :24], x), expected + x[:, :24])


def test_maker_packs_what_divides_and_keeps_the_rest() -> None:
    config = llama_config(hidden_size=64, intermediate_size=48, head_dim=16)
    weights = random_weights(config)
    decoder = Decoder(config, weights, linear=FormatMaker("int4", weights))
    mlp = decoder.blocks[0].mlp
    assert [part.format for part in packed(mlp.up)] == ["int4", "int4"]  # type: ignore[union-attr]  # gate and up
    assert isinstance(mlp.down, Linear)  # type: ignore[union-attr]  # 48 columns are not divisible by 32
    assert packed(decoder.head)[0].format == "int8"


def test_loss_of_a_model_against_itself_is_nothing() -> None:
    config = llama_config()
    logits = logits_of(Decoder(config, random_weights(config)), range(10))
    loss = format_loss(logits, logits, range(10))
    assert (loss.n_tokens, loss.max_error, loss.mean_error, loss.agreement) == (9, 0.0, 0.0, 1.0)
    assert loss.perplexity == loss.reference_perplexity


def test_loss_is_counted_as_defined() -> None:
    """Perplexity against the definition on one full forward pass; int4 costs more than int8."""
    config = llama_config(hidden_size=64, intermediate_size=96)
    weights = random_weights(config, seed=1)
    exact = Decoder(config, weights)
    ids = [3, 14, 15, 9, 2, 6, 5, 3, 5]
    losses = {}
    for kind in QUANTIZED:
        rounded = Decoder(config, weights, linear=FormatMaker(kind, weights))
        losses[kind] = format_loss(logits_of(exact, ids), logits_of(rounded, ids), ids)
    logits = exact.forward(torch.tensor([ids]))[0, :-1].double()
    expected = math.exp(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).item())
    assert losses["int8"].reference_perplexity == pytest.approx(expected, rel=1e-5)
    assert 0 < losses["int8"].mean_error < losses["int4"].mean_error
    assert "of 8 most likely tokens the same" in losses["int8"].sentence()


def test_reading_needs_two_tokens_and_can_be_stopped() -> None:
    config = llama_config()
    decoder = Decoder(config, random_weights(config))
    with pytest.raises(PromptError, match="at least two"):
        read_along(decoder, [1])
    assert read_along(decoder, [1, 2, 3], should_stop=lambda: True) is None


def logits_of(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    reading = read_along(decoder, ids)
    assert reading is not None
    assert len(reading.times_s) == len(ids) - 1
    return reading.logits
