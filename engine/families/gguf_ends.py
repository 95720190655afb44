"""Tokens that llama.cpp recognizes by their text, regardless of the GGUF file's metadata (llama-vocab.cpp)."""

from collections.abc import Collection

_ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
_FIM_ENDS = (
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>",
)  # fmt: skip
"""Tokens that end a file in fill-in-the-middle: a text ends there too."""
_FIM = (
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>",
    "<|code_prefix|>", "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>",
    "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>",
    "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>", "\u2581<MID>", "<|code_middle|>",
    "<|middle|>",
)  # fmt: skip
_NOT_A_TURN = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
"""In a vocabulary with these, <|end|> ends a message, not a turn (gpt-oss, Solar)."""
_NOT_THE_END = {"<|tool_response>", "<|plamo:eos|>"}
"""In a vocabulary with one of these, </s> is ordinary text."""


def end_texts(tokens: Collection[str]) -> set[str]:
    """The texts of tokens that end a turn or a text."""
    found = set(tokens).intersection((*_ENDS, *_FIM_ENDS, *_NOT_THE_END))
    if any(both <= found for both in _NOT_A_TURN):
        found.discard("<|end|>")
    if found & _NOT_THE_END:
        found.discard("</s>")
    return found.difference({"<|plamo:eos|>"})


def control_texts(tokens: Collection[str]) -> set[str]:
    """The texts of control tokens: matched as a whole, never typed by a user."""
    return end_texts(tokens) | set(tokens).intersection(_FIM)
