"""How exact kvscope is on real models and servers, and its rivals on the same files: writes docs/accuracy.md.

    python bench/accuracy.py [--data ../shared/data] [--rivals PYTHON] [--output docs/accuracy.md]

`--rivals` is the interpreter of a virtual environment with the rivals from PyPI (vramscout, vramcalc,
llm-mem-planner, hf-mem, ridgepoint). They run offline; one that cannot answer from a file counts as refusing.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.server_logs import LogCase, RunCase, run_cases, startup_cases  # noqa: E402
from calc.errors import CalcError  # noqa: E402
from calc.model.cache import request_term  # noqa: E402
from calc.model.count import parameters  # noqa: E402
from calc.model.storage import FORMATS  # noqa: E402
from calc.servers.facts import facts_of  # noqa: E402
from calc.servers.records import ServerReport  # noqa: E402
from calc.servers.report import server_report  # noqa: E402
from calc.servers.vllm_budget import SAMPLER_WORDS  # noqa: E402
from calc.sources import load_model  # noqa: E402

GIB = 2**30
CONTEXT = 8192
EXACT = 1e-6
Answer = float | None


@dataclass(slots=True)
class Tally:
    """Answers of one kind against what is true."""

    exact: int = 0
    close: int = 0
    wrong: int = 0
    refused: int = 0
    errors: list[float] = field(default_factory=list)

    def add(self, answer: Answer, truth: float, *, exact: float = EXACT, close: float = 0.01) -> None:
        """Count one; an answer within `exact` is exact, within `close` close."""
        if answer is None:
            self.refused += 1
            return
        error = abs(answer / truth - 1) if truth else float(bool(answer))
        self.errors.append(error)
        if error <= exact:
            self.exact += 1
        elif error <= close:
            self.close += 1
        else:
            self.wrong += 1

    @property
    def answered(self) -> int:
        """How many were answered."""
        return self.exact + self.close + self.wrong

    def cells(self) -> list[str]:
        """Cells of a table row."""
        worst = f"{100 * max(self.errors):.3g} %" if self.errors else "–"
        numbers = (self.answered, self.exact, self.close, self.wrong, self.refused)
        return [*map(str, numbers), worst]


HEAD = ["answered", "exact", "within 1 %", "wrong", "refused", "worst"]


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table, all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Configs: parameters and cache


@dataclass(frozen=True, slots=True)
class Config:
    """A published config with its counts."""

    path: Path
    total: int
    cache_bytes: int


def configs(data: Path) -> list[Config]:
    """Rows of oracle.csv: parameters, and cache bytes of a request of CONTEXT tokens at 2 bytes."""
    out = []
    with (data / "oracle.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            name = "kv_elements_per_token_full_attention_layers"
            if row["model_type"] == "falcon":  # transformers repeats its heads; servers do not
                name = "kv_formula_elements_per_token"
            window = int(row["window"] or 0)
            kept = int(row[name]) * CONTEXT
            kept += int(row["kv_elements_per_token_sliding_layers"]) * min(CONTEXT, window or CONTEXT)
            out.append(Config(data / "configs" / row["file"], int(row["total_params"]), 2 * kept))
    return out


Pair = tuple[Answer, Answer]


def kvscope_config(path: Path) -> Pair:
    """Our parameters and cache bytes of a config."""
    try:
        model = load_model(str(path))
        return parameters(model).total, float(request_term(model, FORMATS["bf16"], CONTEXT).value)
    except CalcError:
        return None, None


# Rivals, each in a process of its own


@dataclass(frozen=True, slots=True)
class Rival:
    """How a rival is asked. `config` gives parameters and cache bytes, `run` the pool (GiB) and concurrency."""

    name: str
    config: Callable[[Path, Path], Pair]
    note: str
    run: Callable[[Path, Path, RunCase], Pair] | None = None


def _output(command: list[str]) -> str | None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in (0, 1) else None


def _json(command: list[str]) -> Any:
    try:
        return json.loads(_output(command) or "")
    except ValueError:
        return None


def _vramscout_raw(python: Path, path: Path, *more: str) -> Any:
    words = ["--json", "--dtype", "bf16", "--kv-dtype", "bf16", "--engine", "vllm", *more]
    found = _json([str(python.parent / "vramscout"), str(path), *words])
    return found if isinstance(found, dict) and "parts_gib" in found else None


def _vramscout(python: Path, path: Path) -> Pair:
    found = _vramscout_raw(python, path, "--vram-gib", "100000", "--context", str(CONTEXT))
    if found is None:
        return None, None
    cache = sum(v for k, v in found["parts_gib"].items() if "cache" in k.lower())
    return found["profile"]["num_params"], round(cache * GIB) if found["context"] == CONTEXT else None


def _vramscout_run(python: Path, path: Path, case: RunCase) -> Pair:
    words = ["--vram-gib", "79.19", "--gpu-memory-utilization", "0.95", "--context", str(case.study.context)]
    found = _vramscout_raw(python, path, *words, "--tp", str(case.options.tp))
    if found is None:
        return None, None
    parts = found["parts_gib"]
    cache = sum(v for k, v in parts.items() if "cache" in k.lower())
    pool = found["memory_budget_gib"] - sum(v for k, v in parts.items() if "cache" not in k.lower())
    return pool, pool / cache if cache else None


def _vramcalc(python: Path, path: Path) -> Pair:
    command = [str(python.parent / "vramcalc"), "estimate", str(path), "--json", "--dtype", "bf16"]
    found = _json([*command, "--seq", str(CONTEXT), "--batch", "1"])
    return (None, None) if found is None else (found["estimate"]["weights"] / 2, found["estimate"]["kv_cache"])


def _planner(python: Path, path: Path) -> Pair:
    text = _output([str(python.parent / "llm-mem"), "--config", str(path), "--seq-len", str(CONTEXT), "--batch", "1"])
    total = re.search(r"^TOTAL:\s+([\d.]+)B params", text or "", re.M)
    cache = re.search(r"kv_unique=([\d.]+) GiB", text or "")
    return (float(total[1]) * 1e9 if total else None), (float(cache[1]) * GIB if cache else None)


HF_MEM = """
import json, sys
from hf_mem.safetensors.kv_cache import compute_safetensors_kv_cache_size as size
config = json.load(open(sys.argv[1]))
config = config.get("text_config", config)
print(size(config, "BF16", int(sys.argv[2])))
"""


def _hf_mem(python: Path, path: Path) -> Pair:
    text = _output([str(python), "-c", HF_MEM, str(path), str(CONTEXT)])
    return None, float(text) if text and text.strip() else None


RIVALS = (
    Rival("vramscout", _vramscout, "", _vramscout_run),
    Rival("vramcalc", _vramcalc, "parameters are its weights at 2 bytes"),
    Rival("llm-mem-planner", _planner, "latent attention only; printed to three decimals"),
    Rival("hf-mem", _hf_mem, "asks the Hub: its cache formula was called with the config"),
    Rival("ridgepoint", lambda python, path: (None, None), "asks the Hub, nothing from a file"),
)


def installed(python: Path, name: str) -> str | None:
    """The version of a package there, None where it is not."""
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    text = _output([str(python), "-c", code])
    return text.strip() if text and text.strip() else None


# Logs and runs


def log_tallies(cases: list[LogCase]) -> dict[str, Tally]:
    """Tokens (0.1 %) and concurrency (0.5 %) of start-up logs, the pool given."""
    tallies = {"tokens": Tally(), "concurrency": Tally()}
    for case in cases:
        report = None if case.problem or case.study is None else server_report(case.study, case.options)
        if case.tokens is not None:
            allowed = max(0.001, case.rounding)
            tallies["tokens"].add(report.kv_tokens if report else None, case.tokens, exact=allowed)
        if case.concurrency is not None:
            allowed = max(0.005, 0.005 / case.concurrency)
            tallies["concurrency"].add(
                report.max_concurrency if report else None, case.concurrency, exact=allowed, close=0.01
            )
    return tallies


def given_pool(cases: list[RunCase]) -> Tally:
    """Tokens of runs with their pool; a pipeline's is the first stage's, the tokens are the last's."""
    tally = Tally()
    for case in cases:
        if case.options.pp == 1:
            report = server_report(case.study, case.with_pool())
            tally.add(report.kv_tokens, case.measured("kv_cache_tokens"), exact=0.001)
    return tally


