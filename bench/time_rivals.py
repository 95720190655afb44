"""Calculators from PyPI compared with the public runs used for kvscope's estimates: the table of docs/estimates.md.

    python bench/time_rivals.py ROWS PYTHON [--configs ../shared/data/configs] [--most 60]

PYTHON has aiconfigurator, genz-llm, llm-analysis, ridgepoint and servcalc; they run offline and with their defaults.
Each is asked what it supports: dense models in 16 bits on NVIDIA for a static batch, or a closed loop. `--most` rows
are drawn for each with a fixed seed, fewer for aiconfigurator, which takes seconds per row.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.estimates import Compared, LeftOut, asked_of, compared, queued, study_of  # noqa: E402
from calc.errors import CalcError  # noqa: E402
from calc.speed.asked import Asked  # noqa: E402

WORKER = Path(__file__).with_name("time_worker.py")
TIMEOUT_S = 1200
Row = dict[str, str]
HEAD = """| tool | runs | asked | answered | error | 90 % | measured/said | kvscope's error | 90 % | measured/said |
|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Rival:
    """A package, what it is asked, and the fields of a question that it needs."""

    name: str
    metrics: tuple[str, ...]
    needs: tuple[str, ...]
    most: int | None = None
    single: bool = False
    batch_one: bool = False


RIVALS = (
    Rival("aiconfigurator", ("tpot_ms",), ("aiconfigurator", "aiconfigurator_gpu"), most=30),
    Rival("genz-llm", ("latency_s",), ("genz",)),
    Rival("llm-analysis", ("latency_s",), ("llm_analysis", "llm_analysis_gpu")),
    Rival("servcalc", ("latency_s", "tpot_ms"), ("config", "servcalc_gpu"), single=True),
    Rival("ridgepoint", ("latency_s",), ("ridgepoint", "ridgepoint_gpu"), single=True, batch_one=True),
)
GENZ = {
    "llama-2-7b": "llama2_7b",
    "llama-2-70b": "llama2_70b",
    "llama-3-8b": "llama3_8b",
    "llama-3-70b": "llama3_70b",
    "mistral-7b-v0.1": "mistral_7b",
}
LLM_ANALYSIS = {
    "llama-2-7b": "NousResearch_Llama-2-7b-hf",
    "llama-2-70b": "upstage_Llama-2-70b-instruct-v2",
    "opt-6.7b": "facebook_opt-6.7b",
}
LLM_ANALYSIS_GPUS = {"A100 SXM 40GB": "a100-sxm-40gb", "A100 SXM 80GB": "a100-sxm-80gb", "H100 SXM": "h100-sxm-80gb"}
SERVCALC_GPUS = {
    "A100 SXM 40GB": "A100 40GB",
    "A100 SXM 80GB": "A100 80GB",
    "H100 SXM": "H100 80GB",
    "H200 SXM": "H200",
}
CONFIGS = {
    "llama-2-7b": "meta-llama__Llama-2-7b-hf.json",
    "llama-3-8b": "meta-llama__Meta-Llama-3-8B.json",
    "llama-3.1-8b": "meta-llama__Meta-Llama-3-8B.json",
    "qwen2-7b": "Qwen__Qwen2-7B.json",
    "mistral-7b-v0.1": "mistralai__Mistral-7B-v0.3.json",
    "qwen3-32b": "Qwen__Qwen3-32B.json",
}
RIDGEPOINT = {"llama-2-7b": "llama-2-7b", "llama-3-8b": "llama-3-8b", "mistral-7b-v0.1": "mistral-7b"}
RIDGEPOINT_GPUS = {"A100 SXM 40GB": "a100-40gb:1", "A100 SXM 80GB": "a100-80gb:1", "H100 SXM": "h100-80gb:1"}
AICONFIGURATOR = {
    ("qwen3-32b", "BF16"): "Qwen/Qwen3-32B",
    ("qwen3-32b", "FP8"): "Qwen/Qwen3-32B-FP8",
    ("llama-3.1-8b", "BF16"): "meta-llama/Meta-Llama-3.1-8B",
    ("deepseek-r1", "FP8"): "deepseek-ai/DeepSeek-R1",
    ("minimax-m2.5", "FP8"): "MiniMaxAI/MiniMax-M2.5",
    ("gpt-oss-120b", "FP4"): "openai/gpt-oss-120b",
    ("glm-5", "FP8"): "zai-org/GLM-5-FP8",
}
AICONFIGURATOR_GPUS = {"H100 SXM": "h100_sxm", "H200 SXM": "h200_sxm", "B200 SXM": "b200_sxm", "B300 SXM": "b300_sxm"}


