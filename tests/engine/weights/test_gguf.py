"""GGUF files: every format widened right, conversions undone, tokenizers rebuilt; damage refused by name."""

import itertools
import json
import math
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers

from engine.compiled.attach import unsupported
from engine.errors import CheckpointError, ConfigError, EngineError, UnsupportedArchitecture
from engine.families.gguf_ends import end_texts
from engine.families.gguf_splits import SPLITS
from engine.model.config import ExpertsConfig, LatentConfig, Llama3RopeScaling, ModelConfig, YarnRopeScaling
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from engine.model.rotary import rope_frequencies
from engine.model.shapes import n_parameters
from engine.weights.checkpoint import load_checkpoint
from engine.weights.gguf import read_gguf
from tests.engine.gguf_files import write_gguf
from tests.engine.models import llama_config

# Relative error of one rounding; a Q format's is half a step of its block's largest value.
FORMATS = {"F32": 0.0, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 2e-2, "Q5_1": 0.15, "Q5_0": 0.15, "Q4_1": 0.3, "Q4_0": 0.3}


def small(**changes: Any) -> ModelConfig:
    """A Llama whose rows are whole blocks of 32."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
    return llama_config(**(sizes | changes))


def logits(model: Decoder) -> torch.Tensor:
    return model.forward(torch.arange(3, 15)[None])


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_gives_the_models_logits(kind: str, tmp_path: Path) -> None:
    """Exactly those of the values the file holds, and near those of the values written."""
    config = small()
    weights = random_weights(config)
    loaded = load_checkpoint(write_gguf(tmp_path / "m.gguf", config, weights, kind=kind))
    ours = loaded.config
    for field in ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size"):
        assert getattr(ours, field) == getattr(config, field)
    assert (ours.rope_theta, ours.tied, ours.max_positions) == (10_000.0, False, 64)
    wanted = gguf.GGMLQuantizationType[kind]
    rounded = {name: _rounded(t, wanted) if t.dim() == 2 else t for name, t in weights.items()}
    expected, plain = logits(Decoder(config, rounded)), logits(Decoder(config, weights))
    torch.testing.assert_close(logits(loaded.decoder), expected, rtol=0, atol=1e-5)
    assert (logits(loaded.decoder) - plain).abs().mean() <= FORMATS[kind] * plain.abs().mean() + 1e-6


def _rounded(tensor: torch.Tensor, kind: gguf.GGMLQuantizationType) -> torch.Tensor:
    values = gguf.quants.quantize(tensor.numpy(), kind)
    return torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(values, kind), dtype=np.float32))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL", "MXFP4"])
def test_blocks_that_only_others_write(kind: str, tmp_path: Path) -> None:
    """K-quants: random blocks (with sane scales) come out as the gguf package widens them, row by row."""
    wanted = gguf.GGMLQuantizationType[kind]
    block, size = gguf.constants.GGML_QUANT_SIZES[wanted]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 60, (6, 2 * size), dtype=np.uint8)  # high bytes of float16 below 0x3c: below 1
    path = tmp_path / "t.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", blocks, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(path).tensors["t"]
    assert tensor.shape == (6, 2 * block)
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(blocks, wanted), dtype=np.float32))
    assert expected.isfinite().all()
    assert torch.equal(tensor.stored().load(), expected)
    assert torch.equal(tensor.part(4).load(), expected[4])


def test_the_header_equals_that_of_the_gguf_package(tmp_path: Path) -> None:
    metadata = {"llama.rope.scaling.type": "none", "tokenizer.ggml.tokens": ["a", "é", ""], "x.scores": [0.5, -1.0],
                "x.flag": True}  # fmt: skip
    path = write_gguf(tmp_path / "m.gguf", small(), random_weights(small()), metadata=metadata)
    ours, reader = read_gguf(path), gguf.GGUFReader(path)
    said = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == said
    for tensor in reader.tensors:
        ours_here = ours.tensors[tensor.name]
        assert ours_here.shape == tuple(reversed(tensor.shape.tolist()))
        assert torch.equal(ours_here.stored().load().flatten(), torch.from_numpy(tensor.data.copy()).flatten())


def test_experts_lie_in_one_tensor(tmp_path: Path) -> None:
    experts = ExpertsConfig(n_experts=3, n_active=2, intermediate_size=64, normalize=True)
    config = small(experts=experts)
    weights = random_weights(config)
    stacked = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    renames = {}
    for layer in range(2):
        for part in ("gate_proj", "up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{part}.weight"
            each = [weights[f"model.layers.{layer}.mlp.experts.{i}.{part}.weight"] for i in range(3)]
            stacked[name] = torch.stack(each)
            renames[name] = f"blk.{layer}.ffn_{part.removesuffix('_proj')}_exps.weight"
    metadata = {"llama.expert_count": 3, "llama.expert_used_count": 2}
    path = write_gguf(tmp_path / "m.gguf", config, stacked, metadata=metadata, renames=renames)
    loaded = load_checkpoint(path)
    assert loaded.config.experts == experts
    torch.testing.assert_close(logits(loaded.decoder), logits(Decoder(config, weights)), rtol=0, atol=1e-6)


def test_gpt_oss_has_sinks_and_biases_of_experts(tmp_path: Path) -> None:
    config = small(
        experts=ExpertsConfig(n_experts=3, n_active=2, intermediate_size=64, normalize=True, router_bias=True),
        qkv_bias=True, o_bias=True, mlp_bias=True, sinks=True, swiglu_limit=7.0, sliding_window=4,
        sliding_layers=(True, False), rope_theta=150_000.0, rope_scaling=YarnRopeScaling(
            factor=4.0, original_max_positions=8, magnitude=0.1 * math.log(4) + 1),
    )  # fmt: skip
    weights = random_weights(config)
    stacked = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    renames = {}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        renames[f"{prefix}.post_attention_layernorm.weight"] = f"blk.{layer}.post_attention_norm.weight"
        for part, kind in itertools.product(("gate_proj", "up_proj", "down_proj"), ("weight", "bias")):
            name = f"{prefix}.mlp.experts.{part}.{kind}"
            stacked[name] = torch.stack([weights[f"{prefix}.mlp.experts.{i}.{part}.{kind}"] for i in range(3)])
            renames[name] = f"blk.{layer}.ffn_{part.removesuffix('_proj')}_exps.{kind}"
    facts = {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 64,
             "attention.sliding_window": 4, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
             "rope.scaling.original_context_length": 8}  # fmt: skip
    metadata = {f"gpt-oss.{key}": value for key, value in facts.items()}
    path = write_gguf(tmp_path / "m.gguf", config, stacked, architecture="gpt-oss", metadata=metadata, renames=renames)
    loaded = load_checkpoint(path)
    assert (loaded.config.experts, loaded.config.rope_scaling) == (config.experts, config.rope_scaling)
    torch.testing.assert_close(logits(loaded.decoder), logits(Decoder(config, weights)), rtol=0, atol=1e-5)


def test_qwen3_is_not_reordered_and_keeps_its_norms(tmp_path: Path) -> None:
    config = small(qk_norm=True, tied=True)
    weights = random_weights(config)
    loaded = load_checkpoint(write_gguf(tmp_path / "m.gguf", config, weights, architecture="qwen3"))
    assert loaded.config.tied
    torch.testing.assert_close(logits(loaded.decoder), logits(Decoder(config, weights)), rtol=0, atol=1e-6)


def test_gemmas_norms_have_their_one_already(tmp_path: Path) -> None:
    """And its windows, caps and scale are read; the four norms of a layer are told apart."""
    config = small(
        block="sandwich", norm_offset=1.0, activation="gelu_tanh", tied=True, embed_scale=math.sqrt(32),
        attention_softcap=50.0, logit_softcap=30.0, sliding_window=4, sliding_layers=(True, False),
    )  # fmt: skip
    weights = random_weights(config)
    stored = {name: tensor + 1 if "norm" in name else tensor for name, tensor in weights.items()}
    renames = {}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        renames[f"{prefix}.post_attention_layernorm.weight"] = f"blk.{layer}.post_attention_norm.weight"
        renames[f"{prefix}.pre_feedforward_layernorm.weight"] = f"blk.{layer}.ffn_norm.weight"
        renames[f"{prefix}.post_feedforward_layernorm.weight"] = f"blk.{layer}.post_ffw_norm.weight"
    metadata = {"gemma2.attention.sliding_window": 4, "gemma2.attn_logit_softcapping": 50.0,
                "gemma2.final_logit_softcapping": 30.0}  # fmt: skip
    path = write_gguf(tmp_path / "m.gguf", config, stored, architecture="gemma2", metadata=metadata, renames=renames)
    loaded = load_checkpoint(path)
    assert n_parameters(loaded.config) == n_parameters(config)
    torch.testing.assert_close(logits(loaded.decoder), logits(Decoder(config, weights)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("apart", [False, True])
def test_latent_attention_of_older_and_newer_conversions(apart: bool, tmp_path: Path) -> None:
    """DeepSeek-V2: rotated rows are stored in pairs; kv_b whole, or as two tensors."""
    eps = torch.tensor(1e-5).item()  # the file's one, in its 32 bits: llama.cpp norms the latent rows with it too
    latent = LatentConfig(rank=32, rope_dim=4, nope_dim=6, value_dim=5, norm_eps=eps)
    config = small(latent=latent, n_kv_heads=4, head_dim=10, attention_scale=10**-0.5, experts=ExpertsConfig(
        n_experts=3, n_active=2, intermediate_size=32, normalize=False), expert_layers=(False, False))  # fmt: skip
    weights = random_weights(config)
    stored = {name: _in_pairs(name, tensor, config) for name, tensor in weights.items()}
    renames = {}
    for layer in range(2):
        prefix = f"model.layers.{layer}.self_attn"
        parts = {"kv_a_proj_with_mqa": "attn_kv_a_mqa", "kv_a_layernorm": "attn_kv_a_norm", "kv_b_proj": "attn_kv_b"}
        renames |= {f"{prefix}.{ours}.weight": f"blk.{layer}.{part}.weight" for ours, part in parts.items()}
        if apart:
            both = stored.pop(f"{prefix}.kv_b_proj.weight").view(4, 11, 32)
            stored[f"k{layer}"], stored[f"v{layer}"] = (
                both[:, :6].transpose(1, 2).contiguous(),
                both[:, 6:].contiguous(),
            )
            renames |= {f"{part}{layer}": f"blk.{layer}.attn_{part}_b.weight" for part in "kv"}
    facts = {"attention.kv_lora_rank": 32, "rope.dimension_count": 4, "attention.value_length": 5, "expert_count": 3,
             "expert_used_count": 2, "expert_shared_count": 0, "expert_feed_forward_length": 32,
             "leading_dense_block_count": 2}  # fmt: skip
    metadata = {f"deepseek2.{key}": value for key, value in facts.items()}
    path = write_gguf(tmp_path / "m.gguf", config, stored, architecture="deepseek2", metadata=metadata, renames=renames)
    loaded = load_checkpoint(path)
    assert loaded.config.latent == replace(latent, norm_eps=loaded.config.norm_eps)  # of GGUF: one for all, in float32
    torch.testing.assert_close(logits(loaded.decoder), logits(Decoder(config, weights)), rtol=0, atol=1e-5)


def _in_pairs(name: str, tensor: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """The rotated rows of queries and of the shared key, from halves to neighbouring pairs."""
    if not name.endswith(("q_proj.weight", "kv_a_proj_with_mqa.weight")):
        return tensor
    heads = tensor.view(config.n_heads if "q_proj" in name else 1, -1, tensor.size(1)).clone()
    turned = heads[:, -4:]
    heads[:, -4:] = turned.view(-1, 2, 2, tensor.size(1)).transpose(1, 2).reshape(turned.shape).clone()
    return heads.view(tensor.shape)


# --- tokenizers -------------------------------------------------------------------------------------------


def trained(**options: Any) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer trained on this file."""
    backend = tokenizers.Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>", "<|im_start|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train([__file__], trainer)
    return backend


