"""Prepares inputs of bench/engine_speed.py once in the user's cache folder: the model, its float32 form, llama.cpp."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import platformdirs
import torch

LLAMA = "llama-cpp-python"
# Its AMX kernels (0.3.36) end the process on Q8_0 and Q4_0; gcc lets an explicit "no" stand beside -march=native.
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
_DROPPED = ("general.architecture", "general.file_type", "general.quantization_version")
Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def cache_folder() -> Path:
    """Where models, the environment and the results are kept."""
    folder = platformdirs.user_cache_path("kvscope") / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def float32_file(source: Path, folder: Path) -> Path:
    """The same model with every tensor in float32, as a GGUF file in ``folder``; made when it is not there yet."""
    target = folder / f"{source.stem}.F32.gguf"
    if target.exists():
        return target
    reader, partial = gguf.GGUFReader(source), target.with_suffix(".part")
    writer = gguf.GGUFWriter(partial, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in _DROPPED:
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)
    return target


class Shape(NamedTuple):
    """Sizes of a Llama whose heads have 64 dimensions, four queries for each key."""

    hidden: int
    inner: int
    n_layers: int
    vocab_size: int


LLAMA_1B = Shape(hidden=2048, inner=8192, n_layers=16, vocab_size=128_256)


def random_file(folder: Path, shape: Shape = LLAMA_1B) -> Path:
    """Random bfloat16 weights of Llama-3.2-1B's shape, as a GGUF file in ``folder``; made when it is not there yet."""
    target = folder / "random-1B.BF16.gguf"
    if target.exists():
        return target
    partial, draw = target.with_suffix(".part"), torch.Generator().manual_seed(0)
    writer = gguf.GGUFWriter(partial, "llama")
    hidden, inner, n_layers, vocab_size = shape
    writer.add_block_count(n_layers)
    writer.add_context_length(131_072)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(hidden // 64)
    writer.add_head_count_kv(hidden // 256)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_rope_dimension_count(64)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab_size)
    writer.add_tokenizer_model("none")

    def add(name: str, rows: int, cols: int) -> None:
        values = (torch.randn(rows, cols, generator=draw) / cols**0.5).bfloat16()
        writer.add_tensor(name, values.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)

    add("token_embd.weight", vocab_size, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, 32, dtype=np.float32))
    sizes = {
        "attn_q": (hidden, hidden), "attn_k": (hidden // 4, hidden), "attn_v": (hidden // 4, hidden),
        "attn_output": (hidden, hidden),
        "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
    }  # fmt: skip
    for layer in range(n_layers):
        for name, (rows, cols) in sizes.items():
            add(f"blk.{layer}.{name}.weight", rows, cols)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(target)
    return target


def elements_read(file: Path) -> int:
    """Elements of a GGUF file's tensors that every token reads, as `bytes_read` counts them."""
    tensors = {tensor.name: int(tensor.n_elements) for tensor in gguf.GGUFReader(file).tensors}
    return sum(tensors.values()) - (tensors["token_embd.weight"] if "output.weight" in tensors else 0)


def bytes_read(file: Path) -> int:
    """Bytes of a GGUF file's tensors that every token reads: all but a table of embeddings that is not the head too."""
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors}
    return sum(tensors.values()) - (tensors["token_embd.weight"] if "output.weight" in tensors else 0)


def run_quietly(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run to the end; its words are kept for when it fails. Where there is AMX, what is compiled does without it."""
    cpu = Path("/proc/cpuinfo")
    flags = {"CFLAGS": NO_AMX, "CXXFLAGS": NO_AMX} if cpu.exists() and "amx_tile" in cpu.read_text() else {}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | flags)


def llama_python(folder: Path, *, run: Run = run_quietly, say: Callable[[str], Any] = print) -> Path:
    """An interpreter with llama-cpp-python, in an environment of its own; built when there is none.

    Raises SystemExit with pip's last words when that fails.
    """
    environment = folder / "llama"
    python = environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if python.exists() and run([str(python), "-c", "import llama_cpp"]).returncode == 0:
        return python
    say(f"building {LLAMA} in {environment}: 10 to 20 minutes on two cores, once (--no-llama leaves it out)")
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(environment)],
        [str(python), "-m", "pip", "install", "--quiet", "--no-cache-dir", LLAMA, "numpy"],
    ):
        done = run(command)
        if done.returncode:
            raise SystemExit(f"{LLAMA} could not be built: {done.stderr.strip()[-300:]}")
    return python