def question(row: Row, asked: Asked, configs: Path) -> dict[str, Any]:
    """The run as tools are asked for it; a field is None where the tool does not know the model or the device."""
    device, model, gpu = study_of(row, asked).device, row["catalog_model"], row["gpu"]
    config = configs / CONFIGS[model] if model in CONFIGS else None
    wide = row["precision"] in ("BF16", "FP16")
    return {
        "metric": row["metric"], "batch": asked.count or 1, "isl": asked.prompt_tokens, "osl": asked.new_tokens,
        "tp": asked.tp, "dp": asked.dp_attention, "ep": asked.ep, "engine": asked.engine,
        "peak": device.peak_flops_per_s["bf16"], "bandwidth": device.bandwidth_bytes_per_s,
        "memory": device.memory_bytes, "link": device.interconnect_bytes_per_s or 64e9,
        "genz": GENZ.get(model) if wide else None,
        "llm_analysis": LLM_ANALYSIS.get(model) if wide else None, "llm_analysis_gpu": LLM_ANALYSIS_GPUS.get(gpu),
        "config": str(config) if config and config.exists() and wide else None, "servcalc_gpu": SERVCALC_GPUS.get(gpu),
        "ridgepoint": RIDGEPOINT.get(model) if wide else None, "ridgepoint_gpu": RIDGEPOINT_GPUS.get(gpu),
        "aiconfigurator": AICONFIGURATOR.get((model, row["precision"])),
        "aiconfigurator_gpu": AICONFIGURATOR_GPUS.get(gpu),
    }  # fmt: skip


def known(path: Path, configs: Path) -> Iterator[tuple[dict[str, Any], Compared]]:
    """Questions with kvscope's own comparison: static batches and closed loops on NVIDIA."""
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    waited = queued(rows)
    for row in rows:
        if row["source"] in waited or row["metric"] not in ("latency_s", "tpot_ms") or row["kind"] == "batch1":
            continue
        try:
            ours = compared(row)
        except (LeftOut, CalcError):
            continue
        if ours.group[2].startswith("NVIDIA,"):
            yield question(row, asked_of(row), configs), ours


def takes(rival: Rival, ask: dict[str, Any]) -> bool:
    """Whether the tool is asked this."""
    alone = ask["tp"] == 1 or not rival.single
    one = ask["batch"] == 1 or not rival.batch_one
    return ask["metric"] in rival.metrics and alone and one and all(ask[name] is not None for name in rival.needs)


def answers(python: Path, rival: Rival, asks: list[dict[str, Any]]) -> list[float | None]:
    """Seconds; all None where the tool does not come back."""
    words = [str(python), str(WORKER), rival.name]
    try:
        done = subprocess.run(
            words, input=json.dumps(asks), capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
        found: list[float | None] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return [None] * len(asks)
    return found


def cells(errors: list[float]) -> str:
    """Median and 90th percentile of |measured / said - 1|, and the bias as a factor."""
    off = sorted(abs(exp(one) - 1) for one in errors)
    return (
        f"{statistics.median(off):.0%} | {off[int(0.9 * (len(off) - 1))]:.0%} | x {exp(statistics.median(errors)):.2f}"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("python", type=Path)
    parser.add_argument("--configs", type=Path, default=ROOT.parent / "shared" / "data" / "configs")
    parser.add_argument("--most", type=int, default=60)
    args = parser.parse_args()
    pairs = list(known(args.rows, args.configs))
    print(HEAD)
    for rival in RIVALS:
        for metric in rival.metrics:
            able = [(ask, ours) for ask, ours in pairs if ask["metric"] == metric and takes(rival, ask)]
            drawn = random.Random(0).sample(able, min(len(able), rival.most or args.most))
            said = answers(args.python, rival, [ask for ask, _ in drawn])
            both = [(log(ours.measured / one), ours.error) for (_, ours), one in zip(drawn, said, strict=True) if one]
            what = {"latency_s": "static batch, latency", "tpot_ms": "closed loop, TPOT"}[metric]
            if both:
                theirs, mine = (cells([pair[i] for pair in both]) for i in (0, 1))
                print(f"| {rival.name} | {what} | {len(drawn)} | {len(both)} | {theirs} | {mine} |", flush=True)
            else:
                print(f"| {rival.name} | {what} | {len(drawn)} | 0 | | | | | | |", flush=True)


if __name__ == "__main__":
    main()
