"""Weights in few bits, packed here by the layouts' definitions and read by the engine."""

import itertools
import json
from typing import Any

import numpy as np
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
    """Several numbers to a word along a dimension, the first in the lowest bits; written out bit by bit."""
    moved = numbers.movedim(dim, -1)
    words = torch.zeros(*moved.shape[:-1], moved.size(-1) * bits // 32, dtype=torch.int64)
    for number, bit in itertools.product(range(moved.size(-1)), range(bits)):
        word, place = divmod(number * bits + bit, 32)
        words[..., word] |= (moved[..., number].long() >> bit & 1) << place
    return words.where(words < 2**31, words - 2**32).int().movedim(-1, dim)


def read(tensors: dict[str, Stored], **quantization: Any) -> Tensor:
    wide = widened({f"m.{name}": tensor for name, tensor in tensors.items()}, Keys(quantization))
    assert list(wide) == ["m.weight"]
    tensor = loaded(wide["m.weight"])
    assert tensor.shape == wide["m.weight"].shape
    return tensor


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_numbers_come_out_of_words_as_they_went_in(bits: int, dim: int) -> None:
    numbers = integers(0, 1 << bits, 32, 32)
    assert torch.equal(unpacked(packed(numbers, bits, dim), bits, dim), numbers)


@pytest.mark.parametrize(
    ("bits", "form", "first"), [(4, "gptq", 1), (8, "gptq", 1), (2, "gptq", 1), (3, "gptq", 1), (4, "gptq_v2", 0)]
)
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


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("ordered", [False, True])
def test_packed_integers_with_zero_points_and_groups_in_an_order(bits: int, ordered: bool) -> None:
    """Zero points are packed along the outputs; a group of each input may be named."""
    low, high = -(1 << bits - 1), 1 << bits - 1
    numbers, zeros, scale = integers(low, high, 32, 64), integers(low, high, 32, 2), torch.rand(32, 2, generator=DRAW)
    groups = integers(0, 2, 64) if ordered else torch.arange(64).int() // 32
    expected = torch.stack([(numbers[:, i] - zeros[:, groups[i]]) * scale[:, groups[i]] for i in range(64)], 1)
    stored: dict[str, Stored] = {"weight_packed": packed(numbers - low, bits, 1), "weight_scale": scale}
    stored |= {"weight_zero_point": packed(zeros - low, bits, 0), "weight_shape": torch.tensor([32, 64])}
    stored |= {"weight_g_idx": groups} if ordered else {}
    scheme = {"config_groups": {"group_0": {"weights": {"num_bits": bits}}}}
    torch.testing.assert_close(read(stored, quant_method="compressed-tensors", **scheme), expected)


@pytest.mark.parametrize("nested", [False, True])
def test_codes_of_bitsandbytes(nested: bool) -> None:
    """Two codes per byte, the first one high; the largest values of blocks of 64 may be codes of blocks of 256."""
    codes, table = integers(0, 16, 30, 50).numpy(), np.linspace(-1, 1, 16, dtype=np.float32)
    flat = codes.ravel()
    facts: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [30, 50]}
    stored: dict[str, Stored] = {"weight": torch.from_numpy((flat[::2] << 4 | flat[1::2]).astype(np.uint8))[:, None]}
    largest = np.random.default_rng(0).random(24, dtype=np.float32)
    stored |= {"weight.quant_map": torch.from_numpy(table), "weight.absmax": torch.from_numpy(largest)}
    if nested:
        inner, map8 = integers(0, 256, 24).to(torch.uint8), np.linspace(0, 1, 256, dtype=np.float32)
        stored |= {"weight.absmax": inner, "weight.nested_absmax": torch.tensor([0.7])}
        stored |= {"weight.nested_quant_map": torch.from_numpy(map8)}
        facts |= {"nested_blocksize": 256, "nested_offset": 0.25, "nested_dtype": "float32"}
        largest = map8[inner.numpy()] * np.float32(0.7) + np.float32(0.25)
    stored["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    expected = np.array([table[code] * largest[i // 64] for i, code in enumerate(flat)], np.float32).reshape(30, 50)
    torch.testing.assert_close(read(stored, quant_method="bitsandbytes"), torch.from_numpy(expected))


def test_int8_of_bitsandbytes() -> None:
    """127 stands for the largest value of a row."""
    numbers, largest = integers(-127, 128, 6, 10), torch.rand(6, generator=DRAW)
    stored: dict[str, Stored] = {"weight": numbers.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0)}
    torch.testing.assert_close(read(stored, load_in_8bit=True), numbers * largest[:, None] / 127)


@pytest.mark.parametrize(
    ("facts", "words"),
    [(b"{", "not the JSON"), (b"{}", "states no shape"), (b'{"shape": [6, 11]}', "are no matrix")],
)
def test_a_damaged_state_of_bitsandbytes_is_named(facts: bytes, words: str) -> None:
    stored: dict[str, Stored] = {"weight": torch.zeros(30, 1, dtype=torch.uint8), "weight.absmax": torch.ones(1)}
    stored |= {"weight.quant_map": torch.ones(16)}
    stored["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(facts), dtype=torch.uint8)
    with pytest.raises(CheckpointError, match=words):
        read(stored)


def test_scales_that_do_not_fit_are_named() -> None:
    weight = torch.ones(6, 10).to(torch.float8_e4m3fn)
    with pytest.raises(CheckpointError, match=r"m: scales \[5, 3\] do not fit a matrix \[6, 10\]"):
        read({"weight": weight, "weight_scale": torch.ones(5, 3)}, weight_block_size=[4, 4])
