"""How public runs become questions: devices that share a model, clients that wait, what other tools are asked."""

from __future__ import annotations

from math import log

import pytest

from bench.estimates import queued, shared_by
from bench.time_rivals import RIVALS, cells, takes

INFERENCEX = "inferencex; moe_tp {moe_tp}; stated concurrency 8, batch a rank 8"


def run(**fields: str) -> dict[str, str]:
    return {"tp": "1", "pp": "1", "dp": "1", "ep": "1", "note": "", **fields}


@pytest.mark.parametrize(
    ("row", "shared"),
    [
        (run(tp="4"), (4, 1, 1, 1)),
        (run(dp="8", ep="8", note="DEP: attention data-parallel"), (8, 1, 8, 8)),
        (run(tp="64", ep="8", note=INFERENCEX.format(moe_tp=8)), (8, 1, 1, 8)),
        (run(tp="16", ep="4", note=INFERENCEX.format(moe_tp=4)), (4, 1, 1, 4)),
        (run(tp="4", ep="4", note=INFERENCEX.format(moe_tp=1)), (4, 1, 1, 4)),
        (run(tp="4", dp="4", ep="16", note=INFERENCEX.format(moe_tp=1)), (4, 1, 4, 4)),
        (run(dp="64", ep="8", note=INFERENCEX.format(moe_tp=8)), (8, 1, 8, 8)),
        (run(dp="4", note=INFERENCEX.format(moe_tp=4)), (4, 1, 4, 1)),
    ],
)
def test_degrees_that_share_devices_are_not_multiplied(row: dict[str, str], shared: tuple[int, ...]) -> None:
    """A node of InferenceX has 8 devices: --tp 8 --ep 8 is not 64 of them."""
    found = shared_by(row, "vllm")
    assert (found["tp"], found["pp"], found["dp_attention"], found["ep"]) == shared


def test_clients_that_wait_longer_than_they_are_served_are_queued() -> None:
    """100 tokens of 10 ms: a first token after 400 ms waited."""
    common = {"kind": "closed_loop", "osl": "100"}
    rows = [
        {**common, "source": source, "metric": metric, "value": value}
        for source, ttft in (("served", "200"), ("waited", "400"))
        for metric, value in (("ttft_ms", ttft), ("tpot_ms", "10"))
    ]
    assert queued(rows) == {"waited"}


def test_a_tool_is_asked_what_it_can_say() -> None:
    ask = dict.fromkeys(("genz", "llm_analysis", "config", "ridgepoint", "aiconfigurator"), "x")
    ask |= dict.fromkeys(("llm_analysis_gpu", "servcalc_gpu", "ridgepoint_gpu"), "x")
    runs = {"metric": "latency_s", "tp": 1, "batch": 4, "aiconfigurator_gpu": None}
    assert [rival.name for rival in RIVALS if takes(rival, ask | runs)] == ["genz-llm", "llm-analysis", "servcalc"]
    one = ask | runs | {"batch": 1, "tp": 2}
    assert [rival.name for rival in RIVALS if takes(rival, one)] == ["genz-llm", "llm-analysis"]


def test_errors_are_counted_as_shares_of_what_was_said() -> None:
    """Measured 1.1, 0.5 and 2 times what was said: off by 10, 50 and 100 %."""
    assert cells([log(1.1), log(0.5), log(2.0)]) == "50% | 50% | x 1.10"
