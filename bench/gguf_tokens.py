"""The engine's tokenizers against llama.cpp's, on the vocabularies of GGUF files.

    python bench/gguf_tokens.py FILE.gguf .. [--texts 500] [--llama-python PYTHON]

Files with only a vocabulary are enough: llama.cpp's sources have some (models/ggml-vocab-*.gguf). The random texts
consist of letters of many scripts, digits, marks, spaces and special tokens, the same for every file. For each file it
prints how many texts give different ids, and the shortest of them; exit code 1 if there are any.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, its bench included
from bench import speed_setup
from bench.llama_process import LlamaProcess
from engine.families.gguf_tokenizer import tokenizer_from_gguf
from engine.weights.gguf import read_gguf

ALPHABET = "aZbé日本\u01c5\u0301  \n\r\t0123456789.,!?'’\"/\\sStTdDmMlLvVrReE😀_-=+<>|#@$%^&*()[]{}~`" + (
    "ñßΩжЖ가각कि\u00a0\u200d\u3000"
)
WORDS = (
    "the", "of", "2024", "didn't", "State-of-the-art", "http://example.com", "foo_bar()", "{x:1}", "naïve", "...", "\n",
    "Ελλάδα", "мир", "你好世界", "안녕", "🙂🙃", "<s>", "</s>", "<|end|>", "<|im_start|>", "<|im_end|>", "\t",
    "<|endoftext|>", "<|fim_prefix|>", "<|user|>",
)  # fmt: skip


def texts(n: int) -> list[str]:
    """Half of letters, half of words."""
    draw = random.Random(1)
    letters = ["".join(draw.choices(ALPHABET, k=draw.randint(0, 40))) for _ in range(n // 2)]
    return letters + [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(n - n // 2)]


def differing(file: Path, tried: list[str], llama: LlamaProcess) -> list[str] | None:
    """The texts that come out otherwise; None where the engine builds no tokenizer."""
    ours = tokenizer_from_gguf(read_gguf(file))
    if ours is None:
        return None
    theirs = llama.ask(do="tokens", path=str(file), texts=tried)["ids"]
    return [text for text, ids in zip(tried, theirs, strict=True) if ours.encode(text) != ids]


def main() -> int:
    """Print a line for each file; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="+", type=Path, help="GGUF files with a vocabulary")
    parser.add_argument("--texts", type=int, default=500, help="how many texts to try (default: 500)")
    parser.add_argument("--llama-python", type=Path, help="an interpreter that has llama-cpp-python already")
    options = parser.parse_args()
    python = options.llama_python or speed_setup.llama_python(speed_setup.cache_folder())
    llama, tried, wrong = LlamaProcess(python), texts(options.texts), 0
    for file in options.file:
        found = differing(file, tried, llama)
        what = "not built" if found is None else f"{len(found)} of {len(tried)} differ"
        print(f"{file.name:40} {what}{f': {min(found, key=len)!r}' if found else ''}", flush=True)
        wrong += bool(found)
    llama.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
