"""The memory that llama.cpp itself allocates for the headers of tests/calc/sources/llama_cpp_headers.json.

    python bench/llama_cpp_headers.py --llama-python PYTHON [ARCHITECTURE …]

PYTHON has the package xllamacpp (its wheel exports llama.cpp's C functions). Each line of the JSON is written as a
sparse file without data, and loaded in a separate process without allocating (``no_alloc``): llama.cpp aborts on some
shapes after it has printed its caches. Prints the architectures whose caches or states differ from the JSON.
"""

import argparse
import ctypes as c
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, its tests included
from tests.calc import gguf_headers

HEADERS = Path(__file__).parents[1] / "tests" / "calc" / "sources" / "llama_cpp_headers.json"
TOKENS = 65_536
ALWAYS = {
    "vocab_size": 512, "context_length": TOKENS, "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.layer_norm_epsilon": 1e-5, "tokenizer.ggml.model": "none",
}  # fmt: skip
CACHE = re.compile(r"llama_kv_cache: size =\s+([\d.]+) MiB \(\s*(\d+) cells,\s+(\d+) layers")
STATE = re.compile(r"(?:llama_memory_recurrent: size|llama_dsv4_comp_state: .* layers = \d+, size) =\s+([\d.]+) MiB")
MISSING = re.compile(r"key not found in model: [^.\s]+\.(\S+)")


class ModelParams(c.Structure):
    """``llama_model_params`` of llama.h, October 2026."""

    _fields_ = (
        ("devices", c.c_void_p), ("tensor_buft_overrides", c.c_void_p), ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int32), ("load_mode", c.c_int32), ("lazy_mode", c.c_int32), ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p), ("progress", c.c_void_p), ("progress_data", c.c_void_p),
        ("kv_overrides", c.c_void_p), ("vocab_only", c.c_bool), ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool), ("no_host", c.c_bool), ("no_alloc", c.c_bool), ("load_mtp", c.c_bool),
    )  # fmt: skip


class ContextParams(c.Structure):
    """``llama_context_params``: what is set here stands at its place, the rest is passed on as it comes."""

    _fields_ = (
        ("n_ctx", c.c_uint32), ("n_batch", c.c_uint32), ("n_ubatch", c.c_uint32), ("n_seq_max", c.c_uint32),
        ("counts", c.c_int32 * 9), ("flash_attention", c.c_int32), ("rope", c.c_float * 8),
        ("callback", c.c_void_p * 2),
        ("type_k", c.c_int32), ("type_v", c.c_int32), ("abort", c.c_void_p * 3), ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool), ("no_perf", c.c_bool), ("op_offload", c.c_bool), ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool), ("samplers", c.c_void_p), ("n_samplers", c.c_size_t), ("other", c.c_void_p),
    )  # fmt: skip


Log = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


def load(path: Path) -> None:
    """In PYTHON: load `path` and make a context; llama.cpp's lines go to stdout as they come."""
    import xllamacpp  # only where this is run

    lib = c.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))
    log = Log(lambda _, text, __: print(text.decode("utf-8", "replace"), end="", flush=True))
    lib.llama_log_set(log, None)
    lib.llama_backend_init()
    lib.llama_model_default_params.restype, lib.llama_context_default_params.restype = ModelParams, ContextParams
    lib.llama_model_load_from_file.restype = c.c_void_p
    lib.llama_model_load_from_file.argtypes = [c.c_char_p, ModelParams]
    lib.llama_init_from_model.argtypes = [c.c_void_p, ContextParams]
    model_params, params = lib.llama_model_default_params(), lib.llama_context_default_params()
    model_params.no_alloc, model_params.load_mode, model_params.n_gpu_layers = True, 0, 0
    model = lib.llama_model_load_from_file(str(path).encode(), model_params)
    params.n_ctx, params.n_batch, params.n_ubatch = TOKENS, 512, 512
    params.flash_attention, params.swa_full = 1, False
    if model:
        lib.llama_init_from_model(model, params)


def allocated(python: str, architecture: str, line: dict[str, Any], folder: Path) -> str:
    """What llama.cpp prints for a line of the JSON; scales that it asks for are 1."""
    shapes = {**line["outer"]}
    for i, kind in enumerate(line["order"]):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in line["kinds"][kind].items()}
    tensors = [(name, tuple(map(int, shape.split("x")))) for name, shape in shapes.items()]
    typed = [(name, shape, gguf_headers.F32 if len(shape) == 1 else gguf_headers.F16) for name, shape in tensors]
    metadata = {**ALWAYS, **line["meta"]}
    while True:
        path = gguf_headers.write_header(folder / "m.gguf", architecture, metadata, typed, hole=True)
        said = subprocess.run([python, __file__, "--load", path], capture_output=True, text=True, check=False).stdout
        missing = MISSING.search(said)
        if missing is None or missing[1] in metadata:
            return said
        metadata[missing[1]] = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--llama-python")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load is not None:
        load(args.load)
        return 0
    lines = json.loads(HEADERS.read_text())
    asked = args.architectures or list(lines)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in asked:
            said = allocated(args.llama_python, name, lines[name], Path(folder))
            found = [[int(cells), int(layers), float(mib)] for mib, cells, layers in CACHE.findall(said)]
            state, line = round(sum(map(float, STATE.findall(said))), 2), lines[name]
            if (found, state) != (line["cache"], line["state"]):
                wrong += 1
                print(f"{name}: {found}, state {state} MiB; the JSON has {line['cache']}, {line['state']}")
    print(f"{len(asked) - wrong} architectures as in the JSON, {wrong} not")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
