"""Train kvscope's bundled default model, two Llama-style layers, on one CPU thread.

    python bench/train_default_model.py train --work WORK --minutes 45   # fetches the text, trains, exports
    python bench/train_default_model.py report --work WORK               # losses, samples, sizes of the export

Needs torch, transformers, tokenizers, safetensors; pip and apt-get for the text (see default_corpus.py).
The schedule follows the clock (``--minutes``), so the run ends on time on a busy machine; the number of
steps and tokens is written beside the weights. Weights are stored in bfloat16; ``report`` judges those.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import default_corpus
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

EOS = "<|endoftext|>"
ASSETS = Path(__file__).parent.parent / "assets" / "model"
VOCAB_SIZE = 2048
MAX_POSITIONS = 2048
SEED = 20261123
EVAL_LENGTH = 1280
CONFIG_KEYS = (
    *("attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size"),
    *("intermediate_size", "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads"),
    *("num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "vocab_size"),
)
"""What config.json keeps of transformers' long configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Optimisation settings; the learning rates are peaks of the schedule in ``rate``."""

    minutes: float
    short_length: int = 256
    long_length: int = MAX_POSITIONS
    long_from: float = 0.82
    """Share of the time after which sequences are ``long_length`` tokens."""
    batch_tokens: int = 4096
    matrix_lr: float = 0.02
    other_lr: float = 3e-3
    weight_decay: float = 0.1
    warmup: float = 0.01
    decay_from: float = 0.35


def rate(progress: float, plan: Plan) -> float:
    """Learning-rate factor: linear warm-up, flat, then a cosine from ``decay_from`` to 1 % at the end."""
    if progress < plan.decay_from:
        return min(1.0, (progress + 1e-4) / plan.warmup)
    done = (min(progress, 1.0) - plan.decay_from) / (1 - plan.decay_from)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


# --- text -----------------------------------------------------------------------------------------------


def make_tokenizer(docs: list[str]) -> Tokenizer:
    """A byte-level BPE of ``VOCAB_SIZE`` tokens; id 0 ends a document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(docs, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, docs: list[str]) -> list[Tensor]:
    """Each document's ids, with the end-of-text id in front and behind."""
    return [torch.tensor([0, *tokenizer.encode(doc).ids, 0]) for doc in docs]


def batches(docs: list[Tensor], length: int, batch_tokens: int, random: torch.Generator) -> Iterator[Tensor]:
    """Endless ``[batch, length + 1]`` ids: all documents in a new order each epoch, cut at a new offset."""
    rows = max(1, batch_tokens // length)
    while True:
        order = torch.randperm(len(docs), generator=random).tolist()
        stream = torch.cat([docs[i][:-1] for i in order])
        start = int(torch.randint(length, (1,), generator=random))
        count = (len(stream) - start - 1) // length
        picks = torch.randperm(count, generator=random)
        for chosen in picks.split(rows):
            if len(chosen) == rows:
                yield torch.stack([stream[start + i * length : start + (i + 1) * length + 1] for i in chosen.tolist()])


# --- model and optimiser --------------------------------------------------------------------------------


def make_config() -> LlamaConfig:
    """Two layers, 6 query heads on 2 KV heads, SwiGLU, tied head: 3.64M parameters."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=384,
        intermediate_size=896,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="sdpa",
    )


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon)."""

    def __init__(self, params: list[Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Apply one update to every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, float]) -> None:
        state = self.state[weight]
        velocity = state.setdefault("velocity", torch.zeros_like(weight))
        velocity.lerp_(weight.grad, 1 - group["momentum"])
        update = orthogonalise(weight.grad.lerp(velocity, group["momentum"]))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update, alpha=-group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Roughly U V^T of ``matrix`` = U S V^T, by a quintic Newton-Schulz iteration in bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).to(matrix.dtype)


