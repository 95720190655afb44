"""A tokenizer from the metadata of a GGUF file: byte-level BPE (GPT-2's kind) and SentencePiece's BPE.

Whether text is split as in training depends on the pre-tokenization before BPE. A GGUF file only names it
(tokenizer.ggml.pre, see `engine.families.gguf_splits`); if the name is missing or unknown, llama.cpp's default is used,
with a note.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from engine.families.gguf_ends import control_texts
from engine.families.gguf_splits import ADDS_BOS, DEFAULT, SPLITS, WHOLE_WORDS
from engine.weights.chat import ChatTemplate
from engine.weights.gguf import GGUFFile
from engine.weights.tokenizer import Tokenizer, faults_told

_NORMAL, _CONTROL, _USER = 1, 3, 4  # kinds of tokens, tokenizer.ggml.token_type
_LONGEST_MERGED = 1024  # characters: a token has that many possible merges, each that long
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's character for a space


def tokenizer_from_gguf(file: GGUFFile) -> Tokenizer | None:
    """The tokenizer a file describes, None when it cannot be rebuilt exactly. Raises TokenizerError."""
    kind, tokens = file.metadata.get("tokenizer.ggml.model"), _texts(file, "tokens")
    if not tokens:
        return None
    if kind not in ("gpt2", "llama"):
        return None
    with faults_told(lambda fault: f"{file.path}: its tokenizer cannot be built: {fault}"):
        backend = _byte_level(file, tokens) if kind == "gpt2" else _sentencepiece(file, tokens)
        _add_special(backend, file, tokens)
    return Tokenizer(backend)


def chat_from_gguf(file: GGUFFile) -> ChatTemplate | None:
    """The chat template a file holds, if any."""
    source, tokens = file.metadata.get("tokenizer.chat_template"), _texts(file, "tokens")
    if not isinstance(source, str):
        return None

    def text(name: str) -> str:
        index = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else ""

    return ChatTemplate(source=source, bos=text("bos"), eos=text("eos"), unk=text("unknown"), pad=text("padding"))


def _texts(file: GGUFFile, name: str) -> list[str]:
    values = file.metadata.get(f"tokenizer.ggml.{name}")
    return [str(value) for value in values] if isinstance(values, list) else []


def _byte_level(file: GGUFFile, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """GPT-2's kind of BPE: bytes mapped to characters, merged by rank."""
    name = str(file.metadata.get("tokenizer.ggml.pre") or "default")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = _known(_stated_merges(file), vocabulary)
    # Some vocabularies have words that no merges produce; their models use a known word as a whole.
    model = models.BPE(vocabulary, pairs, fuse_unk=False, ignore_merges=name in WHOLE_WORDS)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer(SPLITS.get(name, DEFAULT))
    backend.decoder = decoders.ByteLevel()
    return backend


def _pre_tokenizer(way: Sequence[str]) -> Any:
    """Split text by each expression in turn, then map bytes to characters."""
    cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in way]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def tokenizer_notes(file: GGUFFile) -> tuple[str, ...]:
    """The assumption about the tokenizer if the file does not state it."""
    if file.metadata.get("tokenizer.ggml.model") != "gpt2" or not _texts(file, "tokens"):
        return ()
    name = file.metadata.get("tokenizer.ggml.pre")
    if isinstance(name, str) and name in SPLITS:
        return ()
    what = f"names an unknown pre-tokenizer ({name})" if name else "names no pre-tokenizer"
    return (f"the file {what}; llama.cpp's default is assumed, and text may be split differently than in training",)


def _sentencepiece(file: GGUFFile, tokens: Sequence[str]) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: spaces as a character, unknown characters as bytes, merges recovered from the scores."""
    gemma = file.architecture.startswith("gemma")
    if gemma:  # runs of spaces are stored as they are
        tokens = [_SPACE * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = _known(_stated_merges(file), vocabulary)
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    model = models.BPE(
        vocabulary,
        pairs or _merges(file, tokens, vocabulary, by_place=gemma),
        unk_token=tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    prefixed = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", not gemma))
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return backend


def _stated_merges(file: GGUFFile) -> list[tuple[str, str]]:
    halves = (merge.partition(" ") for merge in _texts(file, "merges"))
    return [(left, right) for left, _, right in halves]


def _known(merges: Sequence[tuple[str, str]], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges whose tokens exist; llama.cpp never reaches the others."""
    return [(a, b) for a, b in merges if a in vocabulary and b in vocabulary and a + b in vocabulary]


def _merges(
    file: GGUFFile, tokens: Sequence[str], vocabulary: dict[str, int], *, by_place: bool
) -> list[tuple[str, str]]:
    """Every way to put a token together from two, best first: by the tokens' scores, or by their places (Gemma)."""
    scores, kinds = file.metadata.get("tokenizer.ggml.scores"), _kinds(file, len(tokens))
    if by_place or not isinstance(scores, list) or len(scores) != len(tokens):
        scores = [-index for index in range(len(tokens))]
    found: list[tuple[float, str, str]] = []
    for index, token in enumerate(tokens):
        if kinds[index] not in (_NORMAL, _USER):
            continue
        parts = [(token[:i], token[i:]) for i in range(1, len(token))] if len(token) <= _LONGEST_MERGED else []
        known = [(left, right) for left, right in parts if left in vocabulary and right in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found.extend((scores[index], left, right) for left, right in known)
    found.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    return [(left, right) for _, left, right in found]


def _kinds(file: GGUFFile, n: int) -> list[int]:
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    return list(kinds) if isinstance(kinds, list) and len(kinds) == n else [_NORMAL] * n


def _add_special(backend: tokenizers.Tokenizer, file: GGUFFile, tokens: Sequence[str]) -> None:
    """Add tokens that are matched as a whole, and BOS and EOS if the file says that they are added."""
    control = control_texts(tokens)
    special: list[AddedToken] = []
    whole: list[AddedToken] = []
    for text, kind in zip(tokens, _kinds(file, len(tokens)), strict=True):
        if kind == _CONTROL or text in control:
            special.append(AddedToken(text, normalized=False, special=True, rstrip=_takes_spaces(file, text)))
        elif kind == _USER:
            whole.append(AddedToken(text, normalized=False, special=False, rstrip=_takes_spaces(file, text)))
    backend.add_special_tokens(special)
    backend.add_tokens(whole)
    sentencepiece = file.metadata.get("tokenizer.ggml.model") == "llama"
    by_name = file.metadata.get("tokenizer.ggml.pre") in ADDS_BOS
    first = _added(file, tokens, "bos", default=sentencepiece or by_name)
    last = _added(file, tokens, "eos", default=False)
    if first or last:
        named = [(tokens[i], i) for i in (*first, *last)]
        template = [*(tokens[i] for i in first), "$A", *(tokens[i] for i in last)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)


def _takes_spaces(file: GGUFFile, text: str) -> bool:
    """Whether a token includes the whitespace after it, which llama.cpp decides for Phi-3 by its name."""
    name = str(file.metadata.get("general.name", "")).lower()
    return ("phi-3" in name or "phi3" in name) and text not in ("<unk>", "<s>", "<|endoftext|>")


def _added(file: GGUFFile, tokens: Sequence[str], name: str, *, default: bool) -> list[int]:
    index = file.metadata.get(f"tokenizer.ggml.{name}_token_id")
    wanted = file.metadata.get(f"tokenizer.ggml.add_{name}_token", default)
    return [index] if wanted and isinstance(index, int) and 0 <= index < len(tokens) else []