PARTS = {
    "weights": ("weight_bytes_per_gpu", "weight_memory_gib", GIB),
    "activation": ("activation_bytes", "activation_memory_gib", GIB),
    "outside PyTorch": ("non_torch_bytes", "non_torch_forward_gib", GIB),
    "CUDA graphs": ("cuda_graph_bytes", "cuda_graph_actual_gib", GIB),
    "pool, in tokens": ("kv_tokens", "kv_cache_tokens", 1),
    "concurrency": ("max_concurrency", "max_concurrency", 1),
}
BY_FIRST_STAGE = ("activation", "outside PyTorch", "CUDA graphs")


def run_errors(cases: list[RunCase], ask: Callable[[RunCase], ServerReport | None]) -> dict[str, list[float]]:
    """Signed relative errors of every part; what a log prints of the first stage only is left out beyond PP 1."""
    errors: dict[str, list[float]] = {name: [] for name in PARTS}
    for case in cases:
        report = ask(case)
        if report is None:
            continue
        for name, (ours, column, unit) in PARTS.items():
            if case.options.pp == 1 or name not in BY_FIRST_STAGE:
                errors[name].append(getattr(report, ours) / unit / case.measured(column) - 1)
    return errors


def error_rows(errors: dict[str, list[float]]) -> list[list[str]]:
    """Mean and largest error of every part."""
    return [
        [name, str(len(e)), f"{100 * statistics.fmean(map(abs, e)):.2f} %", f"{100 * max(map(abs, e)):.2f} %"]
        for name, e in errors.items()
        if e
    ]