def tokenizer_metadata(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 2)],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    }


def saved(tmp_path: Path, metadata: dict[str, Any]) -> Path:
    config = small(vocab_size=400)
    return write_gguf(tmp_path / "m.gguf", config, random_weights(config), metadata=metadata)


def test_a_byte_level_tokenizer_is_rebuilt(tmp_path: Path) -> None:
    backend = trained()
    loaded = load_checkpoint(saved(tmp_path, tokenizer_metadata(backend)))
    assert loaded.tokenizer is not None
    rng = random.Random(1)
    alphabet = "abcdefgh  \n\t0123456789.,'()é日\U0001f600_"
    for text in ("def test(x):\n    return 12345", *("".join(rng.choices(alphabet, k=30)) for _ in range(200))):
        assert loaded.tokenizer.encode(text) == backend.encode(text).ids
        assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    assert loaded.tokenizer.encode("<|im_start|>x<|end|>")[::2] == [1, 0]
    assert loaded.config.eos_ids == (0,)
    assert loaded.chat is not None
    assert loaded.chat.render([{"role": "user", "content": "hi"}]) == "<|im_start|>hi<|end|>"


def test_the_first_token_is_added_where_the_file_says_so(tmp_path: Path) -> None:
    metadata = tokenizer_metadata(trained()) | {"tokenizer.ggml.add_bos_token": True}
    tokenizer = load_checkpoint(saved(tmp_path, metadata)).tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("a")[0] == 1
    assert tokenizer.encode("a", add_special=False) == tokenizer.encode("a")[1:]


