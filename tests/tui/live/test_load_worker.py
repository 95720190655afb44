"""The process that simulates beside the app: what it says, in which order, and that it says why it cannot."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tui.live.load_worker import SHARES, answers

QUICK = ("--device", "h100-sxm", "--requests", "120")


def test_the_server_comes_first_then_rate_by_rate_then_the_most() -> None:
    said = list(answers([*QUICK, "--limit", "ttft=500ms,tpot=12ms"]))
    assert [next(iter(one)) for one in said] == ["server", *["run"] * len(SHARES), "found", "run", "done"]
    full = said[0]["server"]["full_load_requests_per_s"]
    rates = [one["run"]["rate"] for one in said if "run" in one]
    assert rates[:-1] == pytest.approx([share * full for share in SHARES])
    assert rates[-1] == said[-3]["found"]["value"]
    assert said[-2]["run"]["keeps_limits"] is True
    assert said[-3]["found"]["breaks_above"] == ["tpot"]


def test_without_limits_nothing_is_looked_for() -> None:
    assert [next(iter(one)) for one in answers(QUICK)] == ["server", *["run"] * len(SHARES), "done"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "llama-3-70b", "--device", "h100-sxm"), "fits beside the weights"),
        (("--gpu-memory", "80GB"), "times need the bandwidth"),
        (("--device", "m2-ultra"), "vllm does not run on Apple"),
    ],
)
def test_what_cannot_be_simulated_is_one_sentence(words: tuple[str, ...], said: str) -> None:
    problems = [one["problem"] for one in answers(words) if "problem" in one]
    assert len(problems) == 1
    assert said in problems[0]


def test_it_is_a_process_of_json_lines_without_the_app() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--gpu-memory', '80GB']; from tui.live.load_worker import main; main(); "
        "sys.exit(any(name in sys.modules for name in ('textual', 'torch', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert [json.loads(line) for line in done.stdout.splitlines()][-1] == {"done": True}