def distinct(cases: list[RunCase]) -> list[RunCase]:
    """Runs that differ in what the activations depend on."""
    seen: dict[tuple[object, ...], RunCase] = {}
    for case in cases:
        key = (case.study.model.name, case.options.tp, case.options.pp, case.study.weight_format.bytes_per_element >= 4)
        seen.setdefault(key, case)
    return list(seen.values())


def fitted_words(cases: list[RunCase]) -> float:
    """The sampler's float32 copies that a run's activation leaves, as the median over `cases`."""
    words = []
    for case in cases:
        if case.options.pp > 1:
            continue
        report = server_report(case.study, case.options)
        measured = case.measured("activation_memory_gib") * GIB
        copy = 4 * 1024 * case.study.model.vocab_size
        words.append(SAMPLER_WORDS + (measured - report.activation_bytes) / copy)
    return statistics.median(words)


CONFIG_OF = {
    "google/gemma-2-2b-it": "google__gemma-2-2b.json",
    "google/gemma-2-9b-it": "google__gemma-2-9b.json",
    "google/gemma-3-12b-it": "google__gemma-3-12b-it.json",
    "google/gemma-3-4b-it": "google__gemma-3-4b-it.json",
    "google/gemma-7b": "google__gemma-7b.json",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "meta-llama__Llama-4-Scout-17B-16E-Instruct.json",
    "Qwen/Qwen3-30B-A3B": "Qwen__Qwen3-30B-A3B.json",
}


def from_file(case: RunCase, path: Path) -> ServerReport | None:
    """Our report of a run from the model's config.json itself, as the command line reads it."""
    try:
        model = load_model(str(path))
        options = replace(case.options, facts=facts_of(str(path), model.name))
        return server_report(replace(case.study, model=model), options)
    except CalcError:
        return None


def file_pairs(data: Path, runs: list[RunCase]) -> list[tuple[RunCase, Path]]:
    """Runs whose model's config.json is among the collected ones."""
    return [(case, data / "configs" / CONFIG_OF[case.row["model"]]) for case in runs if case.row["model"] in CONFIG_OF]


# The document