def test_letters_with_marks_stay_apart_as_in_llama_cpp(tmp_path: Path) -> None:
    tokenizer = load_checkpoint(
        saved(tmp_path, tokenizer_metadata(trained()) | {"tokenizer.ggml.pre": "qwen2"})
    ).tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "e\u0301"


def test_tokens_are_known_by_their_text_as_in_llama_cpp(tmp_path: Path) -> None:
    """The end of a text is one, whatever kind the file gives it."""
    metadata = tokenizer_metadata(trained())
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    tokens[-3:], kinds[-3:] = ["</s>", "<|fim_pad|>", "<fim_prefix>"], [1, 1, 1]
    loaded = load_checkpoint(saved(tmp_path, metadata))
    n = len(tokens)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("a</s><|fim_pad|><fim_prefix>")[1:] == [n - 3, n - 2, n - 1]
    assert loaded.config.eos_ids == (0, n - 3, n - 2)


@pytest.mark.parametrize(
    ("beside", "ends"),
    [
        ([], {"</s>", "<|end|>"}),
        (["<|return|>", "<|call|>"], {"</s>", "<|return|>", "<|call|>"}),  # <|end|> ends a message there
        (["<|call|>", "<|flush|>"], {"</s>", "<|end|>", "<|call|>", "<|flush|>"}),
        (["<|calls|>", "<|flush|>"], {"</s>", "<|calls|>", "<|flush|>"}),
        (["<|tool_response>"], {"<|end|>", "<|tool_response>"}),
        (["<|plamo:eos|>", "<eos>"], {"<|end|>", "<eos>"}),
    ],
)
def test_what_ends_a_turn_goes_by_what_else_there_is(beside: list[str], ends: set[str]) -> None:
    assert end_texts(["a", "</s>", "<|end|>", *beside]) == ends


