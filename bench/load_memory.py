"""Time and memory of loading a model and reading a prompt, in a separate process, compared with the prediction.

    python bench/load_memory.py MODEL [--dtype auto] [--prompt-tokens 128]
    python bench/load_memory.py --synthetic Q8_0 [--size-mb 1000] [--dtype int8]

Memory is resident memory above that of the process with torch imported: after loading, and at the peak. The
prediction is the weights in their formats plus the cache. The overhead of the engine and torch (code pages, tables,
threads) is measured with a model of a few kilobytes and reported separately.
``--synthetic`` writes random weights to a temporary folder first: a GGUF format, or "safetensors".
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, its tests included: they write model files
from engine.__main__ import wait_briefly
from engine.compiled.attach import attach
from engine.model.cache import Cache
from engine.model.decoder import Decoder
from engine.model.made_weights import random_weights
from engine.weights.checkpoint import load_checkpoint

VOCABULARY = 32_000
LARGE = {"hidden_size": 1024, "intermediate_size": 2816, "n_heads": 16, "n_kv_heads": 4, "head_dim": 64}
TINY = {"hidden_size": 32, "intermediate_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8}


@dataclass(frozen=True, slots=True)
class Taken:
    """Bytes above those of the process with torch imported, and seconds of loading and of the first two prompts."""

    load_s: float
    loaded: int
    peak: int
    weights: int
    cache: int
    first_prompt_s: float
    next_prompt_s: float

    def sentence(self, fixed: int) -> str:
        predicted = self.weights + self.cache
        return (
            f"loaded in {self.load_s:.2f} s, {self.loaded / 1e6:.0f} MB then; highest {self.peak / 1e6:.0f} MB: "
            f"{self.peak / predicted:.2f} of weights + cache ({predicted / 1e6:.0f} MB), "
            f"{(self.peak - fixed) / predicted:.2f} without the {fixed / 1e6:.0f} MB that any model takes; "
            f"first prompt {self.first_prompt_s * 1e3:.0f} ms, "
            f"{self.first_prompt_s / self.next_prompt_s:.2f} times the next"
        )


def memory_bytes(kind: str) -> int:
    """VmRSS, memory of this process now, or VmHWM, the most it ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


def take(model: Path, dtype: str, prompt_tokens: int) -> Taken:
    """Load and read a prompt, here."""
    before, start = memory_bytes("VmRSS"), time.perf_counter()
    loaded = load_checkpoint(model, dtype=dtype)
    load_s, after = time.perf_counter() - start, memory_bytes("VmRSS")
    attach(loaded.decoder, "auto").wait()
    first_s, cache = read_prompt(loaded.decoder, prompt_tokens)
    peak = memory_bytes("VmHWM") - before
    next_s, _ = read_prompt(loaded.decoder, prompt_tokens)
    return Taken(load_s, after - before, peak, loaded.weight_bytes, cache.nbytes, first_s, next_s)


def read_prompt(decoder: Decoder, n_tokens: int) -> tuple[float, Cache]:
    """Seconds of a prompt, and the cache that holds it."""
    cache = decoder.new_cache(2 * n_tokens)
    start = time.perf_counter()
    decoder.forward(torch.ones(1, n_tokens, dtype=torch.int64), cache, last_only=True)
    return time.perf_counter() - start, cache


def take_apart(model: Path, dtype: str, prompt_tokens: int) -> Taken:
    """The same in a new process."""
    command = [sys.executable, __file__, str(model), "--dtype", dtype, "--prompt-tokens", str(prompt_tokens), "--json"]
    environment = dict(os.environ)
    wait_briefly(environment)  # as the engine's own process does
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return Taken(**json.loads(done.stdout))


def write_model(folder: Path, stored: str, n_layers: int, sizes: dict[str, int], vocab_size: int) -> Path:
    """A Llama with random weights."""
    from safetensors.torch import save_file

    from tests.engine.gguf_files import write_gguf
    from tests.engine.models import llama_config

    config = llama_config(n_layers=n_layers, vocab_size=vocab_size, max_positions=4096, tied=True, **sizes)
    weights = random_weights(config)
    if stored != "safetensors":
        return write_gguf(folder / f"{stored}.gguf", config, weights, kind=stored)
    save_file(weights, folder / "model.safetensors")
    document = {"model_type": "llama", "num_hidden_layers": n_layers, "hidden_size": config.hidden_size}
    document |= {"num_attention_heads": config.n_heads, "num_key_value_heads": config.n_kv_heads}
    document |= {"head_dim": config.head_dim, "intermediate_size": config.intermediate_size, "vocab_size": vocab_size}
    document |= {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(document))
    return folder


def n_layers_for(size_mb: float) -> int:
    """Layers of LARGE that take about so many megabytes in float32, beside its table of embeddings."""
    inner, hidden = LARGE["intermediate_size"], LARGE["hidden_size"]
    heads = (2 * LARGE["n_heads"] + 2 * LARGE["n_kv_heads"]) * LARGE["head_dim"]
    return max(1, round((size_mb * 1e6 / 4 - VOCABULARY * hidden) / (hidden * (heads + 3 * inner))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--synthetic", metavar="FORMAT", help="a model with random weights instead of MODEL")
    parser.add_argument("--size-mb", type=float, default=1000, help="of the synthetic model in float32")
    parser.add_argument("--json", action="store_true", help="bytes of MODEL alone, as JSON")
    options = parser.parse_args()
    if (options.model is None) == (options.synthetic is None):
        parser.error("give a model or --synthetic FORMAT")
    if options.json and options.model is not None:
        print(json.dumps(asdict(take(options.model, options.dtype, options.prompt_tokens))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder, tiny = Path(name), Path(name) / "tiny"
        tiny.mkdir()
        model, stored = options.model, options.synthetic
        if stored is not None:
            model = write_model(folder, stored, n_layers_for(options.size_mb), LARGE, VOCABULARY)
        small = take_apart(write_model(tiny, "safetensors", 1, TINY, 64), options.dtype, options.prompt_tokens)
        taken = take_apart(model, options.dtype, options.prompt_tokens)
        if options.json:
            print(json.dumps(asdict(taken) | {"fixed": small.peak}))
        else:
            print(f"{stored or model.name} as {options.dtype}: {taken.sentence(small.peak)}")


if __name__ == "__main__":
    main()
