"""What llama.cpp takes a GGUF file to mean where its metadata says little: positions, BOS, ends of turns, splits."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import CheckpointError
from engine.families.gguf_splits import ADDS_BOS, SPLITS
from engine.model.config import LinearRopeScaling, LongRopeScaling, YarnRopeScaling
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from engine.weights.checkpoint import LoadedModel, load_checkpoint
from tests.engine.gguf_files import write_gguf
from tests.engine.weights.test_gguf import logits, small, tokenizer_metadata, trained

CONFIG = small(vocab_size=400)
WEIGHTS = random_weights(CONFIG)


def load(folder: Path, metadata: dict[str, Any]) -> LoadedModel:
    return load_checkpoint(write_gguf(folder / "m.gguf", CONFIG, WEIGHTS, metadata=metadata))


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_a_factor_without_a_type_is_linear(key: str, tmp_path: Path) -> None:
    assert load(tmp_path, {f"llama.{key}": 4.0}).config.rope_scaling == LinearRopeScaling(factor=4.0)


def test_a_factor_of_one_and_a_type_of_none_stretch_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, {"llama.rope.scaling.factor": 1.0}).config.rope_scaling is None
    none = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert load(tmp_path, none).config.rope_scaling is None


@pytest.mark.parametrize("factor", [None, 4.0])
def test_the_attention_factor_multiplies_cos_and_sin(factor: float | None, tmp_path: Path) -> None:
    """Scores grow by its square: 0.5 is the same as a quarter of the attention's scale, for heads that turn whole."""
    stretch = {} if factor is None else {"llama.rope.scaling.factor": factor}
    model = load(tmp_path, stretch | {"llama.rope.scaling.attn_factor": 0.5})
    assert isinstance(model.config.rope_scaling, LongRopeScaling)
    plain = LinearRopeScaling(factor=factor) if factor is not None else None
    expected = Decoder(small(vocab_size=400, rope_scaling=plain, attention_scale=CONFIG.attention_scale / 4), WEIGHTS)
    torch.testing.assert_close(logits(model.decoder), logits(expected))


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1e30])
def test_an_attention_factor_that_is_no_number_above_zero_is_refused(factor: float, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"rope\.scaling\.attn_factor is .*; expected a number above 0"):
        load(tmp_path, {"llama.rope.scaling.attn_factor": factor})


def test_yarns_own_factor_is_multiplied_too(tmp_path: Path) -> None:
    """llama.cpp reads the betas in a few architectures, none of which is here: elsewhere it keeps 32 and 1."""
    yarn = {"type": "yarn", "factor": 8.0, "original_context_length": 64, "attn_factor": 0.5, "yarn_beta_fast": 8.0}
    scaling = load(tmp_path, {f"llama.rope.scaling.{key}": value for key, value in yarn.items()}).config.rope_scaling
    assert isinstance(scaling, YarnRopeScaling)
    assert scaling.magnitude == pytest.approx(0.5 * (0.1 * math.log(8) + 1))
    assert (scaling.beta_fast, scaling.beta_slow) == (32.0, 1.0)


@pytest.mark.parametrize("name", ["llama-bpe", "tekken", "smollm", "qwen2"])
@pytest.mark.parametrize("said", [None, True, False])
def test_bos_is_added_where_llama_cpp_adds_it(name: str, said: bool | None, tmp_path: Path) -> None:
    metadata = tokenizer_metadata(trained()) | {"tokenizer.ggml.pre": name}
    metadata |= {} if said is None else {"tokenizer.ggml.add_bos_token": said}
    tokenizer = load(tmp_path, metadata).tokenizer
    assert tokenizer is not None
    assert (tokenizer.encode("x")[0] == 1) is (name in ADDS_BOS if said is None else said)


@pytest.mark.parametrize("name", SPLITS)
def test_every_way_to_cut_keeps_the_text(name: str, tmp_path: Path) -> None:
    tokenizer = load(tmp_path, tokenizer_metadata(trained()) | {"tokenizer.ggml.pre": name}).tokenizer
    assert tokenizer is not None
    text = "The year 2024: 1,234.56 items!!\n\n\tdon't  stop \u4f60\u597d na\u00efve $5 <= 10"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("name", "words"), [("", "names no pre-tokenizer"), ("brand-new", r"unknown pre-tokenizer \(brand-new\)")]
)
def test_a_pre_tokenizer_that_is_not_known_is_said(name: str, words: str, tmp_path: Path) -> None:
    metadata = tokenizer_metadata(trained())
    model, default = (load(tmp_path, metadata | {"tokenizer.ggml.pre": each}) for each in (name, "default"))
    (note,) = model.notes
    assert re.search(words, note)
    assert "llama.cpp's default is assumed" in note
    assert default.notes == ()
    assert model.tokenizer is not None
    assert default.tokenizer is not None
    assert model.tokenizer.encode("a1,b 23") == default.tokenizer.encode("a1,b 23")


def test_merges_of_tokens_that_are_not_there_are_passed_over(tmp_path: Path) -> None:
    metadata = tokenizer_metadata(trained())
    merges = ["qq zz", *metadata["tokenizer.ggml.merges"]]
    plain, other = (load(tmp_path, metadata | more) for more in ({}, {"tokenizer.ggml.merges": merges}))
    assert plain.tokenizer is not None
    assert other.tokenizer is not None
    assert plain.tokenizer.encode("def test(x):") == other.tokenizer.encode("def test(x):")


def test_ends_of_a_turn_are_known_by_their_text(tmp_path: Path) -> None:
    metadata = tokenizer_metadata(trained())
    tokens = list(metadata["tokenizer.ggml.tokens"])
    tokens[397:] = ["<|im_end|>", "<|end|>", "<|call|>"]
    ends = load(tmp_path, metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": []}).config.eos_ids
    assert tuple(sorted(ends)) == (0, 397, 398, 399)
    tokens[396] = "<|return|>"  # gpt-oss: <|end|> ends a message, not the turn
    ends = load(tmp_path, metadata | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": []}).config.eos_ids
    assert tuple(sorted(ends)) == (0, 396, 397, 399)


def test_split_files_are_read_whole_by_any_of_their_names(tmp_path: Path) -> None:
    names = list(WEIGHTS)
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for path, some in zip(parts, (names[:7], names[7:]), strict=True):
        metadata = {"split.count": 2, "split.no": parts.index(path)}
        write_gguf(path, CONFIG, {name: WEIGHTS[name] for name in some}, metadata=metadata)
    whole = load(tmp_path, {})
    for path in parts:
        torch.testing.assert_close(logits(load_checkpoint(path).decoder), logits(whole.decoder))
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"lacks m-00002-of-00002.gguf of 2 parts"):
        load_checkpoint(parts[0])
