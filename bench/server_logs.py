"""Rows of server_startup.csv and vllm_h100_runs.csv as questions for calc.servers, with the log's answers."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from bench.server_models import facts, models
from calc.model.storage import FORMATS
from calc.model.study import DeviceSpec, Policy, Study
from calc.servers.records import ModelFacts, ServerOptions
from calc.sources.catalog import find_device, manual_device

GIB = 2**30
PATTERNS = (
    ("coder-480b", "Qwen/Qwen3-Coder-480B-A35B"),
    ("qwen3-30b-a3b", "Qwen/Qwen3-30B-A3B"),
    ("qwen3-235b", "Qwen/Qwen3-235B-A22B"),
    ("qwen3-next", "Qwen/Qwen3-Next-80B-A3B-Instruct"),
    ("qwen3-vl-embedding-2b", "Qwen/Qwen3-VL-Embedding-2B"),
    ("qwen3.5-27b", "Qwen/Qwen3.5-27B"),
    ("qwen3.8-27b", "Qwen/Qwen3.8-27B"),
    ("qwen3.6-35b", "Qwen/Qwen3.6-35B-A3B"),
    ("qwen3-32b", "Qwen/Qwen3-32B"),
    ("qwen3-14b", "Qwen/Qwen3-14B"),
    ("qwen3-8b", "Qwen/Qwen3-8B"),
    ("qwen2-vl-7b", "Qwen/Qwen2-VL-7B-Instruct-AWQ"),
    ("qwen2.5-vl-7b", "Qwen/Qwen2.5-VL-7B-Instruct"),
    ("qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct"),
    ("qwen2.5-3b", "Qwen/Qwen2.5-3B-Instruct"),
    ("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B-Instruct"),
    ("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct-AWQ"),
    ("distill-qwen-14b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B"),
    ("deepseek-v3.2", "deepseek-ai/DeepSeek-V3.2"),
    ("deepseek-r1", "deepseek-ai/DeepSeek-R1"),
    ("meta-llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
    ("meta-llama-3-8b", "meta-llama/Meta-Llama-3-8B"),
    ("llama-2-7b", "meta-llama/Llama-2-7b-chat-hf"),
    ("gemma-3-27b", "google/gemma-3-27b-it"),
    ("gemma-3-1b", "google/gemma-3-1b-it"),
    ("gemma-4-26b", "google/gemma-4-26B-A4B-it"),
    ("glm-5.2", "zai-org/GLM-5.2"),
    ("nemotron-3-nano-4b", "nvidia/NVIDIA-Nemotron-3-Nano-4B-FP8"),
    ("phi-4", "microsoft/phi-4"),
)
NOT_ONE_RANK = {
    "L051": "no pool in GiB; the concurrency is another rank's",
    "L055": "the pool in GiB is one rank's, the tokens another's",
    "L056": "the pool in GiB is one rank's, the tokens another's",
}
VERSIONS = {"L090": "0.6.6", "L091": "0.6.6", "L087": "0.25.1", "L054": "0.6.6"}
"""Where the log states no version, the one its form tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCase:
    """A row: what was asked for, what the log says; `problem` says why it cannot be held against a pool."""

    id: str
    study: Study | None
    options: ServerOptions
    tokens: float | None
    concurrency: float | None
    pool_gib: float | None
    problem: str = ""

    @property
    def rounding(self) -> float:
        """Relative error that the pool's two decimals allow."""
        return 0.005 / self.pool_gib if self.pool_gib else 0.0


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def startup_cases(path: Path) -> list[LogCase]:
    """All rows of server_startup.csv."""
    with path.open(newline="") as stream:
        return [_startup_case(row) for row in csv.DictReader(stream)]