@pytest.mark.parametrize(("name", "takes"), [("Phi-3 Mini 4k", True), ("Llama", False)])
def test_spaces_behind_the_special_tokens_of_phi_3_are_theirs(name: str, takes: bool, tmp_path: Path) -> None:
    metadata = tokenizer_metadata(trained()) | {"general.name": name}
    tokenizer = load_checkpoint(saved(tmp_path, metadata)).tokenizer
    assert tokenizer is not None
    assert (tokenizer.encode("<|im_start|>\n a") == tokenizer.encode("<|im_start|>a")) is takes


def test_a_tokenizer_that_would_be_a_guess_is_left_out(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path, tokenizer_metadata(trained()) | {"tokenizer.ggml.model": "rwkv"}))
    assert loaded.tokenizer is None
    assert logits(loaded.decoder).isfinite().all()


def test_a_pre_tokenizer_that_is_no_name_is_not_known(tmp_path: Path) -> None:
    loaded = load_checkpoint(saved(tmp_path, tokenizer_metadata(trained()) | {"tokenizer.ggml.pre": ["smollm"]}))
    assert loaded.tokenizer is not None
    assert loaded.notes == (
        "the file names an unknown pre-tokenizer (['smollm']); "
        "llama.cpp's default is assumed, and text may be split differently than in training",
    )


