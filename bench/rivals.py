"""Calculators from PyPI, asked offline for the values that each can give; docs/accuracy.md lists their commands."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("rival_worker.py")
TIMEOUT_S = 600
Answer = float | None
Pair = tuple[Answer, Answer]


@dataclass(frozen=True, slots=True)
class Rival:
    """A package, the kinds of question that it takes, the command that repeats a row, and what to know of it."""

    name: str
    kinds: tuple[str, ...]
    command: str
    note: str = ""


RIVALS = (
    Rival(
        "vramscout",
        ("config", "checkpoint", "run"),
        "vramscout config.json --json --dtype bf16 --kv-dtype bf16 --engine vllm --vram-gib 100000 --context 8192",
        "checkpoints with `--dtype auto`; runs with `--vram-gib 79.19 --gpu-memory-utilization 0.95 --tp N`",
    ),
    Rival(
        "vramcalc",
        ("config", "checkpoint"),
        "vramcalc estimate config.json --json --dtype bf16 --seq 8192 --batch 1",
        "parameters are its weights at 2 bytes; checkpoints without `--dtype`",
    ),
    Rival(
        "servcalc",
        ("config", "checkpoint"),
        "servcalc estimate config.json --gpu B200 --json",
        "parameters are its weights at 2 bytes; refuses what its largest GPU does not hold",
    ),
    Rival(
        "aiconfigurator-core",
        ("config", "checkpoint", "run"),
        'aiconfigurator_core.sdk.memory.estimate_kv_cache(FOLDER, "h100_sxm", "vllm", "current", …)',
        "a library, for vLLM 0.24; a tied embedding twice; cache by `get_kvcache_bytes_per_sequence`, with states",
    ),
    Rival(
        "vllm-wizard",
        ("config", "checkpoint"),
        'vllm-wizard plan --model FOLDER --gpu "H100 80GB" --max-model-len 8192 --vram-gb 100000 --json',
        "a part of its cache is fragmentation that it adds",
    ),
    Rival("llm-resource-planner", ("config",), "llm-plan FOLDER",
          "printed to 10 million; its cache is always of 4,096 tokens, and not asked"),
    Rival("llm-mem-planner", ("config",), "llm-mem-planner --config config.json --seq-len 8192 --batch 1",
          "latent attention only; printed to three decimals"),
    Rival("kvfit", ("config",), "kvfit.architectures.estimate_cache(config, context_tokens=8192)",
          "the command asks the Hub: its cache formula was called with the config"),
    Rival("innards", ("config",), "innards predict --model config.json --context 8192 --json", "the cache alone"),
    Rival("hf-mem", ("config", "gguf"), "hf_mem.safetensors.kv_cache.compute_safetensors_kv_cache_size(config, …)",
          "the command asks the Hub: its functions were called with the config, and with a GGUF file's first bytes"),
    Rival("llm-sizer", ("config",), "llm-sizer -m NAME -q bf16 -c 8192 --json",
          "knows 18 models by name and no file; asked where a config is of one of them"),
    Rival("ridgepoint", ("config",), "ridgepoint fit NAME --gpu h100-80gb:16 --ctx 8192 --json",
          "knows 9 models by name, asks the Hub for others; asked where a config is of one of them"),
    Rival("modelinfo-cli", ("gguf",), "modelinfo FILE.gguf --context 65536", "files of weights alone, no config"),
    Rival("oldiron", ("gguf",), "oldiron info FILE.gguf --json", "the cache alone: weights are the file's length"),
)  # fmt: skip


def ask(python: Path, name: str, questions: list[dict[str, Any]]) -> list[Pair]:
    """A rival's answers; all None where it does not come back."""
    try:
        done = subprocess.run(
            [str(python), str(WORKER), name],
            input=json.dumps(questions),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        return [(first, second) for first, second in json.loads(done.stdout)]
    except (OSError, ValueError, subprocess.SubprocessError):
        return [(None, None)] * len(questions)


def installed(python: Path | None) -> dict[str, str]:
    """Rivals that an interpreter has, with their versions."""
    if python is None:
        return {}
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return {rival.name: found[rival.name] for rival in RIVALS if rival.name in found}
