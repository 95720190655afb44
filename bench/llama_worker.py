"""llama.cpp for bench/engine_speed.py, gguf_architectures.py and gguf_tokens.py: requests and answers as JSON lines.

Runs in a separate environment, with llama-cpp-python and without this project.
"""

import ctypes
import itertools
import json
import sys
import time
from typing import Any

import llama_cpp as llama

_ERROR = 4  # of ggml_log_level
said: list[str] = []
"""The last words of llama.cpp that are errors."""


def silence(level: int, text: bytes, data: object) -> None:
    """llama.cpp talks on stderr while it loads."""
    if level >= _ERROR:
        said[:] = [*said[-9:], text.decode(errors="replace").strip()]


class Model:
    """One GGUF file with a context for ``room`` tokens; ``exact``: its cache and its attention in float32."""

    def __init__(self, path: str, room: int, threads: int, *, exact: bool = False) -> None:
        self.model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
        if not self.model:
            raise ValueError("llama.cpp does not load it")
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = room, room, room
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = llama.GGML_TYPE_F32
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama.llama_init_from_model(self.model, params)
        self.n_vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def close(self) -> None:
        """Give its memory back."""
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def decode(self, ids: list[int]) -> int:
        """Append ids; the likeliest next token."""
        array = (llama.llama_token * len(ids))(*ids)
        if llama.llama_decode(self.context, llama.llama_batch_get_one(array, len(ids))):
            raise RuntimeError("llama_decode failed")
        import numpy as np

        return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, -1), (self.n_vocab,)).argmax())

    def run(self, prompt: list[int], n_new: int) -> dict[str, Any]:
        """Greedy; the first token comes from prefill, n_new - 1 from decode steps."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        start = time.perf_counter()
        ids = [self.decode(prompt)]
        first = time.perf_counter()
        while len(ids) < n_new:
            ids.append(self.decode(ids[-1:]))
        return {"prefill_s": first - start, "decode_s": time.perf_counter() - first, "ids": ids}

    def logits(self, ids: list[int]) -> list[list[float]]:
        """Of every position of a text, read in one pass."""
        import numpy as np

        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        failed = llama.llama_decode(self.context, batch)
        llama.llama_batch_free(batch)
        if failed:
            raise ValueError("llama.cpp does not run it")
        found = np.ctypeslib.as_array(llama.llama_get_logits(self.context), (len(ids), self.n_vocab))
        return [[float(value) for value in row] for row in found]

    def losses(self, ids: list[int]) -> list[float]:
        """-log p of each id after the first, one step per token."""
        import numpy as np

        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        result = []
        for here, following in itertools.pairwise(ids):
            self.decode([here])
            logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self.context, -1), (self.n_vocab,)).astype(float)
            result.append(float(np.logaddexp.reduce(logits) - logits[following]))
        return result


def file_logits(path: str, ids: list[int]) -> dict[str, Any]:
    """Of every position of a text by a file, in float32; or why not."""
    try:
        model = Model(path, room=len(ids), threads=1, exact=True)
        logits = model.logits(ids)
    except ValueError as error:
        return {"failed": f"{error}: {' '.join(said[-3:])}"}
    model.close()
    return {"logits": logits}


def tokens_of(path: str, texts: list[str]) -> list[list[int]]:
    """Texts by a file's vocabulary, with the tokens that it puts first or last; those in the text are known."""
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(path.encode(), params)
    vocabulary, found = llama.llama_model_get_vocab(model), []
    for text in texts:
        data = text.encode()
        room = len(data) + 8
        ids = (llama.llama_token * room)()
        n = llama.llama_tokenize(vocabulary, data, len(data), ids, room, True, True)
        found.append(list(ids[:n]))
    llama.llama_model_free(model)
    return found


def convert(source: str, target: str, name: str) -> int:
    """Write the same weights in another format; 0 when it worked."""
    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_{'ALL' if name == 'F32' else 'MOSTLY'}_{name}")
    params.allow_requantize = True
    return int(llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


def main() -> None:
    callback = llama.llama_log_callback(silence)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    models: dict[str, Model] = {}
    for line in sys.stdin:
        request = json.loads(line)
        match request.pop("do"):
            case "about":
                info = llama.llama_print_system_info().decode().strip()
                answer: dict[str, Any] = {"version": llama.__version__, "system": info}
            case "load":
                for model in models.values():
                    model.close()
                models.clear()
                models[request["name"]] = Model(request["path"], request["room"], request["threads"])
                answer = {}
            case "convert":
                answer = {"failed": convert(request["source"], request["target"], request["format"])}
            case "tokens":
                answer = {"ids": tokens_of(**request)}
            case "logits":
                answer = file_logits(**request)
            case "losses":
                answer = {"losses": models[request["name"]].losses(request["ids"])}
            case _:
                answer = models[request["name"]].run(request["prompt"], request["n_new"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
