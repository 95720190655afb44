"""The command: its document, its tables, what it refuses, and what it warns of."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calc.__main__ import main
from calc.speed.bands import known_bands

QUICK = ("--device", "h100-sxm", "--requests", "150")


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["simulate", *words, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["simulate", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_the_document_of_one_rate(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, *QUICK, "--rate", "5", "--limit", "ttft=500ms,tpot=50ms")
    assert answer["command"] == "simulate"
    assert answer["server"] == {
        "max_num_batched_tokens": 8192, "max_num_seqs": 1024, "kv_blocks": 27735, "block_size": 16,
        "prefix_caching": True,
    }  # fmt: skip
    assert answer["load"]["kind"] == "poisson"
    assert answer["load"]["prompt_tokens"] == {"mean": 1024, "min": 1024, "max": 1024}
    (run,) = answer["runs"]
    assert run["utilization"] == pytest.approx(5 / answer["full_load_requests_per_s"])
    assert run["stable"] is True
    assert run["keeps_limits"] is True
    assert run["goodput_share"] == 1.0
    assert 0.0243 < run["ttft_s"]["p50"] < run["ttft_s"]["p99"] < run["ttft_s"]["max"] < 0.5
    assert run["output_tokens"] == 150 * 256
    assert run["computed_tokens"] == 150 * (1024 + 255)
    low, high = run["band"]["low"], run["band"]["high"]
    band = known_bands()["closed"]
    assert (low["step_factor"], high["step_factor"]) == (band.low, band.high)
    assert low["ttft_s"]["p50"] < run["ttft_s"]["p50"] < high["ttft_s"]["p50"]
    assert {len(values) for values in run["over_time"].values()} == {120}


def test_rates_above_the_full_load_are_unstable_and_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, *QUICK, "--rate", "5,60", "--arrivals", "constant")
    assert [run["stable"] for run in answer["runs"]] == [True, False]
    assert answer["notes"][0].startswith("Unstable: 60 requests per second are more than the ")
    assert answer["notes"][0].count("never drains") == 1


def test_without_a_rate_four_shares_of_the_full_load_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, *QUICK)
    assert [run["utilization"] for run in answer["runs"]] == pytest.approx([0.2, 0.5, 0.8, 0.95])


def test_the_same_seed_prints_the_same_document(capsys: pytest.CaptureFixture[str]) -> None:
    words = (*QUICK, "--rate", "8", "--new-tokens", "exponential:100", "--prefix-hit", "0.5", "--prefixes", "3")
    assert document(capsys, *words, "--seed", "4") == document(capsys, *words, "--seed", "4")
    assert document(capsys, *words, "--seed", "4") != document(capsys, *words, "--seed", "5")


def test_users_in_a_closed_loop(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, *QUICK, "--concurrency", "1..4", "--think", "1s")
    assert [run["users"] for run in answer["runs"]] == [1, 2, 4]
    assert answer["load"]["kind"] == "closed"
    one = answer["runs"][0]
    assert one["requests_per_s"] == pytest.approx(1 / (1 + one["e2e_s"]["mean"]), rel=0.02)
    assert [run["band"] for run in answer["runs"]] == [None] * 3


def test_the_most_that_keeps_limits(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, *QUICK, "--find", "rate", "--limit", "ttft=200ms,tpot=12ms")
    assert found["found"]["find"] == "rate"
    assert found["runs"][0]["rate"] == found["found"]["value"]
    assert [run["keeps_limits"] for run in found["runs"]] == [True, False]
    assert found["found"]["breaks_above"] == ["tpot"]
    users = document(capsys, *QUICK, "--find", "users", "--limit", "tpot=12ms")["found"]
    assert users["above"] == users["value"] + 1
    assert document(capsys, *QUICK, "--find", "rate", "--limit", "ttft=1ms")["found"]["value"] is None


def test_a_trace_comes_at_its_own_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,new_tokens\n" + "".join(f"{i},500,20\n" for i in range(120)))
    answer = document(capsys, "--device", "h100-sxm", "--trace", str(path))
    (run,) = answer["runs"]
    assert answer["load"]["kind"] == "trace"
    assert run["rate"] == pytest.approx(1.0)
    assert run["window_s"] == pytest.approx(119.2, abs=0.2)


def test_a_server_that_does_not_start_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    answer = document(capsys, "--model", "llama-3-70b", "--device", "h100-sxm", "--rate", "1")
    assert answer["fits"] is False
    assert answer["runs"] == []
    assert "fits beside the weights" in answer["notes"][0]
    apple = document(capsys, "--device", "m2-ultra", "--rate", "1")
    assert apple["fits"] is False
    assert "vllm does not run on Apple" in apple["notes"][0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--rate", "1", "--concurrency", "2"), "--rate is an open loop and --concurrency a closed loop"),
        (("--find", "rate"), "--find rate needs --limit"),
        (
            ("--find", "rate", "--limit", "ttft=1s", "--rate", "1"),
            "--find rate searches for the load: leave out --rate",
        ),
        (("--find", "rate", "--limit", "ttft=1s", "--requests", "50"), "percentile 99 needs at least 100 requests"),
        (("--rate", "1", "--think", "1s"), "--think needs users"),
        (("--concurrency", "1", "--arrivals", "constant"), "--arrivals needs an open loop"),
        (("--rate", "1", "--percentile", "90"), "--percentile needs --limit"),
        (("--trace", "x", "--seed", "1"), "--seed cannot be combined with --trace"),
        (("--rate", "1", "--prefixes", "2"), "--prefixes needs --prefix-hit"),
        (
            ("--rate", "1", "--prefix-hit", "0.5", "--no-prefix-caching"),
            "--prefix-hit has no effect with --no-prefix-caching",
        ),
        (("--rate", "1", "--trace", "x"), "--rate cannot be combined with --trace"),
        (("--rate", "0"), "a rate is a number per second, more than 0"),
        (("--rate", "1", "--policy", "sglang"), "sglang has no scheduler here: use vllm"),
        (("--rate", "1", "--engine-version", "0.6.3"), "vLLM 0.6.3 has another scheduler: simulate follows V1"),
        (("--rate", "1", "--max-num-batched-tokens", "512"), "it is less than --max-num-seqs 1,024"),
        (("--rate", "1", "--model", "gemma-3-27b", "--prefix-hit", "0.5"), "for which prefixes are not simulated"),
        (("--rate", "1", "--requests", "1e6"), "must be at most 100,000"),
        (("--rate", "1", "--gpu-memory", "80GB"), "times need the bandwidth"),
    ],
)
def test_what_says_nothing_is_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    device = () if "--gpu-memory" in words else ("--device", "h100-sxm")
    assert said in refusal(capsys, *device, *words)


def test_text_markdown_and_csv(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *QUICK, "--rate", "5", "--limit", "ttft=500ms"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "llama-3-8b on one NVIDIA H100 SXM: 5 requests per second with 1,024 prompt tokens and 256 output tokens: "
    )
    for title in ("\nLoad\n", "\nTimes\n", "\nIn use\n", "\nBand of the times\n"):
        assert title in text
    assert main(["simulate", *QUICK, "--rate", "5", "--format", "csv"]) == 0
    heading, row = capsys.readouterr().out.split("\n")[:2]
    assert heading.startswith("Load (requests/s),Of full load,Requests/s (requests/s)")
    assert float(row.split(",")[0]) == 5.0
    assert main(["simulate", *QUICK, "--find", "users", "--limit", "tpot=12ms", "--format", "md"]) == 0
    assert "beyond that, TPOT is exceeded first." in capsys.readouterr().out.split("\n")[0]


def test_numpy_is_not_needed() -> None:
    words = ["simulate", "--device", "h100-sxm", "--requests", "20", "--rate", "5", "--json"]
    code = f"import sys; from calc.__main__ import main; main({words!r}); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_whole_experts_on_each_rank_change_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", "qwen3-30b-a3b", "--device", "h100-sxm", "--requests", "100", "--rate", "4", "--tp", "4")
    split, whole = document(capsys, *words), document(capsys, *words, "--ep", "4")
    assert (split["ep"], whole["ep"]) == (1, 4)
    assert split["server"] == whole["server"]
    assert split["runs"][0]["tpot_s"]["p50"] != whole["runs"][0]["tpot_s"]["p50"]


@pytest.mark.parametrize("option", ["pp", "dp-attention", "dcp", "speculate", "draft", "chunk"])
def test_what_is_not_simulated_is_refused_by_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, *QUICK, f"--{option}", "2")
    assert f"--{option}: " in said
    assert "unrecognized" not in said


def keys_of(value: object) -> Iterator[str]:
    """Every key of a document, at any depth; what a model is made of aside."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from () if key in ("model", "limits_s") else keys_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys_of(inner)


def test_the_page_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "simulate.md").read_text().partition("## As JSON")[2]
    named = set(re.findall(r"`([a-z0-9_]+)`", page.partition("## In the app")[0]))
    one = document(capsys, *QUICK, "--rate", "5", "--limit", "ttft=500ms")
    most = document(capsys, *QUICK, "--find", "users", "--limit", "tpot=30ms", "--think", "5s")
    said = set(keys_of(one)) | set(keys_of(most))
    assert said <= named
    assert named - said == {"poisson", "constant", "closed", "trace"}
