"""Make assets/cases.json: evaluation cases of the bundled model from an independent float64 computation.

    python bench/make_cases.py            # writes assets/cases.json
    python bench/make_cases.py --check    # also compares with transformers in float64 (needs torch, transformers)

Plain numpy from the stored bytes: no torch, no kvscope. To keep the file small it has only
``expected_logits_no_cache`` (the two other kinds of the format have the same values by definition), and of those only
the row of the last position.
"""

import argparse
import json
import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ASSETS = Path(__file__).parent.parent / "assets"
DECIMALS = 6
SEED = 7
CHECK_LIMIT = 1e-9
PROMPTS = (
    "The",
    "To be, or not to be",
    "It was a fine morning in the spring, and the old gentleman",
    "ROMEO.\nBut, soft! what light through yonder window breaks?\n",
)
LENGTHS = (50, 96, 200)
"""Sizes of the cases cut from ``PASSAGE``."""

PASSAGE = """A young woman came to the town in the summer of that year, with no fortune but a good understanding, \
and no friend but an aunt who had not written to her since she was a child. She took two rooms above the shop \
of a bookseller, and was seen every day to walk by the river with a little dog. "She is a person of sense," said \
the bookseller to his wife, "for she has asked me for nothing that is new." His wife was not so easily satisfied; \
she wished to know what the young lady lived upon, why she had come, and when she meant to go away.

The first of these questions was answered by a letter, and the second by an accident. One evening, as the rain was \
falling and the lamps were being lighted, a gentleman in a grey coat stopped at the door, and asked in a low voice \
whether Miss Harrow was at home. He did not give his name. He would wait, he said, as long as might be necessary; \
he had waited seven years already, and could not be much the worse for another hour.
"""


def read_safetensors(path: Path) -> dict[str, Array]:
    """Every bfloat16 tensor of ``path`` as float64, exactly. Raises ValueError for another type."""
    raw = path.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    tensors = {}
    for name, entry in json.loads(raw[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        if entry["dtype"] != "BF16":
            raise ValueError(f"{name} is {entry['dtype']}, BF16 was expected")
        begin, end = entry["data_offsets"]
        bits = np.frombuffer(raw[8 + length + begin : 8 + length + end], "<u2").astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).astype(np.float64).reshape(entry["shape"])
    return tensors


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    """``x`` over its root mean square along the last axis, times ``gain``."""
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def rotate(x: Array, theta: float) -> Array:
    """Rotary positions 0, 1, ... on ``x`` ``[heads, tokens, head_dim]``; pairs are (i, i + head_dim / 2)."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * theta ** -(np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def attention(x: Array, w: dict[str, Array], prefix: str, config: dict[str, float]) -> Array:
    """Causal grouped-query attention of ``x`` ``[tokens, hidden]``."""
    heads, kv_heads = int(config["num_attention_heads"]), int(config["num_key_value_heads"])

    def project(name: str, count: int) -> Array:
        return (x @ w[f"{prefix}.{name}.weight"].T).reshape(len(x), count, -1).transpose(1, 0, 2)

    query = rotate(project("q_proj", heads), config["rope_theta"])
    key = np.repeat(rotate(project("k_proj", kv_heads), config["rope_theta"]), heads // kv_heads, axis=0)
    value = np.repeat(project("v_proj", kv_heads), heads // kv_heads, axis=0)
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
    scores[:, ~np.tri(len(x), dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ value
    return mixed.transpose(1, 0, 2).reshape(len(x), -1) @ w[f"{prefix}.o_proj.weight"].T


def mlp(x: Array, w: dict[str, Array], prefix: str) -> Array:
    """SwiGLU: down(silu(gate(x)) * up(x))."""
    gate = x @ w[f"{prefix}.gate_proj.weight"].T
    up = x @ w[f"{prefix}.up_proj.weight"].T
    return (gate / (1 + np.exp(-gate)) * up) @ w[f"{prefix}.down_proj.weight"].T


def logits(ids: list[int], w: dict[str, Array], config: dict[str, float]) -> Array:
    """Logits ``[tokens, vocab]`` of the whole decoder with its head tied to the embedding."""
    epsilon = config["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][ids]
    for i in range(int(config["num_hidden_layers"])):
        layer = f"model.layers.{i}"
        normed = rms_norm(x, w[f"{layer}.input_layernorm.weight"], epsilon)
        x = x + attention(normed, w, f"{layer}.self_attn", config)
        normed = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"], epsilon)
        x = x + mlp(normed, w, f"{layer}.mlp")
    return rms_norm(x, w["model.norm.weight"], epsilon) @ w["model.embed_tokens.weight"].T


def make_prompts(tokenizer_file: Path, vocab_size: int) -> list[list[int]]:
    """Ids of the cases: texts, cuts of a passage, and one of random ids (any id may come)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    passage = tokenizer.encode(PASSAGE).ids
    random_ids = np.random.default_rng(SEED).integers(0, vocab_size, 12).tolist()
    return [*(tokenizer.encode(text).ids for text in PROMPTS), random_ids, *(passage[:n] for n in LENGTHS)]


def check(prompts: list[list[int]], w: dict[str, Array], folder: Path, config: dict[str, float]) -> float:
    """Largest difference to transformers in float64, over all positions of all cases."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa").eval()
    # transformers computes the rotary table and the norms in float32 (and its eager softmax too): undo that.
    head_dim = int(config["head_dim"])
    model.model.rotary_emb.forward = lambda x, position_ids: _float64_rotary(position_ids, head_dim, config)
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = _float64_norm(module.weight, config["rms_norm_eps"])
    worst = 0.0
    with torch.no_grad():
        for ids in prompts:
            theirs = model(torch.tensor([ids])).logits[0].numpy()
            worst = max(worst, float(np.abs(theirs - logits(ids, w, config)).max()))
    return worst


def _float64_rotary(position_ids, head_dim: int, config: dict[str, float]):
    import torch

    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    angles = position_ids[..., None].double() * config["rope_theta"] ** -exponents
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def _float64_norm(gain, epsilon: float):
    return lambda x: gain * (x * (x.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt())


def main() -> None:
    """Compute, optionally check, and write the cases."""
    parser = argparse.ArgumentParser(description="Make the bundled model's evaluation cases.")
    parser.add_argument("--model", type=Path, default=ASSETS / "model")
    parser.add_argument("--output", type=Path, default=ASSETS / "cases.json")
    parser.add_argument("--check", action="store_true", help="compare with transformers in float64")
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    weights = read_safetensors(args.model / "model.safetensors")
    prompts = make_prompts(args.model / "tokenizer.json", config["vocab_size"])
    if args.check:
        worst = check(prompts, weights, args.model, config)
        print(f"largest difference to transformers in float64: {worst:.3e}")
        if not worst < CHECK_LIMIT:
            raise SystemExit(1)
    cases = []
    for ids in prompts:
        last = logits(ids, weights, config)[-1]
        cases.append({"input_ids": [ids], "expected_logits_no_cache": [[[round(float(v), DECIMALS) for v in last]]]})
    args.output.write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    lengths = [len(ids) for ids in prompts]
    print(f"{args.output}: {len(cases)} cases of {lengths} tokens, {args.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