def _startup_case(row: dict[str, str]) -> LogCase:
    text = f"{row['hf_id_inferred']} {row['model_id']}".lower()
    name = next((model for pattern, model in PATTERNS if pattern in text), None)
    problem = NOT_ONE_RANK.get(row["id"], "" if name else "model not known here")
    engine = "sglang" if row["engine"].startswith("sglang") else "vllm"
    pool = _number(row["kv_cache_gib_reported"])
    tokens = _number(row["kv_tokens_reported"]) or (_number(row["gpu_blocks"]) or 0) * 16 or None
    options = _startup_options(row, engine, pool, facts().get(name or "", ModelFacts()))
    study = None
    if name is not None:
        length = _number(row["max_model_len"]) or 8192
        fp8 = "fp8" in row["kv_cache_dtype"] or "fp8 cache" in row["notes"]
        study = Study(
            model=models()[name],
            device=_device(row),
            context=int(length),
            kv_format=FORMATS["fp8" if fp8 else "bf16"],
            policy=Policy.REPLICATED,
        )
        if pool is None and tokens is not None and not problem:
            options = replace(options, kv_pool_bytes=_pool_of(study, options, int(tokens)))
    return LogCase(
        id=row["id"],
        study=study,
        options=options,
        tokens=tokens,
        concurrency=_number(row["concurrency_reported"]),
        pool_gib=pool,
        problem=problem,
    )


def _pool_of(study: Study, options: ServerOptions, tokens: int) -> int:
    """Where a log has no pool: that of its tokens, so that its concurrency at least can be checked."""
    model = study.model
    heads = max(1, model.n_kv_heads // options.tp)
    return tokens * 2 * model.n_layers * heads * model.head_dim * int(study.kv_format.bytes_per_element)


def _device(row: dict[str, str]) -> DeviceSpec:
    if "DGX Spark" in row["notes"]:
        return find_device("gb10")
    total = _number(row["total_gpu_gib_reported"])
    small = row["id"] == "L078"  # 25 GiB of cache at a utilization of 0.95
    return manual_device(int((total or (31.36 if small else 79.19)) * GIB))


def _startup_options(row: dict[str, str], engine: str, pool: float | None, known: ModelFacts) -> ServerOptions:
    notes, what = row["notes"], f"{row['arch_note']} {row['notes']}"
    printed = re.search(r"= (0\.\d+\.\d+)", notes)
    version = row["vllm_version"] or VERSIONS.get(row["id"]) or (printed[1] if printed else None)
    groups = re.search(r"dp_size (\d+)", notes)
    more: dict[str, Any] = {}
    if engine == "vllm" and row["block_size"] and "hybrid" not in row["attn_class"]:
        more["block_size"] = int(row["block_size"])
    if "Ascend" in row["engine"]:
        more["block_size"] = 128  # all its token counts are multiples of it
    return ServerOptions(
        engine=engine,
        version=version if engine == "vllm" else None,
        tp=int(row["tp"] or row["gpu_count"] or 1),
        pp=int(row["pp"] or 1),
        kv_pool_bytes=None if pool is None else int(pool * GIB),
        speculative_layers=1 if "MTP" in what else 0,
        prefix_caching_of_states="prefix caching on" in notes,
        dp_attention=int(groups[1]) if groups else 1,
        facts=known,
        **more,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCase:
    """A run of vLLM 0.19 on an H100: the question with nothing given but config and device, and all measured parts."""

    id: str
    study: Study
    options: ServerOptions
    row: dict[str, str]

    def measured(self, name: str) -> float:
        """A column as a number."""
        return float(self.row[name])

    def with_pool(self) -> ServerOptions:
        """The options with the run's own pool."""
        return replace(self.options, kv_pool_bytes=int(self.measured("kv_cache_memory_gib") * GIB))


def run_cases(path: Path) -> list[RunCase]:
    """All rows of vllm_h100_runs.csv whose model is known."""
    shapes = models()
    with path.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["status"] == "ok" and row["model"] in shapes]
    return [_run_case(row) for row in rows]


def _run_case(row: dict[str, str]) -> RunCase:
    stored = {"compressed-tensors": "fp8", "fp8": "fp8", "gptq_marlin": "int4"}.get(row["quantization"], "bf16")
    stored = "fp32" if "float32" in row["dtype"] else stored
    cache = "fp8" if row["kv_cache_dtype"] == "fp8" else "fp32" if stored == "fp32" else "bf16"
    study = Study(
        model=models()[row["model"]],
        device=find_device("h100-sxm"),
        context=int(row["max_model_len"]),
        weight_format=FORMATS[stored],
        kv_format=FORMATS[cache],
        policy=Policy.REPLICATED,
    )
    options = ServerOptions(
        version="0.19.0",
        tp=int(row["tp"]),
        pp=int(row["pp"]),
        gpu_memory_utilization=Fraction(row["gpu_memory_utilization"]),
        facts=facts().get(row["model"], ModelFacts()),
    )
    return RunCase(id=row["log_file"].removesuffix(".log"), study=study, options=options, row=row)
