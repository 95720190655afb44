"""Weights in few bits, packed here by the layouts' definitions and read by the engine."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.families.keys import Keys
from engine.weights.lazy import Stored, loaded
from engine.weights.quantized import unpacked, widened

DRAW = torch.Generator().manual_seed(0)


def integers(low: int, high: int, *shape: int) -> Tensor:
    return torch.randint(low, high, shape, generator=DRAW, dtype=torch.int32)


def packed(numbers: Tensor, bits: int, dim: int) -> Tensor:
    """Several numbers to a word along a dimension, the first in the lowest bits; written out number by number."""
    per_word = 32 // bits
    moved = numbers.movedim(dim, -1)
    words = torch.zeros(*moved.shape[:-1], moved.size(-1) // per_word, dtype=torch.int64)
    for place in range(per_word):
        words |= moved[..., place::per_word].long() << bits * place
    return words.where(words < 2**31, words - 2**32).int().movedim(-1, dim)


def read(tensors: dict[str, Stored], **quantization: Any) -> Tensor:
    wide = widened({f"m.{name}": tensor for name, tensor in tensors.items()}, Keys(quantization))
    assert list(wide) == ["m.weight"]
    tensor = loaded(wide["m.weight"])
    assert tensor.shape == wide["m.weight"].shape
    return tensor


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_numbers_come_out_of_words_as_they_went_in(bits: int, dim: int) -> None:
    numbers = integers(0, 1 << bits, 32, 32)
    assert torch.equal(unpacked(packed(numbers, bits, dim), bits, dim), numbers)


@pytest.mark.parametrize(("bits", "form", "first"), [(4, "gptq", 1), (8, "gptq", 1), (2, "gptq", 1), (4, "gptq_v2", 0)])
def test_gptq(bits: int, form: str, first: int) -> None:
    """Inputs packed, a group of each input named by g_idx; old files store zeros less 1."""
    numbers, zeros = integers(0, 1 << bits, 64, 32), integers(0, (1 << bits) - 1, 4, 32)
    scales, groups = torch.rand(4, 32, generator=DRAW), integers(0, 4, 64)
    expected = torch.empty(32, 64)
    for i in range(64):
        expected[:, i] = (numbers[i] - (zeros[groups[i]] + first)) * scales[groups[i]]
    stored: dict[str, Stored] = {"qweight": packed(numbers, bits, 0), "qzeros": packed(zeros, bits, 1)}
    stored |= {"scales": scales, "g_idx": groups}
    torch.testing.assert_close(read(stored, quant_method="gptq", bits=bits, checkpoint_format=form), expected)


def test_awq() -> None:
    """Outputs packed, eight to a word in the order 0 2 4 6 1 3 5 7 of AutoAWQ's kernels."""
    numbers, zeros, scales = integers(0, 16, 64, 16), integers(0, 16, 2, 16), torch.rand(2, 16, generator=DRAW)
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def in_kernel_order(matrix: Tensor) -> Tensor:
        return packed(matrix.view(matrix.size(0), -1, 8)[..., order].flatten(1), 4, 1)

    expected = torch.stack([(numbers[i] - zeros[i // 32]) * scales[i // 32] for i in range(64)], 1)
    stored: dict[str, Stored] = {
        "qweight": in_kernel_order(numbers),
        "qzeros": in_kernel_order(zeros),
        "scales": scales,
    }
    torch.testing.assert_close(read(stored, quant_method="awq", bits=4), expected)


@pytest.mark.parametrize(
    ("shape", "expand"),
    [
        ((), lambda s: s),
        ((1,), lambda s: s),
        ((6, 1), lambda s: s),
        ((6,), lambda s: s[:, None]),
        ((2, 3), lambda s: torch.stack([torch.stack([s[r // 4, c // 4] for c in range(10)]) for r in range(6)])),
    ],
)
def test_fp8_times_the_scale_of_the_matrix_a_row_or_a_block(shape: tuple[int, ...], expand: Any) -> None:
    weight, scale = torch.randn(6, 10, generator=DRAW).to(torch.float8_e4m3fn), torch.rand(shape, generator=DRAW)
    name = "weight_scale_inv" if len(shape) == 2 and shape[1] > 1 else "weight_scale"
    found = read({"weight": weight, name: scale}, quant_method="fp8", weight_block_size=[4, 4])
    torch.testing.assert_close(found, weight.float() * expand(scale))


def test_packed_integers_of_compressed_tensors() -> None:
    numbers, scale = integers(0, 16, 8, 32), torch.rand(8, 2, generator=DRAW)
    stored: dict[str, Stored] = {"weight_packed": packed(numbers, 4, 1), "weight_scale": scale}
    stored |= {"weight_shape": torch.tensor([8, 32])}
    groups = {"config_groups": {"group_0": {"weights": {"num_bits": 4}}}}
    expected = (numbers - 8) * scale.repeat_interleave(16, 1)
    torch.testing.assert_close(read(stored, quant_method="compressed-tensors", **groups), expected)


def test_scales_that_do_not_fit_are_named() -> None:
    weight = torch.ones(6, 10).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=r"m: scales \[5, 3\] do not fit a matrix \[6, 10\]"):
        read({"weight": weight, "weight_scale": torch.ones(5, 3)}, weight_block_size=[4, 4])
