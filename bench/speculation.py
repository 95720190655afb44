"""Decoding with and without speculation, interleaved: tokens per second, and acceptance.

    python bench/speculation.py MODEL [--draft MODEL] [--drafted 7] [--dtype auto] [--rounds 3] [--threads 1] [--json]

MODEL: a GGUF file or a folder. Texts: repetitive code, a text to be repeated word for word, and one without repetition.
Each round generates every text without drafts, with prompt lookup and, with --draft, with a draft model; different
tokens in any of these are an error. Times are from the first token to the last; with one thread they are CPU times, so
that other processes count little. Prints the medians of the ratios per round.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from engine.compiled.attach import attach
from engine.generation_events import GenerationFinished, TokenGenerated
from engine.machine import load_average
from engine.model.drafts import Drafter, DraftModel, PromptLookup
from engine.model.generate import GenerationOptions, Speculation, generate
from engine.records import CompileMode
from engine.speculation import LOOKUP, LOOKUP_TOKENS, MODEL_TOKENS, NGRAM, Drafted, Speculate
from engine.weights.checkpoint import LoadedModel, load_checkpoint

CODE = """class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def add(self, other):
        return Point(self.x + other.x, self.y + other.y)

    def sub(self, other):
        return Point(self.x - other.x, self.y - other.y)

    def mul(self, other):
"""
QUOTED = "Tower bridge was built between 1886 and 1894, designed by Horace Jones and engineered by John Wolfe Barry."
TEXTS = {
    "code": CODE,
    "repeat": f"Repeat after me. {QUOTED} {QUOTED} {QUOTED[:40]}",
    "plain": "Once upon a time there was a small town by the sea, where",
}


def load(path: Path, dtype: str, mode: CompileMode) -> LoadedModel:
    """A model with its compiled step, where there is one and it is not switched off."""
    model = load_checkpoint(path, dtype=dtype)  # type: ignore[arg-type]
    attach(model.decoder, mode).wait()
    return model


def drafter_of(draft: LoadedModel | None, model: LoadedModel) -> Drafter:
    if draft is None:
        return PromptLookup(NGRAM)
    return DraftModel(draft.decoder, vocab_size=model.config.vocab_size)


def run(
    model: LoadedModel, prompt: list[int], new_tokens: int, speculation: Speculation | None
) -> tuple[float, GenerationFinished]:
    """(seconds per token after the first, the end of the run)."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    options = GenerationOptions(max_new_tokens=new_tokens, stop_at_eos=False)
    began = 0.0
    for event in generate(model.decoder, prompt, options, speculation=speculation):
        if isinstance(event, TokenGenerated) and event.index == 0:
            began = clock()
        if isinstance(event, GenerationFinished):
            return (clock() - began) / (len(event.ids) - 1), event
    raise AssertionError("a generation without an end")


def measure(
    model: LoadedModel, draft: LoadedModel | None, args: argparse.Namespace, prompt: list[int]
) -> dict[str, object]:
    """All arms on one text, in turns."""
    arms: dict[str, LoadedModel | None] = {LOOKUP: None} | ({} if draft is None else {"model": draft})
    seconds: dict[str, list[float]] = {name: [] for name in ("without", *arms)}
    came: dict[str, Drafted] = {}
    for _ in range(args.rounds):
        each, plain = run(model, prompt, args.new_tokens, None)
        seconds["without"].append(each)
        for name, drafts in arms.items():
            tokens = args.drafted or (LOOKUP_TOKENS if drafts is None else MODEL_TOKENS)
            asked = Speculation(Speculate(tokens=tokens), drafter_of(drafts, model), name)
            each, end = run(model, prompt, args.new_tokens, asked)
            seconds[name].append(each)
            if end.ids != plain.ids:
                sys.exit(f"other tokens with {name}: {end.ids} and not {plain.ids}")
            assert end.drafted is not None
            came[name] = end.drafted
    return {
        "without_tokens_per_s": 1 / statistics.median(seconds["without"]),
        **{name: arm(seconds["without"], seconds[name], came[name]) for name in arms},
    }


def arm(without: list[float], taken: list[float], came: Drafted) -> dict[str, float | int | None]:
    return {
        "gain": statistics.median(a / b for a, b in zip(without, taken, strict=True)),
        "tokens_per_s": 1 / statistics.median(taken),
        "drafted": came.n_drafted,
        "accepted": came.n_accepted,
        "acceptance": came.acceptance,
        "tokens_per_step": came.tokens_per_step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path, help="a model that drafts")
    parser.add_argument(
        "--drafted", type=int, help=f"tokens per step (default {LOOKUP_TOKENS}, of a model {MODEL_TOKENS})"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--compile", choices=("auto", "off"), default="auto", help="off: layer by layer")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.model, args.dtype, args.compile)
    draft = None if args.draft is None else load(args.draft, "auto", args.compile)
    result = {"model": model.name, "dtype": model.dtype_name, "threads": args.threads, "load_average": load_average()}
    for name, text in TEXTS.items():
        prompt = model.tokenizer.encode(text) if model.tokenizer is not None else [ord(c) for c in text]
        result[name] = measure(model, draft, args, prompt)
        if not args.json:
            print_text(name, result[name])
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{model.name}, {model.dtype_name}, {args.threads} threads, load average {result['load_average']}")


def print_text(name: str, measured: dict[str, object]) -> None:
    print(f"{name:8} without   {measured['without_tokens_per_s']:7.1f} tokens/s")
    for which in (LOOKUP, "model"):
        came = measured.get(which)
        if isinstance(came, dict):
            print(
                f"{'':8} {which:8}  {came['tokens_per_s']:7.1f} tokens/s, gain {came['gain']:.2f}, "
                f"{came['accepted']} of {came['drafted']} accepted (acceptance {came['acceptance'] or 0:.2f}), "
                f"{came['tokens_per_step']:.2f} tokens per step"
            )


if __name__ == "__main__":
    main()