def test_a_token_of_a_million_letters_is_put_together_by_no_merge(tmp_path: Path) -> None:
    """The ways to cut it in two would take a terabyte."""
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "a", "b", "ab", "a" * 1_000_000],
                "tokenizer.ggml.scores": [0.0, -1.0, -2.0, -3.0, -4.0]}  # fmt: skip
    config = small(vocab_size=5)
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config), metadata=metadata)
    tokenizer = load_checkpoint(path).tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("ab", add_special=False)[-1] == 3


def test_sentencepiece_merges_follow_the_scores(tmp_path: Path) -> None:
    """Worked by hand: "ab" scores above "bc", so abc is ab + c; what is unknown becomes bytes."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "a",
        "b",
        "c",
        "▁a",
        "ab",
        "bc",
        "▁ab",
    ]
    scores = [0.0] * 259 + [-100.0] * 4 + [-3.0, -1.0, -2.0, -4.0]
    kinds = [2, 3, 3, *[6] * 256, *[1] * 8]
    metadata = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces, "tokenizer.ggml.scores": scores,
                "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.bos_token_id": 1,
                "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0}  # fmt: skip
    tokenizer = load_checkpoint(saved(tmp_path, metadata)).tokenizer
    assert tokenizer is not None
    ids = {piece: i for i, piece in enumerate(pieces)}
    assert tokenizer.encode("abc") == [1, ids["▁ab"], ids["c"]]
    assert tokenizer.encode("bc") == [1, ids["▁"], ids["bc"]]
    assert tokenizer.encode("é") == [1, ids["▁"], ids["<0xC3>"], ids["<0xA9>"]]
    assert tokenizer.decode(tokenizer.encode("abc é bc")) == "abc é bc"
    assert tokenizer.encode("a</s>", add_special=False) == [ids["▁a"], 2]


# --- refusals ---------------------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    return caught.value.message


def test_what_cannot_be_run_is_named(tmp_path: Path) -> None:
    config = small()
    weights = random_weights(config)
    path = write_gguf(tmp_path / "m.gguf", config, weights, architecture="rwkv7")
    with pytest.raises(UnsupportedArchitecture, match=r'architecture "rwkv7".*it supports llama, .*smollm3, qwen2'):
        load_checkpoint(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    lacking = write_gguf(tmp_path / "lacking.gguf", config, weights)
    assert "lacks model.layers.1.mlp.up_proj.weight" in refusal(lacking)
    wrong = random_weights(config) | {"model.norm.weight": torch.ones(31)}
    assert "model.norm.weight has shape [31]; its metadata implies [32]" in refusal(
        write_gguf(tmp_path / "wrong.gguf", config, wrong)
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"GGUX" + bytes(40), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "GGUF version 1; 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "promises 1,099,511,627,776 tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "bytes more were promised"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 2**60), "bytes more"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQQ", 9, 9, 1, 0), "unknown type 9"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "has no general.architecture"),
    ],
)
def test_damaged_headers_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    assert words in refusal(path)


def test_any_damage_is_an_answer_not_a_crash(tmp_path: Path) -> None:
    """A file cut or with bytes changed anywhere in its header is refused or loads; it never raises anything else."""
    config = small(n_layers=1)
    good = write_gguf(tmp_path / "m.gguf", config, random_weights(config)).read_bytes()
    rng, path, refused = random.Random(0), tmp_path / "x.gguf", 0
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(rng.choice([1, 3])):
            bad[rng.randrange(1600)] = rng.randrange(256)
        path.write_bytes(bad[: rng.choice([len(bad), rng.randrange(len(bad))])])
        try:
            load_checkpoint(path)
        except (EngineError, ConfigError):
            refused += 1
    assert refused > 50


@pytest.mark.slow
def test_text_is_cut_as_transformers_cuts_it() -> None:
    """The regular expressions by llama.cpp's names, on texts with everything they tell apart."""
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    theirs, rng = mapping.GGUF_PRE_TOKENIZER_SPLITS, random.Random(2)
    shared = sorted(name for name, way in SPLITS.items() if len(way) == 1 and name in theirs)
    assert {"llama-bpe", "tekken", "gpt-4o"} <= set(shared)
    alphabet = "aZé日ǅ\u0301  \n\r\t0123.,!'/sStTdD\U0001f600_-"
    texts = ["".join(rng.choices(alphabet, k=25)) for _ in range(400)]
    for name in shared:
        ours = pre_tokenizers.Split(Regex(SPLITS[name][0]), "isolated")
        other = pre_tokenizers.Split(Regex(theirs[name]), "isolated")
        assert [ours.pre_tokenize_str(text) for text in texts] == [other.pre_tokenize_str(text) for text in texts], name


