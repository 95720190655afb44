"""How text is split before byte-level BPE, by llama.cpp's names of the splits (tokenizer.ggml.pre).

A split is a list of regular expressions: each splits the pieces that the previous one has left, and text that it does
not match stays in one piece. The expressions come from the models' own tokenizer.json or llama.cpp's llama-vocab.cpp.
"""

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA3 = f"{_ENDINGS}|{_WORDS}|\\p{{N}}{{1,3}}{_MARKS}{_TAIL}"
_QWEN2 = f"{_ENDINGS}|{_WORDS}|\\p{{N}}{_MARKS}{_TAIL}"
_MARKED_WORDS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
_QWEN35 = f"{_ENDINGS}|{_MARKED_WORDS}|\\p{{N}}" + r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL
_CASED = f"[^\\r\\n\\p{{L}}\\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\\r\\n\\p{{L}}\\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_MARKS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = _CASED % ("", "") + f"|\\p{{N}}{_CASED_MARKS}{_TAIL}"
_GPT4O = _CASED % (f"{_ENDINGS}?", f"{_ENDINGS}?") + f"|\\p{{N}}{{1,3}}{_CASED_MARKS}{_TAIL}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MIXED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL
)
_HAN = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# The cased letters of many scripts, equivalent to DeepSeek's own list of ranges.
_DEEPSEEK_LLM = [r"[\r\n]", r"\s?[\p{Lu}\p{Ll}\p{Lt}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _HAN, r"\p{N}+"]
_DEEPSEEK_V3 = [r"\p{N}{1,3}", r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _MIXED]
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_KIMI_WORDS = r"[^\r\n\p{L}\p{N}]?%s*%s+" + f"{_ENDINGS}?" + r"|[^\r\n\p{L}\p{N}]?%s+%s*" + f"{_ENDINGS}?"
_NOT_HAN = tuple(f"[{kind}&&[^\\p{{Han}}]]" for kind in (_UPPER, _LOWER))
_KIMI = r"\p{Han}+|" + _KIMI_WORDS % (_NOT_HAN * 2) + r"|\p{N}{1,3}" + _MARKS + _TAIL
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|" + _WORDS + r"|\p{N}" + _MARKS + r"|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = f"{_ENDINGS}|{_WORDS}|\\p{{N}}| ?[^\\s\\p{{L}}\\p{{N}}\\r\\n]+{_TAIL}"
DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"]
"""llama.cpp's default if a file does not state the split."""

ADDS_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
            "tekken", "chameleon")  # fmt: skip
"""Names for which llama.cpp adds BOS if the file does not state it."""
WHOLE_WORDS = (*ADDS_BOS[:-1], "youtu", "glm4", "glm5")
"""Names whose models use a known word as a whole, regardless of the merges."""

_BY_WAY: list[tuple[list[str], tuple[str, ...]]] = [
    ([_LLAMA3], (*ADDS_BOS[:-2], "dbrx", "smaug-bpe", "glm4", "glm5", "chatglm-bpe")),
    ([_QWEN2], ("qwen2", "stablelm2", "hunyuan", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "grok-2",
                "solar-open")),
    ([_QWEN35], ("qwen35",)),
    ([_TEKKEN], ("tekken",)),
    ([_GPT4O], ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2")),
    ([_GPT2], ("gpt-2", "gpt2", "mpt", "olmo", "jais", "phi-2", "roberta-bpe", "jina-es", "jina-de", "gigachat",
               "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code", "a.x-4.0", "mellum", "modern-bert", "exaone4",
               "trillion", "granite-docling")),
    ([r"\p{N}", _GPT2], ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")),
    (DEFAULT, ("default",)),
    (_DEEPSEEK_LLM, ("deepseek-llm",)),
    ([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"], ("deepseek-coder",)),
    (_DEEPSEEK_V3, ("deepseek-v3", "hunyuan-dense", "joyai-llm")),
    ([r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"], ("falcon",)),
    ([_BLOOM], ("poro-chat", "bloom", "gpt3-finnish")),
    ([_BLOOM, r"\p{N}"], ("viking",)),
    ([r"<sentinel:[0-9]+>", r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )", r"\p{N}",
      r"[\p{P}!-/:-@\[-`{-~]", _GPT2], ("chameleon",)),
    ([_KIMI], ("kimi-k2",)),
    ([r"\p{N}+", r"(?=(\d{3})+(?!\d))"], ("superbpe",)),
    ([_BAILING], ("bailingmoe", "bailingmoe2", "llada-moe")),
    ([_SEED], ("seed-coder",)),
]  # fmt: skip
SPLITS = {name: way for way, names in _BY_WAY for name in names}
