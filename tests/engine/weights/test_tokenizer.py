"""Text and ids: round trips, and streams that never cut a character."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from engine.errors import TokenizerError
from engine.weights.tokenizer import Tokenizer, faults_told
from tests.examples import examples

EOS = "<|endoftext|>"


def byte_level() -> Tokenizer:
    """Byte-level BPE with a few merges: any text round-trips, most characters take several tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["to be, or not to be: that is the question"] * 3, trainer)
    return Tokenizer(backend)


def metaspace() -> Tokenizer:
    """Words with a leading mark for the space, as Llama-2's tokenizer writes them."""
    words = ["\u2581to", "\u2581be", "\u2581or", ",", "not", "\u2581", "<unk>"]
    backend = Backend(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend)


BYTES, WORDS = byte_level(), metaspace()


def streamed(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = tokenizer.stream()
    return [*(stream.push(i) for i in ids), stream.finish()]


@given(st.text(max_size=40))
def test_text_comes_back(text: str) -> None:
    assert BYTES.decode(BYTES.encode(text)) == text


@given(st.text(max_size=40))
def test_the_pieces_of_a_stream_are_the_text(text: str) -> None:
    ids = BYTES.encode(text)
    pieces = streamed(BYTES, ids)
    assert "".join(pieces) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_character_is_held_back_until_it_is_whole() -> None:
    ids = BYTES.encode("\N{GRINNING FACE}!")
    assert len(ids) == 5
    assert streamed(BYTES, ids) == ["", "", "", "\N{GRINNING FACE}", "!", ""]


def test_a_character_that_never_becomes_whole_is_told_at_the_end() -> None:
    ids = BYTES.encode("ok\N{GRINNING FACE}")[:-1]
    pieces = streamed(BYTES, ids)
    assert "".join(pieces) == BYTES.decode(ids)
    assert pieces[-1].endswith("\N{REPLACEMENT CHARACTER}")
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces[:-1])


@given(st.lists(st.integers(0, BYTES.vocab_size - 1), max_size=30))
@examples(400)
def test_broken_bytes_do_not_hold_a_stream_up(ids: list[int]) -> None:
    """Any ids at all: the stream ends with the text that decoding them at once gives, up to replacements."""
    pieces = streamed(BYTES, ids)
    plain = BYTES.decode(ids)
    assert "".join(pieces).replace("\N{REPLACEMENT CHARACTER}", "") == plain.replace("\N{REPLACEMENT CHARACTER}", "")


@given(st.lists(st.integers(0, 4), max_size=12))
def test_spaces_between_words_are_kept_in_a_stream(ids: list[int]) -> None:
    assert "".join(streamed(WORDS, ids)) == WORDS.decode(ids)


def test_a_good_character_after_garbage_is_told() -> None:
    garbage = BYTES.encode("\N{GRINNING FACE}")[1:]
    ids = [*garbage, *garbage, *BYTES.encode("\N{GRINNING FACE}be")]
    assert "".join(streamed(BYTES, ids)).endswith("\N{GRINNING FACE}be")


def test_special_tokens_are_not_text() -> None:
    eos = BYTES.encode(EOS)
    assert len(eos) == 1
    assert BYTES.decode(eos) == ""
    assert streamed(BYTES, [*BYTES.encode("be"), *eos]) == ["be", "", ""]


def test_a_file_gives_the_same_tokenizer(tmp_path: Path) -> None:
    BYTES._backend.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert loaded.encode("not to be") == BYTES.encode("not to be")
    assert loaded.vocab_size == BYTES.vocab_size > 256


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\x00"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match="cannot be read: No such file"):
        Tokenizer.from_file(tmp_path / "absent.json")


def edited(tmp_path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A tokenizer.json that puts <s> first, with something changed by hand."""
    backend = Backend(models.BPE({"a": 0, "ab": 1, "b": 2, "<s>": 3}, [("a", "b")]))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    document = json.loads(backend.to_str())
    edit(document)
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    return tmp_path / "tokenizer.json"


def test_what_ends_the_librarys_own_code_ends_nothing_here(tmp_path: Path) -> None:
    """A panic of Rust is no Exception: it passed every handler and ended the process."""
    broken = edited(tmp_path, lambda document: document["model"].update(continuing_subword_prefix="(((("))
    with pytest.raises(TokenizerError, match=r"is not a tokenizer\.json"):
        Tokenizer.from_file(broken)
    unknown = edited(tmp_path, lambda document: document["post_processor"]["special_tokens"].clear())
    with pytest.raises(TokenizerError, match="tokenizer fails at this text"):
        Tokenizer.from_file(unknown).encode("ab")


def test_a_vocabulary_without_its_unknown_token_is_a_fault_of_the_file(tmp_path: Path) -> None:
    backend = Backend(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    document = json.loads(backend.to_str())
    del document["model"]["vocab"]["[UNK]"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a") == [0]
    with pytest.raises(TokenizerError, match="fails at this text: WordPiece error: Missing"):
        tokenizer.encode("z")


def test_an_interrupt_is_none_of_the_librarys_faults() -> None:
    with pytest.raises(KeyboardInterrupt), faults_told(str):
        raise KeyboardInterrupt


def test_a_tokenizer_saved_with_padding_or_truncation_takes_a_prompt_as_it_is(tmp_path: Path) -> None:
    backend = Backend(models.BPE({"a": 0, "b": 1}, []))
    backend.enable_padding(length=9)
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").encode("abababa") == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_stream_never_breaks_text_that_is_whole_in_the_end(size: int, offset: int) -> None:
    """Tokens that cut characters anywhere, many times running: pieces of ``size`` bytes after the first few."""
    text = "\u5b57\u5b57\u5b57\u5b57\U0001f600\U0001f600\u00e9\u00e9a\u0e2a\u0e27\ufffdz"
    data = text.encode()
    cuts = [0, *range(offset or size, len(data), size), len(data)]
    letters = byte_letters()
    tokens = ["".join(letters[byte] for byte in data[a:b]) for a, b in pairwise(cuts)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = Backend(models.BPE(vocabulary, []))
    backend.decoder = decoders.ByteLevel()
    stream = Tokenizer(backend).stream()
    pieces = [stream.push(vocabulary[token]) for token in tokens]
    assert "".join([*pieces, stream.finish()]) == text
    assert "".join(pieces).count("\ufffd") <= 1


def byte_letters() -> dict[int, str]:
    """Byte-level BPE's spelling of each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
