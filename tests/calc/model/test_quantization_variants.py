"""Forms of the quantization methods that published files have beside the usual one: bytes of Llama-3.1-8B by hand."""

import pytest

from calc.errors import SourceError
from tests.calc.model.test_quantization import LINEAR, REST, ROWS, stored

MATRICES = 32 * 7
DOWN, QUERY, KEY, UP = 32 * 4096 * 14336, 32 * 4096 * 4096, 32 * 1024 * 4096, 32 * 14336 * 4096
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True}
SPARSE = {"format": "sparse-24-bitmask", "sparsity_structure": "2:4", "targets": ["Linear"], "ignore": ["lm_head"]}


def total(quantization):
    return stored(quantization).total_bytes


def compressed(weights, targets=("Linear",), **more):
    groups = {"group_0": {"targets": list(targets), "weights": weights}} if weights else {}
    return {"quant_method": "compressed-tensors", "ignore": ["lm_head"], "config_groups": groups, **more}


@pytest.mark.parametrize("method", ["eetq", "fbgemm_fp8", "awq", "bitsandbytes"])
@pytest.mark.parametrize("name", ["mlp.down_proj", "down_proj", "model.layers.0.mlp.down_proj"])
def test_a_part_of_a_path_leaves_a_module_out(method, name):
    """transformers takes what ends so (should_convert_module), AutoAWQ what has it anywhere in its path."""
    key = "llm_int8_skip_modules" if method == "bitsandbytes" else "modules_to_not_convert"
    whole = {"quant_method": method, "load_in_8bit": True, "bits": 8, "group_size": 128}
    left = DOWN if not name.startswith("model") else DOWN // 32
    gained = total({**whole, key: [name]}) - total(whole)
    assert 0.9 * left < gained <= left


def test_gptq_of_some_modules():
    listed = [["self_attn.q_proj", "self_attn.k_proj"], ["mlp.up_proj"]]
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "modules_in_block_to_quantize": listed}
    some = QUERY + KEY + UP
    packed = some // 2 + 2 * some // 128 + some // 256 + 3 * 32 * 4096 * 4
    assert total(quantization) == packed + 2 * (LINEAR - some) + 2 * REST
    flat = [name for names in listed for name in names]
    assert total({**quantization, "modules_in_block_to_quantize": flat}) == total(quantization)
    with pytest.raises(SourceError, match=r"names attn\.c_attn, which is not a module of this model"):
        total({**quantization, "modules_in_block_to_quantize": [["attn.c_attn"], ["mlp.up_proj"]]})


def test_marlin():
    assert total({"quant_method": "marlin", "bits": 4, "group_size": 128}) == LINEAR // 2 + LINEAR // 64 + 2 * REST


def test_two_of_four_elements():
    """Values of half of them; a bit for each and the shape, or two bits for each that is stored (Marlin)."""
    kept = LINEAR // 2 + LINEAR // 8 + 16 * MATRICES
    assert total(compressed({**FP8, "strategy": "channel"}, sparsity_config=SPARSE)) == kept + 2 * ROWS + 2 * REST
    assert total(compressed(None, sparsity_config=SPARSE)) == LINEAR + LINEAR // 8 + 16 * MATRICES + 2 * REST
    four = {**INT8, "num_bits": 4, "strategy": "group", "group_size": 128}
    assert total(compressed(four, format="marlin-24")) == LINEAR // 4 + LINEAR // 8 + LINEAR // 64 + 2 * REST
    assert total({"quant_method": "gptq_marlin_24", "bits": 4, "group_size": 128}) == total(
        compressed(four, format="marlin-24")
    )


def test_only_the_cache_is_quantized():
    assert total(compressed(None, kv_cache_scheme={"num_bits": 8, "type": "float"})) == 2 * (LINEAR + REST)


def test_blocks_as_a_text():
    block = {**FP8, "strategy": "block", "block_structure": "128x128"}
    assert total(compressed(block)) == LINEAR + 4 * LINEAR // 128**2 + 2 * REST
    assert total(compressed(block)) == total(compressed({**block, "block_structure": [128, 128]}))


def test_scales_of_a_byte():
    mx = {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}
    assert total(compressed(mx, format="mxfp8-quantized")) == LINEAR + LINEAR // 32 + 2 * REST


@pytest.mark.parametrize(
    ("quantization", "scales"),
    [
        ({"quant_method": "blockwise_int8", "weight_block_size": [128, 128]}, 4 * LINEAR // 128**2),
        ({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, 4 * LINEAR // 128**2),
        ({"quant_method": "w8a8_int8"}, 4 * ROWS),
        ({"quant_method": "w8a8_fp8"}, 4 * ROWS),
    ],
)
def test_eight_bits_by_other_names(quantization, scales):
    assert total(quantization) == LINEAR + scales + 2 * REST


@pytest.mark.parametrize(
    ("quantization", "what"),
    [
        (compressed(FP8, targets=["LlamaAttention"]), "names no matrix of this model"),
        ({"quant_method": "mxfp4"}, "names no matrix of this model"),
        (compressed(FP8, sparsity_config={"format": "sparse-bitmask"}), "the number of stored elements"),
        (compressed({**FP8, "strategy": "block", "block_structure": "large"}), "block_structure"),
        ({"quant_method": "ptpc_fp8"}, "it quantizes while loading"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "modules_in_block_to_quantize": "all"},
            "must be a list",
        ),
    ],
)
def test_what_is_not_known_is_refused(quantization, what):
    with pytest.raises(SourceError, match=what):
        stored(quantization)
