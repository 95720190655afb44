"""GGUF mixes: the type of every tensor as llama.cpp's own snapshots say it, and the sizes of published files.

gguf_types.json holds tests/snapshots/*.schema of llama.cpp 0c1e57098bba in our own form: for each model and mix the
tensors that are not of the mix's usual type, by layer.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from calc.model.count import parameters
from calc.model.gguf_rule import MIXES, FileFacts, GgufTensor, more_bits, tensor_types, type_bytes
from calc.model.gguf_tensors import UNKNOWN, file_facts, gguf_tensors
from calc.model.named import named_format, weights_as
from calc.model.spec import uniform
from calc.sources.catalog import find_model

SNAPSHOTS = json.loads(Path(__file__).with_name("gguf_types.json").read_text())


def model_of(key):
    model = find_model(key)
    # The snapshot is of a file whose head is written apart, as Qwen3-0.6B's safetensors have it.
    return replace(model, tied=False) if key == "qwen3-0.6b" else model


def unusual(key, mix):
    """Layers of the tensors that are not of the usual type, by kind and type."""
    model = model_of(key)
    found = {}
    for tensor, type_name in tensor_types(mix, gguf_tensors(model), file_facts(model, importance=False)):
        if not tensor.fixed and tensor.name != UNKNOWN and type_name != MIXES[mix]:
            parts = tensor.name.removesuffix(".weight").split(".")
            kind = ".".join(parts[2:] if parts[0] == "blk" else parts)
            found.setdefault(f"{kind} {type_name}", set()).add(tensor.layer)
    return found


def layers(text):
    if not text:
        return {-1}
    spans = (span.partition("-") for span in text.split())
    return {n for low, _, high in spans for n in range(int(low), int(high or low) + 1)}


@pytest.mark.parametrize("key", SNAPSHOTS)
def test_types_are_those_of_llama_cpp(key):
    for mix, expected in SNAPSHOTS[key].items():
        assert unusual(key, mix) == {kind: layers(text) for kind, text in expected.items()}, mix


def bytes_of(key, mix):
    return weights_as(named_format(mix), find_model(key)).stored.total_bytes


# Bytes of the files that bartowski, QuantFactory and ggml-org publish (their public listings, quoted in many
# repositories); a file has a header with the vocabulary besides its tensors.
FILES = {
    ("llama-3-8b", "Q4_K_M"): 4_920_734_272,
    ("llama-3.1-8b", "Q4_K_M"): 4_920_739_232,
    ("qwen2-7b", "Q4_K_M"): 4_683_071_264,
    ("mistral-7b-v0.1", "Q4_K_M"): 4_368_439_584,
    ("gemma-2-9b", "Q4_K_M"): 5_761_057_728,
    ("gpt-oss-20b", "MXFP4_MOE"): 12_109_566_560,
}


@pytest.mark.parametrize(("key", "mix"), FILES)
def test_published_files_are_the_tensors_and_a_header(key, mix):
    header = FILES[key, mix] - bytes_of(key, mix)
    assert 0 < header < 0.002 * FILES[key, mix]


def test_llama_3_8b_as_its_file_logs_it():
    """ "type f32: 65 tensors, q4_K: 193, q6_K: 33" and "4685.30 MiB" of the published Q4_K_M; norms are one here."""
    model = find_model("llama-3-8b")
    types = Counter(t for _, t in tensor_types("Q4_K_M", gguf_tensors(model), file_facts(model, importance=False)))
    assert types == {"F32": 33, "Q4_K": 193, "Q6_K": 33}
    assert round(bytes_of("llama-3-8b", "Q4_K_M") / 2**20, 2) == 4685.30


def test_by_hand():
    """Two layers of 256: embedding and head 512 x 256, q and o 256 x 256, k and v 64 x 256, three of 512 x 256."""
    model = uniform(
        name="m",
        n_layers=2,
        n_heads=4,
        n_kv_heads=1,
        head_dim=64,
        hidden_size=256,
        intermediate_size=512,
        vocab_size=512,
    )
    # Both layers of two are past the last eighth, so V and down have more bits: 6 of 8 bits' worth of blocks.
    blocks_q4 = 512 + 2 * (256 + 256 + 64 + 512 + 512)  # embedding; q, o, k, gate, up
    blocks_q6 = 512 + 2 * (64 + 2 * 256)  # head; v, down (rows of two blocks)
    norms = (2 * 2 + 1) * 256 * 4
    expected = blocks_q4 * 144 + blocks_q6 * 210 + norms
    assert more_bits(0, 2) is False
    found = weights_as(named_format("q4_k_m"), model)
    early = found.stored.total_bytes
    # Layer 0 of two: 0 < 2 // 8 is false, 0 >= 14 // 8 is false, (0 - 0) % 3 == 2 is false; layer 1 is >= 1.
    one = 64 + 2 * 256
    assert early == expected - one * (210 - 144)


def test_columns_that_are_no_whole_blocks_fall_back():
    facts = FileFacts(n_layers=1, n_experts=0, group=1)
    tensors = [
        GgufTensor("output.weight", -1, 8, 2880),
        GgufTensor("blk.0.ssm_in.weight", 0, 8, 2880),
        GgufTensor("blk.0.ssm_out.weight", 0, 8, 40),
        GgufTensor("blk.0.ffn_gate_inp.weight", 0, 8, 2880, fixed=True),
    ]
    types = {tensor.name: type_name for tensor, type_name in tensor_types("Q4_K_M", tensors, facts)}
    assert types == {
        "output.weight": "Q8_0",
        "blk.0.ssm_in.weight": "Q5_0",
        "blk.0.ssm_out.weight": "F16",
        "blk.0.ffn_gate_inp.weight": "F32",
    }


def test_fused_matrices_are_one_tensor():
    """Falcon's and Phi-3's Q, K and V are one matrix, as is Phi-3's gate and up."""
    names = Counter(
        tensor.name.split(".")[2] for tensor in gguf_tensors(find_model("phi-3.5-mini")) if tensor.layer == 0
    )
    assert names["attn_qkv"] == names["ffn_up"] == 1
    assert not {"attn_q", "attn_v", "ffn_gate"} & set(names)
    assert {t.name for t in gguf_tensors(find_model("falcon-40b")) if "qkv" in t.name and t.layer == 3} == {
        "blk.3.attn_qkv.weight"
    }


@pytest.mark.parametrize("key", ["llama-3-8b", "deepseek-v3", "qwen3.5-35b-a3b", "gpt2"])
def test_parts_are_the_whole(key):
    """Components and layers of a mix sum to it, and a mix of one type is its elements."""
    model = find_model(key)
    stored = weights_as(named_format("Q4_K_M"), model).stored
    assert sum(n for _, n in stored.components) == stored.total_bytes
    outside = dict(stored.components)
    assert sum(layer.experts for layer in stored.layers) == outside["experts"]
    assert sum(layer.total for layer in stored.layers) < stored.total_bytes
    assert sum(tensor.elements for tensor in gguf_tensors(model)) == parameters(model).total
    assert type_bytes("Q8_0", GgufTensor("x.weight", 0, 2, 64)) == 2 * 2 * 34