def test_layers_behind_the_last_are_left_out(tmp_path: Path) -> None:
    """They predict later tokens (multi-token prediction): they count among the file's layers, and are not run."""
    config = small(n_layers=2)
    weights = random_weights(config)
    behind = {name.replace("layers.1.", "layers.2."): t for name, t in weights.items() if ".layers.1." in name}
    more = {"nextn": torch.ones(32, 64)}
    path = write_gguf(
        tmp_path / "m.gguf",
        config,
        weights | behind | more,
        metadata={"llama.block_count": 3, "llama.nextn_predict_layers": 1},
        renames={"nextn": "blk.2.nextn.eh_proj.weight"},
    )
    loaded = load_checkpoint(path, dtype="float32")
    assert loaded.config.n_layers == 2
    assert torch.equal(logits(loaded.decoder), logits(Decoder(config, weights)))
    assert "left out, because the model has no use for them: model.layers.2." in loaded.notes[0]


@pytest.mark.parametrize("bad", [math.nan, 0.0, -1.0])
def test_rotary_factors_that_are_no_numbers_above_zero_are_refused(bad: float, tmp_path: Path) -> None:
    config, name = small(), "rope_freqs.weight"
    factors = torch.tensor([1.0, bad, 1.0, 1.0])
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config) | {name: factors}, renames={name: name})
    with pytest.raises(CheckpointError, match="rope_freqs holds a factor that is not a number above 0"):
        load_checkpoint(path)


def test_llama_3_factors_of_a_file_turn_as_its_config_would(tmp_path: Path) -> None:
    """The conversion writes one factor for each pair; a decoder with them has its compiled step."""
    scaling = Llama3RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32)
    config = small(rope_scaling=scaling)
    weights = random_weights(config)
    factors = rope_frequencies(8, 1e4, None) / rope_frequencies(8, 1e4, scaling)
    name = "rope_freqs.weight"
    path = write_gguf(tmp_path / "m.gguf", config, weights | {name: factors}, renames={name: name})
    loaded = load_checkpoint(path, dtype="float32").decoder
    torch.testing.assert_close(logits(loaded), logits(Decoder(config, weights)), rtol=0, atol=1e-5)
    assert unsupported(loaded) is None
