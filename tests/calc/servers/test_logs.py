"""Start-up logs of real servers: the pool given, blocks, tokens and concurrency are the log's."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.server_logs import LogCase, RunCase, run_cases, startup_cases
from calc.servers.report import server_report

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
STARTUP, RUNS = SHARED / "server_startup.csv", SHARED / "vllm_h100_runs.csv"
GIB = 2**30


def _startup() -> list[LogCase]:
    return startup_cases(STARTUP) if STARTUP.exists() else []


def _runs() -> list[RunCase]:
    return run_cases(RUNS) if RUNS.exists() else []


@pytest.mark.parametrize("case", _startup(), ids=lambda case: case.id)
def test_startup_log(case: LogCase) -> None:
    if case.problem or case.study is None:
        pytest.skip(case.problem)
    report = server_report(case.study, case.options)
    # A pool of 2 GiB printed with two decimals is itself known to 0.2 % only.
    if case.tokens is not None:
        assert report.kv_tokens == pytest.approx(case.tokens, rel=max(0.001, case.rounding))
    if case.concurrency is not None:
        printed = 0.005 / case.concurrency
        assert report.max_concurrency == pytest.approx(case.concurrency, rel=max(0.005, printed))


@pytest.mark.parametrize("case", _runs(), ids=lambda case: case.id)
def test_run_with_its_pool(case: RunCase) -> None:
    if case.options.pp > 1:
        pytest.skip("the pool printed is the first stage's, the tokens are the last's")
    report = server_report(case.study, case.with_pool())
    assert report.kv_tokens == pytest.approx(case.measured("kv_cache_tokens"), rel=0.001)
    assert report.kv_blocks == pytest.approx(case.measured("kv_cache_blocks"), rel=0.001)
    assert report.max_concurrency == pytest.approx(case.measured("max_concurrency"), rel=0.005)


@pytest.mark.parametrize("case", _runs(), ids=lambda case: case.id)
def test_run_from_config_and_device_alone(case: RunCase) -> None:
    report = server_report(case.study, case.options)
    assert report.weight_bytes_per_gpu / GIB == pytest.approx(case.measured("weight_memory_gib"), rel=0.005)
    assert report.kv_tokens == pytest.approx(case.measured("kv_cache_tokens"), rel=0.005)
    assert report.max_concurrency == pytest.approx(case.measured("max_concurrency"), rel=0.005)
    low, high = report.bands["cuda_graph_bytes"]
    assert low <= case.measured("cuda_graph_actual_gib") * GIB <= high
    if case.options.pp == 1:  # else the log prints the first stage's, and the last one binds
        assert report.activation_bytes / GIB == pytest.approx(case.measured("activation_memory_gib"), rel=0.015)
        low, high = report.bands["non_torch_bytes"]
        assert low <= case.measured("non_torch_forward_gib") * GIB <= high
