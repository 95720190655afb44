"""Asks one calculator many questions, in its own interpreter: JSON in, JSON out. Used by bench/rivals.py.

    RIVAL_PYTHON bench/rival_worker.py NAME < questions.json > answers.json

A question is {"kind", "path", …}; its answer is a pair, with None for values that the calculator does not
give. Commands are called through their entry points, so that a hundred questions do not start a hundred interpreters.
Nothing here needs the network.
"""

import contextlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
GIB = 2**30
NOTHING = (None, None)


def said(distribution, *words):
    """What the command of a distribution prints for these words."""
    points = importlib.metadata.distribution(distribution).entry_points
    main = next(point for point in points if point.group == "console_scripts").load()
    out = io.StringIO()
    sys.argv = [distribution, *map(str, words)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()


def told(distribution, *words):
    """The same as JSON."""
    text = said(distribution, *words)
    return json.loads(text[text.index("{") :], strict=False)


@contextlib.contextmanager
def as_folder(path):
    """A folder that has the file as its config.json, and its hf_quant_config.json."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, Path(folder) / "config.json")
        if (more := Path(path).with_name("hf_quant_config.json")).exists():
            shutil.copy(more, folder)
        yield folder


def vramscout(ask):
    stored = "auto" if ask["kind"] == "checkpoint" else "bf16"
    words = ["--json", "--dtype", stored, "--kv-dtype", "bf16", "--engine", "vllm", "--context", ask["context"]]
    if ask["kind"] == "run":
        words += ["--vram-gib", "79.19", "--gpu-memory-utilization", "0.95", "--tp", ask["tp"]]
    else:
        words += ["--vram-gib", "100000"]
    found = told("vramscout", ask["path"], *words)
    parts = found["parts_gib"]
    cache = sum(size for name, size in parts.items() if "cache" in name.lower())
    if ask["kind"] == "run":
        pool = found["memory_budget_gib"] - sum(parts.values()) + cache
        return pool, pool / cache if cache else None
    if ask["kind"] == "checkpoint":
        return found["profile"]["num_params"], round(parts["Model weights / rank"] * GIB)
    return found["profile"]["num_params"], round(cache * GIB) if found["context"] == ask["context"] else None


def vramcalc(ask):
    stored = [] if ask["kind"] == "checkpoint" else ["--dtype", "bf16"]
    words = ["estimate", ask["path"], "--json", *stored, "--seq", ask["context"], "--batch", "1"]
    found = told("vramcalc", *words)["estimate"]
    if ask["kind"] == "checkpoint":
        return None, found["weights"]
    return found["weights"] / 2, found["kv_cache"]


def servcalc(ask):
    found = told("servcalc", "estimate", ask["path"], "--gpu", ask["gpu"], "--json")
    if ask["kind"] == "checkpoint":
        return None, found["weight_bytes"]
    return found["weight_bytes"] / 2, found["kv_bytes_per_token"] * ask["context"]


def planner(ask):
    text = said("llm-mem-planner", "--config", ask["path"], "--seq-len", ask["context"], "--batch", "1")
    total = re.search(r"^TOTAL:\s+([\d.]+)B params", text, re.M)
    cache = re.search(r"kv_unique=([\d.]+) GiB", text)
    return (float(total[1]) * 1e9 if total else None), (float(cache[1]) * GIB if cache else None)


def hf_mem(ask):
    if ask["kind"] == "gguf":
        from hf_mem.gguf.metadata import parse_gguf_metadata

        data = Path(ask["path"]).read_bytes()[: 2**20]
        whole = parse_gguf_metadata(data)
        try:
            cache = parse_gguf_metadata(data, True, ask["context"]).kv_cache.cache_size
        except Exception:  # what a rival raises is its own; the weights stand
            cache = None
        return sum(part.bytes_count for part in whole.components.values()), cache
    from hf_mem.safetensors.kv_cache import compute_safetensors_kv_cache_size

    config = json.loads(Path(ask["path"]).read_text())
    return None, compute_safetensors_kv_cache_size(config.get("text_config", config), "BF16", ask["context"])


def kvfit(ask):
    from kvfit.architectures import estimate_cache

    config = json.loads(Path(ask["path"]).read_text())
    found = estimate_cache(config, context_tokens=ask["context"])
    others = ("state", "conv", "index")  # what is not a cache of every token, and what transformers does not keep
    return None, sum(part.bytes for part in found.components if not any(word in part.name for word in others))


def innards(ask):
    found = told("innards", "predict", "--model", ask["path"], "--context", ask["context"], "--json")
    return None, found["kv_bytes"]


def aiconfigurator(ask):
    from aiconfigurator_core.sdk.memory import build_model_config, estimate_kv_cache, get_model

    formats = {}
    whole = {"max_num_tokens": ask["context"], "max_batch_size": 256, "memory_fraction_kind": "of_total"}
    if ask["kind"] == "run":
        given = {"memory_fraction_value": 0.95, "gpu_memory_capacity_bytes_override": int(79.19 * GIB)}
        given["tp_size"] = ask["tp"]
    else:
        given = {"memory_fraction_value": 1.0, "gpu_memory_capacity_bytes_override": 10**15}
    if ask["kind"] == "config":
        formats = dict.fromkeys(("gemm_quant_mode", "moe_quant_mode", "kvcache_quant_mode"), "bfloat16")
    with as_folder(ask["path"]) as folder:
        found = estimate_kv_cache(folder, "h100_sxm", "vllm", "current", **whole, **given, **formats)
        one = {"tp_size": 1, "pp_size": 1, "attention_dp_size": 1, "moe_tp_size": 1, "moe_ep_size": 1}
        others = dict.fromkeys(("fmha_quant_mode", "comm_quant_mode"))
        model = get_model(folder, build_model_config(**one, **others, **formats), "vllm") if formats else None
    if ask["kind"] == "run":
        return found["total_kv_size_bytes"] / GIB, found["total_kv_size_tokens"] / ask["context"]
    weights = found["memory_breakdown"]["weights_bytes"]
    if ask["kind"] == "checkpoint":
        return None, weights
    return weights / 2, model.get_kvcache_bytes_per_sequence(ask["context"])


def vllm_wizard(ask):
    words = ["--max-model-len", ask["context"], "--vram-gb", 100000, "--json"]
    with as_folder(ask["path"]) as folder:
        found = told("vllm-wizard", "plan", "--model", folder, "--gpu", "H100 80GB", *words)["feasibility"]
    if ask["kind"] == "checkpoint":
        return None, found["weights_gb"] * GIB
    return found["weights_gb"] * GIB / 2, found["kv_cache_gb"] * GIB


def resource_planner(ask):
    with as_folder(ask["path"]) as folder:
        text = said("llm-resource-planner", folder)
    return float(re.search(r"Parameters: ~([\d.]+)B", text)[1]) * 1e9, None


def llm_sizer(ask):
    found = told("llm-sizer", "-m", ask["name"], "-q", "bf16", "-c", ask["context"], "--json")
    return found["params_billions"] * 1e9, found["vram_gb"]["kv_cache"] * GIB


def ridgepoint(ask):
    found = told("ridgepoint", "fit", ask["name"], "--gpu", "h100-80gb:16", "--ctx", ask["context"], "--json")
    return found["model"]["params"], found["capacity"]["bytes_per_seq"]


def modelinfo(ask):
    from modelinfo.cli import analyze_model

    found = analyze_model(ask["path"], ask["context"])["footprint"]
    return found["base_memory_bytes"], found["kv_cache_bytes"]


def oldiron(ask):
    found = told("oldiron", "info", ask["path"], "--json")
    return None, found["kv_bytes_per_token_f16"] * ask["context"]


ASKED = {
    "vramscout": vramscout, "vramcalc": vramcalc, "servcalc": servcalc, "aiconfigurator-core": aiconfigurator,
    "vllm-wizard": vllm_wizard, "llm-resource-planner": resource_planner, "llm-mem-planner": planner, "kvfit": kvfit,
    "innards": innards, "hf-mem": hf_mem, "llm-sizer": llm_sizer, "ridgepoint": ridgepoint, "modelinfo-cli": modelinfo,
    "oldiron": oldiron,
}  # fmt: skip


def answer(name, ask):
    """The pair, or nothing where the rival refuses in any way."""
    try:
        return ASKED[name](ask)
    except Exception:  # what a rival raises is its own
        return NOTHING


if __name__ == "__main__":
    asks = json.load(sys.stdin)
    if "--why" in sys.argv:
        print(ASKED[sys.argv[1]](asks[0]))
    else:
        name = sys.argv[1]
        json.dump([answer(name, ask) for ask in asks], sys.stdout)
