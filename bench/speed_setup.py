"""What bench/engine_speed.py needs, made once in the user's cache folder: the model, its float32 form, llama.cpp."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import platformdirs

LLAMA = "llama-cpp-python"
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


def bytes_read(file: Path) -> int:
    """Bytes of a GGUF file's tensors that every token reads: all but a table of embeddings that is not the head too."""
    tensors = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors}
    return sum(tensors.values()) - (tensors["token_embd.weight"] if "output.weight" in tensors else 0)


def run_quietly(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run to the end; its words are kept for when it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


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
        [str(python), "-m", "pip", "install", "--quiet", LLAMA, "numpy"],
    ):
        done = run(command)
        if done.returncode:
            raise SystemExit(f"{LLAMA} could not be built: {done.stderr.strip()[-300:]}")
    return python
