"""Servers for docs/accuracy.md: start-up logs and runs, compared with kvscope's and other predictions."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.rivals import Pair, Rival, ask
from bench.server_logs import LogCase, RunCase
from bench.tally import Tally
from calc.errors import CalcError
from calc.servers.facts import facts_of
from calc.servers.records import ServerReport
from calc.servers.report import server_report
from calc.servers.vllm_budget import SAMPLER_WORDS
from calc.sources import load_model

GIB = 2**30
POOL_EXACT = 1e-3


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


def banded(cases: list[RunCase]) -> list[list[str]]:
    """How often the stated band of a part holds what was measured; a value without a band is not counted."""
    held: dict[str, list[bool]] = {}
    for case in cases:
        report = server_report(case.study, case.options)
        for name, (ours, column, unit) in {**PARTS, "pool": ("kv_pool_bytes", "kv_cache_memory_gib", GIB)}.items():
            if ours in report.bands and (case.options.pp == 1 or name not in BY_FIRST_STAGE):
                low, high = report.bands[ours]
                held.setdefault(name, []).append(low <= case.measured(column) * unit <= high)
    return [[name, str(len(found)), f"{sum(found)}"] for name, found in held.items()]


def pools(pairs: list[tuple[RunCase, Path]], python: Path | None, rival: Rival | None) -> tuple[Tally, Tally]:
    """Pool and concurrency from a config.json: kvscope's without a rival."""
    if rival is None:
        reports = [from_file(case, path) for case, path in pairs]
        found: list[Pair] = [(r.kv_pool_bytes / GIB, r.max_concurrency) if r else (None, None) for r in reports]
    else:
        asks = [
            {"kind": "run", "path": str(path), "context": case.study.context, "tp": case.options.tp}
            for case, path in pairs
        ]
        found = ask(python, rival.name, asks) if python else []
    pool, requests = Tally(), Tally()
    for (case, _), (a, b) in zip(pairs, found, strict=True):
        pool.add(a, case.measured("kv_cache_memory_gib"), exact=POOL_EXACT)
        requests.add(b, case.measured("max_concurrency"), exact=5 * POOL_EXACT)
    return pool, requests
