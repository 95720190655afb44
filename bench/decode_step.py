"""One decode step of the assignment's model: ours, layer by layer and compiled, against a plain nn.Module that
concatenates its cache.

    python bench/decode_step.py [--weights FILE.pt] [--tokens 100] [--rounds 40] [--json]

All run the same weights at batch 1 on one thread, greedy, from the same prompt; their logits are compared first. The
compiled version is left out if there is no C++ compiler. Rounds alternate between the versions, so that a slow phase of
the machine affects all; the result of a round is time per token. Prints the medians and their ratio.
Without --weights the sizes are the assignment's defaults (vocabulary 1000, width 50, inner 100, 2 layers) with random
weights.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.compiled.attach import attach
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from engine.model.plain import PlainTransformer
from engine.model.reference import to_reference_name
from engine.weights.checkpoint import load_checkpoint

PROMPT_TOKENS = 10


def plain_run(model: PlainTransformer, prompt: Tensor, n_tokens: int) -> tuple[float, Tensor]:
    """(seconds a decode step, logits of the last one)."""
    with torch.no_grad():
        logits, cache = model(prompt, None)
        token = logits[:, -1:].argmax(-1)
        start_ns = time.perf_counter_ns()
        for _ in range(n_tokens):
            logits, cache = model(token, cache)
            token = logits[:, -1:].argmax(-1)
        return (time.perf_counter_ns() - start_ns) / 1e9 / n_tokens, logits[:, -1:]


def our_run(decoder: Decoder, prompt: Tensor, n_tokens: int) -> tuple[float, Tensor]:
    """The same with the engine's decoder and cache."""
    cache = decoder.new_cache(prompt.size(1) + n_tokens)
    token = decoder.forward(prompt, cache, last_only=True).argmax(-1)
    start_ns = time.perf_counter_ns()
    for _ in range(n_tokens):
        logits = decoder.forward(token, cache, last_only=True)
        token = logits.argmax(-1)
    return (time.perf_counter_ns() - start_ns) / 1e9 / n_tokens, logits


def run_s(decoder: Decoder, prompt: Tensor, n_tokens: int) -> float:
    """Seconds per step of `our_run`."""
    return our_run(decoder, prompt, n_tokens)[0]


def compiled_decoder(weights: Path | None) -> dict[str, Decoder]:
    """Another decoder on the same weights, with the compiled step; none where it cannot be built."""
    decoder = build(weights)[0]
    attach(decoder, "auto").wait()
    return {"compiled": decoder} if decoder.decode_step is not None else {}


def build(weights: Path | None) -> tuple[Decoder, PlainTransformer]:
    """Both models on the same float32 weights."""
    if weights is not None:
        decoder = load_checkpoint(weights, dtype="float32").decoder
        state = torch.load(weights, weights_only=True)
    else:
        config = default_config()
        tensors = random_weights(config)
        decoder = Decoder(config, tensors)
        state = {to_reference_name(name): tensor for name, tensor in tensors.items()}
    return decoder, PlainTransformer.from_state_dict(state)


def default_config() -> ModelConfig:
    return ModelConfig(
        n_layers=2, n_heads=1, n_kv_heads=1, head_dim=50, hidden_size=50, intermediate_size=100, vocab_size=1000,
        max_positions=128, norm="layernorm", norm_eps=1e-5, positions="learned", activation="relu", gated_mlp=False,
        qkv_bias=False, o_bias=False, mlp_bias=True, head_bias=True, qk_norm=False, tied=False,
        attention_scale=1 / math.sqrt(50),
    )  # fmt: skip


def measure(arms: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds per step of every round, arms taking turns; two rounds of warm-up are left out."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for round_number in range(rounds + 2):
        for name, run in arms.items():
            step_s = run()
            if round_number >= 2:
                times[name].append(step_s)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--tokens", type=int, default=100, help="decode steps a round")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true", help="one JSON document instead of text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    decoder, plain = build(options.weights)
    prompt = torch.arange(PROMPT_TOKENS)[None]
    decoders = {"engine": decoder} | compiled_decoder(options.weights)
    expected = plain_run(plain, prompt, 5)[1]
    error = max((our_run(one, prompt, 5)[1] - expected).abs().max().item() for one in decoders.values())
    arms: dict[str, Callable[[], float]] = {
        name: partial(run_s, one, prompt, options.tokens) for name, one in decoders.items()
    }
    arms["plain"] = lambda: plain_run(plain, prompt, options.tokens)[0]
    times = measure(arms, options.rounds)
    result = {f"{name}_step_us": statistics.median(step_s) * 1e6 for name, step_s in times.items()}
    result |= {f"{name}_min_us": min(step_s) * 1e6 for name, step_s in times.items()}
    result |= {f"{name}_ratio": result["plain_step_us"] / result[f"{name}_step_us"] for name in decoders}
    result |= {"max_abs_logit_difference": error}
    if options.json:
        print(json.dumps(result | {"torch": torch.__version__, "tokens": options.tokens, "rounds": options.rounds}))
        return
    for name in arms:
        ratio = f", {result[f'{name}_ratio']:.2f} times as fast as plain" if name in decoders else ""
        print(f"{name:8} {result[f'{name}_step_us']:7.1f} us per step (least {result[f'{name}_min_us']:.1f}){ratio}")
    print(f"logits differ by at most {error:.1e}")


if __name__ == "__main__":
    main()