def make_optimisers(model: LlamaForCausalLM, plan: Plan) -> list[tuple[torch.optim.Optimizer, float]]:
    """Each optimiser with its peak learning rate: Muon for the layers' matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers." in n]
    embedding = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers." not in n]
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": embedding, "weight_decay": plan.weight_decay * 0.1}, {"params": norms, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=plan.other_lr, betas=(0.9, 0.98), fused=True)
    muon = Muon(matrices, lr=plan.matrix_lr, weight_decay=plan.weight_decay)
    return [(muon, plan.matrix_lr), (adam, plan.other_lr)]


def batch_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross-entropy (nats) of predicting ``ids[:, 1:]`` from ``ids[:, :-1]``, computed in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden)
    return cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def train(model: LlamaForCausalLM, data: dict[str, list[Tensor]], plan: Plan, out: Path) -> dict[str, float]:
    """Train until the plan's time is over; a checkpoint in ``out`` every 400 steps. Returns the totals."""
    random = torch.Generator().manual_seed(SEED)
    optimisers = make_optimisers(model, plan)
    streams = {n: batches(data["train"], n, plan.batch_tokens, random) for n in (plan.short_length, plan.long_length)}
    begin, step, tokens, recent = time.monotonic(), 0, 0, 0.0
    while (progress := (time.monotonic() - begin) / (60 * plan.minutes)) < 1:
        ids = next(streams[plan.short_length if progress < plan.long_from else plan.long_length])
        for optimiser, peak in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = peak * rate(progress, plan)
        loss = batch_loss(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser, _ in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        step, tokens = step + 1, tokens + ids[:, 1:].numel()
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if step % 100 == 0:
            print(f"{progress:6.1%} step {step} tokens {tokens} loss {recent:.4f}", flush=True)
        if step % 400 == 0:
            export(model, out)
            print(f"       held-out loss {loss_of(model, data['held out'][:12])['loss']:.4f}", flush=True)
    return {"steps": step, "tokens": tokens, "minutes": (time.monotonic() - begin) / 60}


# --- judging and writing --------------------------------------------------------------------------------


@torch.no_grad()
def loss_of(model: LlamaForCausalLM, docs: list[Tensor], limit: int | None = None) -> dict[str, float]:
    """Mean loss per token over ``docs`` in windows of ``EVAL_LENGTH``, and total nats, for at most ``limit`` tokens."""
    nats, count, late_nats, late_count = 0.0, 0, 0.0, 0
    for doc in docs:
        for start in range(0, len(doc) - 1, EVAL_LENGTH):
            window = doc[start : start + EVAL_LENGTH + 1]
            losses = cross_entropy(model(window[None, :-1]).logits[0].float(), window[1:], reduction="none")
            nats, count = nats + losses.sum().item(), count + len(losses)
            late_nats, late_count = late_nats + losses[1000:].sum().item(), late_count + len(losses[1000:])
        if limit is not None and count >= limit:
            break
    late = late_nats / late_count if late_count else math.nan
    return {"loss": nats / count, "nats": nats, "tokens": count, "loss past 1000": late}


def export(model: LlamaForCausalLM, folder: Path) -> None:
    """Write config.json and model.safetensors (bfloat16, tied head left out) to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = model.config.to_dict()
    kept = {key: config[key] for key in CONFIG_KEYS} | {"rope_theta": 10000.0, "torch_dtype": "bfloat16"}
    kept["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(dict(sorted(kept.items())), indent=2) + "\n")


def load(folder: Path) -> LlamaForCausalLM:
    """The exported model in float32, its weights the stored bfloat16 values."""
    model = LlamaForCausalLM(make_config())
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def sample(model: LlamaForCausalLM, ids: list[int], *, count: int, temperature: float, top_p: float) -> list[int]:
    """Continue ``ids`` by up to ``count`` tokens; temperature 0 is greedy."""
    ids = list(ids)
    for _ in range(count):
        logits = model(torch.tensor([ids])).logits[0, -1]
        if temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            probabilities, order = torch.softmax(logits / temperature, -1).sort(descending=True)
            probabilities[probabilities.cumsum(0) - probabilities > top_p] = 0
            ids.append(int(order[torch.multinomial(probabilities, 1)]))
        if ids[-1] == 0:
            break
    return ids


def prepare(work: Path, folder: Path) -> tuple[Tokenizer, dict[str, list[Tensor]], dict[str, object]]:
    """Fetch and split the text, train or read the tokenizer; also facts for the record."""
    default_corpus.fetch(work / "data")
    docs = default_corpus.documents(work / "data")
    training, held_out = default_corpus.split(docs)
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_tokenizer(training).save(str(path))
        names = {"bos_token": EOS, "eos_token": EOS, "model_max_length": MAX_POSITIONS}
        facts_of_it = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "clean_up_tokenization_spaces": False}
        (folder / "tokenizer_config.json").write_text(json.dumps(facts_of_it, indent=2) + "\n")
    tokenizer = Tokenizer.from_file(str(path))
    data = {"train": encode(tokenizer, training), "held out": encode(tokenizer, held_out)}
    facts: dict[str, object] = {"documents": len(docs), "sha256 of the text": default_corpus.fingerprint(docs)}
    for name, part in (("train", training), ("held out", held_out)):
        facts[f"{name} bytes"] = sum(len(doc.encode()) for doc in part)
        facts[f"{name} tokens"] = sum(len(doc) - 1 for doc in data[name])
    return tokenizer, data, facts


def run_training(work: Path, out: Path, plan: Plan) -> None:
    """Train and export to ``out``; the run's record goes to ``out``/training.json."""
    torch.manual_seed(SEED)
    _, data, facts = prepare(work, out)
    print(json.dumps(facts, indent=1), flush=True)
    model = LlamaForCausalLM(make_config())
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    totals = train(model, data, plan, out)
    export(model, out)
    record = {**facts, **totals, **asdict(plan), "seed": SEED, "torch": torch.__version__}
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def run_report(work: Path, folder: Path, prompt: str) -> None:
    """Print losses of the stored weights on both parts, two samples and the files' sizes."""
    torch.manual_seed(0)
    tokenizer, data, facts = prepare(work, folder)
    model = load(folder)
    print(json.dumps(facts, indent=1))
    for name, limit in (("train", 120_000), ("held out", None)):
        found = loss_of(model, data[name], limit)
        per_byte = found["nats"] / math.log(2) / found["tokens"] * _tokens_per_byte(facts, name)
        print(
            f"{name}: loss {found['loss']:.4f} nats/token, perplexity {math.exp(found['loss']):.2f}, "
            f"{per_byte:.4f} bits/byte, over {found['tokens']} tokens; "
            f"past position 1000 {found['loss past 1000']:.4f}"
        )
    for temperature in (0.7, 0.0):
        ids = sample(model, tokenizer.encode(prompt).ids, count=150, temperature=temperature, top_p=0.9)
        print(f"--- temperature {temperature}, top-p 0.9, seed 0\n{tokenizer.decode(ids)}")
    for file in sorted(folder.iterdir()):
        print(f"{file.stat().st_size:>9,} {file.name}")


def _tokens_per_byte(facts: dict[str, object], name: str) -> float:
    return float(str(facts[f"{name} tokens"])) / float(str(facts[f"{name} bytes"]))


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Train or judge kvscope's bundled default model.")
    parser.add_argument("action", choices=("train", "report"))
    parser.add_argument("--work", type=Path, required=True, help="folder for downloaded text")
    parser.add_argument("--out", type=Path, default=ASSETS, help="model folder to write or judge")
    parser.add_argument("--minutes", type=float, default=45.0, help="training time")
    parser.add_argument("--matrix-lr", type=float, default=Plan(minutes=1).matrix_lr)
    parser.add_argument("--batch-tokens", type=int, default=Plan(minutes=1).batch_tokens)
    parser.add_argument("--prompt", default="It was a fine morning in the spring, and the old gentleman")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(minutes=args.minutes, matrix_lr=args.matrix_lr, batch_tokens=args.batch_tokens)
    if args.action == "train":
        run_training(args.work, args.out, plan)
    else:
        run_report(args.work, args.out, args.prompt)


if __name__ == "__main__":
    main()
