"""Plans within limits: the largest batch is the last that keeps them, the fewest devices serve the rate."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from calc.__main__ import main
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model
from calc.speed.asked import Asked, Load
from calc.speed.estimate import estimate
from calc.speed.plans import fewest, keeps, largest_plan, plans_by_device, plans_by_tp
from calc.speed.room import room_of

LIMITS = {"ttft": 1.0, "tpot": 0.02}
ASKED = Asked(prompt_tokens=1024, new_tokens=256)


def study(model: str = "llama-3-8b", device: str = "h100-sxm") -> Study:
    return Study(model=find_model(model), device=find_device(device), policy=Policy.REPLICATED)


def test_one_client_more_breaks_a_limit() -> None:
    plan = largest_plan(study(), ASKED, LIMITS)
    assert plan is not None
    room = room_of(study(), ASKED)
    for clients, kept in ((plan.batch, True), (plan.batch + 1, False)):
        answer = estimate(study(), replace(ASKED, load=Load.CLOSED, count=clients), room)
        assert keeps(answer, LIMITS) is kept


def test_no_plan_where_one_request_alone_is_too_slow() -> None:
    assert largest_plan(study(), ASKED, {"tpot": 0.001}) is None


def test_the_fewest_devices_serve_the_rate_and_no_plan_needs_fewer() -> None:
    plans = plans_by_tp(study("llama-3.1-70b"), ASKED, {"tpot": 0.05}, most=8)
    best = fewest(plans, 20.0)
    assert best is not None
    assert best.replicas(20.0) * best.requests_per_s >= 20.0
    assert (best.replicas(20.0) - 1) * best.requests_per_s < 20.0
    assert best.devices(20.0) == min(plan.devices(20.0) for plan in plans)
    assert [plan.tp for plan in plans] == [2, 4, 8]  # one H100 does not hold it


def test_devices_that_cannot_are_left_out() -> None:
    devices = [find_device(name) for name in ("h100-sxm", "rtx-3060-12gb", "tpu-v6e", "apple-m2-ultra")]
    assert [plan.device for plan in plans_by_device(study(), ASKED, LIMITS, devices)] == ["NVIDIA H100 SXM"]


def test_the_command_answers_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "llama-3.1-70b", "--device", "h100-sxm", "--limit", "tpot=50ms", "--rate", "20", "--json"]
    assert main(["solve", *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["answers"]) == {"batch", "tp", "devices", "device"}
    assert found["limits_s"] == {"tpot": 0.05}
    best = found["answers"]["devices"][0]
    assert best["devices"] == best["replicas"] * best["tp"]
    assert found["notes"][0].startswith("No batch meets the limits. Here no request")
    assert (
        found["notes"][1]
        == f"Use {best['devices']} x NVIDIA H100 SXM ({best['replicas']} x TP {best['tp']}): 20 requests per second."
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--find", "tp"), "--find tp needs latency limits"),
        (("--rate", "5"), "--rate needs latency limits"),
        (("--limit", "tpot=20ms", "--find", "context"), "--limit answers batch, tp, devices, device"),
        (("--limit", "tpot=20ms", "--find", "devices"), "add --rate in requests per second"),
        (("--limit", "tpot=20ms", "--rate", "0"), "a rate is a number per second, more than 0"),
        (
            ("--limit", "tpot=20ms", "--context", "32k", "--batch", "9"),
            "--context, --batch has no effect with --limit",
        ),
        (("--limit", "tpot=20ms", "--gpu-memory-utilization", "0.5"), "--gpu-memory-utilization has no effect"),
        (("--new-tokens", "5"), "--new-tokens needs latency limits"),
        (("--limit", "tpot=20ms", "--policy", "replicated"), "--limit needs an engine"),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--device", "h100-sxm", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