def config_rows(found: list[Config], python: Path | None) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of both tables over configs: parameters and cache."""
    asked: list[tuple[str, Callable[[Path], Pair]]] = [("**kvscope**", kvscope_config)]
    for rival in RIVALS if python else ():
        version = installed(python, rival.name) if python else None
        if version and python:
            asked.append((f"{rival.name} {version}", lambda path, r=rival, p=python: r.config(p, path)))  # type: ignore[misc]
    totals, caches = [], []
    for name, ask in asked:
        total, cache = Tally(), Tally()
        for config in found:
            parameter_answer, cache_answer = ask(config.path)
            total.add(parameter_answer, config.total)
            cache.add(cache_answer, config.cache_bytes)
        totals.append([name, *total.cells()])
        caches.append([name, *cache.cells()])
    return totals, caches


def rival_runs(pairs: list[tuple[RunCase, Path]], python: Path | None) -> list[list[str]]:
    """Pool and concurrency of runs from a config.json: ours and of rivals that answer at all."""
    rows = []
    ours: list[tuple[ServerReport, RunCase]] = [(r, case) for case, path in pairs if (r := from_file(case, path))]
    pool = [abs(r.kv_pool_bytes / GIB / case.measured("kv_cache_memory_gib") - 1) for r, case in ours]
    requests = [abs(r.max_concurrency / case.measured("max_concurrency") - 1) for r, case in ours]
    rows.append(["**kvscope**", *_means(pool, requests)])
    for rival in RIVALS if python else ():
        if rival.run is None or python is None or not installed(python, rival.name):
            continue
        pool, requests = [], []
        for case, path in pairs:
            a, b = rival.run(python, path, case)
            if a is not None and b is not None:
                pool.append(abs(a / case.measured("kv_cache_memory_gib") - 1))
                requests.append(abs(b / case.measured("max_concurrency") - 1))
        rows.append([rival.name, *_means(pool, requests)])
    return rows


def _means(pool: list[float], requests: list[float]) -> list[str]:
    if not pool:
        return ["0", "–", "–"]
    means = [f"{100 * statistics.fmean(e):.2f} %" for e in (pool, requests)]
    return [str(len(pool)), *means]


def document(data: Path, python: Path | None) -> str:
    """All of docs/accuracy.md."""
    found, logs, runs = (
        configs(data),
        startup_cases(data / "server_startup.csv"),
        run_cases(data / "vllm_h100_runs.csv"),
    )
    totals, caches = config_rows(found, python)
    log_rows = [[name, *tally.cells()] for name, tally in log_tallies(logs).items()]
    log_rows.append(["tokens of vLLM 0.19 runs", *given_pool(runs).cells()])
    alone = run_errors(runs, lambda case: server_report(case.study, case.options))
    one_each = distinct(runs)
    held_out = run_errors(one_each[1::2], lambda case: server_report(case.study, case.options))
    notes = [f"{rival.name}: {rival.note}." for rival in RIVALS if rival.note and python]
    skipped = [f"{case.id}: {case.problem}." for case in logs if case.problem]
    return f"""# Accuracy

Made by `python bench/accuracy.py --rivals PYTHON`; not edited by hand. Data: {len(found)} published configs with counts
from transformers' classes on the meta device, {len(logs)} start-up logs of vLLM and SGLang, {len(runs)} runs of
vLLM 0.19 on an H100 of 79.19 GiB with every part of memory.

## Parameters of {len(found)} configs

{table(["tool", *HEAD], totals)}

## Cache of a request of {CONTEXT:,} tokens, 2 bytes, windows capped

{table(["tool", *HEAD], caches)}

{chr(10).join(f"- {note}" for note in notes)}

## What a server's log says, its pool given

Exact: tokens within 0.1 %, concurrency within 0.5 %, or within what the pool's two decimals allow where that is more.

{table(["", *HEAD], log_rows)}

Not held against a pool:
{chr(10).join(f"- {line}" for line in skipped)}

## From config and device alone: all {len(runs)} runs

{table(["part", "rows", "mean error", "largest"], error_rows(alone))}

A pipeline's activations, memory outside PyTorch and graphs are left out: the log has the first stage's, the last binds.
CUDA graphs are captured outside the budget in 0.19 and do not touch the pool.

The sampler's constant is {SAMPLER_WORDS} float32 copies of the logits. A fit to every second of the {len(one_each)}
distinct runs alone gives {fitted_words(one_each[::2]):.2f}; the others, which that fit has not seen:

{table(["part", "rows", "mean error", "largest"], error_rows(held_out))}

The constants for memory outside PyTorch and for graphs were read off all runs. Versions before 0.17 and after 0.20, and
devices below 70 GiB, rest on single logs: their bands are a third of the activation either way.

## The same from the model's own config.json, and rivals that answer

{table(["tool", "rows", "pool, mean error", "concurrency, mean error"], rival_runs(file_pairs(data, runs), python))}
"""


def main() -> int:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "accuracy.md")
    args = parser.parse_args()
    if not (args.data / "oracle.csv").exists():
        print(f"{args.data}: no oracle.csv there: give the folder of the data with --data", file=sys.stderr)
        return 2
    args.output.write_text(document(args.data, args.rivals), encoding="utf-8")
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
