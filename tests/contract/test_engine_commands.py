"""generate, evaluate, kv-evaluate and benchmark against the command line's contract, with the real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.engine.reference import Reference

ROOT = Path(__file__).parents[2]
CASE_KEYS = {
    "case",
    "prompt_tokens",
    "passed",
    "max_abs_error",
    "cache_max_abs_error",
    "sequential_max_abs_error",
    "chunked_max_abs_error",
}
ROW_KEYS = {
    "prompt_tokens",
    "with_cache_s",
    "without_cache_s",
    "with_cache_min_s",
    "with_cache_max_s",
    "without_cache_min_s",
    "without_cache_max_s",
    "speedup",
    "prefill_s",
    "tpot_s",
    "kv_cache_bytes",
    "tpot_p50_s",
    "tpot_p95_s",
}

BATCH_ROW_KEYS = {
    "batch",
    "context_tokens",
    "step_p50_s",
    "step_min_s",
    "step_max_s",
    "tokens_per_s",
    "kv_cache_bytes",
    "weight_bytes",
    "rise",
    "tokens_per_s_predicted",
    "rise_predicted",
    "step_predicted_s",
    "ratio",
    "why",
}

pytestmark = pytest.mark.slow


def kvscope(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the headless command from the checkout."""
    command = [sys.executable, "-m", "tui", "--no-tui", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def answer(*words: str) -> dict[str, Any]:
    """The JSON document of a command that must succeed; stdout holds nothing else, stderr nothing at all."""
    done = kvscope(*words, "--json", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_evaluate_the_bundled_model() -> None:
    document = answer("evaluate")
    assert document.keys() >= {"command", "weights", "dtype", "atol", "passed", "cases"}
    assert (document["command"], document["dtype"], document["passed"]) == ("evaluate", "float64", True)
    assert len(document["cases"]) >= 5
    for case in document["cases"]:
        assert case.keys() >= CASE_KEYS
        assert case["max_abs_error"] < document["atol"]
        assert case["cache_max_abs_error"] is None


def test_kv_evaluate_the_bundled_model() -> None:
    document = answer("kv-evaluate")
    assert (document["command"], document["passed"]) == ("kv-evaluate", True)
    for case in document["cases"]:
        assert max(case[key] for key in CASE_KEYS if key.endswith("error")) < document["atol"]


@pytest.mark.parametrize("mode", ["--evaluate", "--kv-evaluate"])
def test_the_assignments_own_invocation_passes_at_1e_4(reference: Reference, mode: str) -> None:
    files = ["--model_state_dict", str(reference.weights), "--test_cases", str(reference.cases)]
    command = [sys.executable, "-m", "engine", mode, *files, "--atol", "1e-4", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["passed"] is True


def test_a_wrong_expectation_fails_with_exit_code_1(tmp_path: Path) -> None:
    cases = json.loads((ROOT / "assets" / "cases.json").read_text())[:2]
    cases[1]["expected_logits_no_cache"][0][-1][0] += 0.01
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases))
    done = kvscope("evaluate", "--cases", str(file), "--json", "--quiet")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert [case["passed"] for case in document["cases"]] == [True, False]
    assert document["cases"][1]["max_abs_error"] == pytest.approx(0.01, abs=1e-5)


def test_generate_measures_what_calc_predicts() -> None:
    document = answer("generate", "--prompt", "The king", "--max-new-tokens", "12", "--dtype", "float32")
    assert len(document["ids"]) == len(document["token_times_ns"]) == 12
    assert document["token_times_ns"] == sorted(document["token_times_ns"])
    assert document["finish_reason"] == "length"
    assert document["ttft_s"] > 0
    config = json.loads((ROOT / "assets" / "model" / "config.json").read_text())
    capacity = len(document["prompt_ids"]) + 12
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    bytes_by_hand = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * 4 * capacity
    assert document["kv_cache_bytes"] == document["kv_cache_bytes_predicted"] == bytes_by_hand


def test_generate_is_the_same_with_and_without_the_cache_and_from_a_seed() -> None:
    words = ("generate", "--prompt", "My lord", "--max-new-tokens", "10")
    cached, plain = answer(*words), answer(*words, "--no-cache")
    assert cached["ids"] == plain["ids"]
    assert plain["kv_cache_bytes"] == 0
    sampled = (*words, "--temperature", "0.8", "--top-p", "0.9", "--seed", "7")
    assert answer(*sampled)["ids"] == answer(*sampled)["ids"]


def test_benchmark_rows() -> None:
    document = answer("benchmark", "--lengths", "8,32", "--new-tokens", "4", "--repeats", "2", "--warmup", "1")
    assert document["command"] == "benchmark"
    assert document["new_tokens"] == 4
    assert document["machine"]["torch"]
    assert [row["prompt_tokens"] for row in document["rows"]] == [8, 32]
    for row in document["rows"]:
        assert row.keys() >= ROW_KEYS
        assert row["with_cache_min_s"] <= row["with_cache_s"] <= row["with_cache_max_s"]
        assert row["without_cache_min_s"] <= row["without_cache_s"] <= row["without_cache_max_s"]
        assert row["speedup"] == pytest.approx(row["without_cache_s"] / row["with_cache_s"])
    per_token = (document["rows"][1]["kv_cache_bytes"] - document["rows"][0]["kv_cache_bytes"]) / 24
    assert document["rows"][0]["kv_cache_bytes"] == per_token * (8 + 4)


def test_batch_measures_beside_what_calc_predicts() -> None:
    words = ("--batches", "1..3", "--context", "16", "--new-tokens", "3", "--repeats", "2", "--dtype", "float32")
    document = answer("batch", *words)
    assert document["command"] == "batch"
    assert [row["batch"] for row in document["rows"]] == [1, 2, 3]
    for row in document["rows"]:
        assert row.keys() == BATCH_ROW_KEYS
        assert row["step_min_s"] <= row["step_p50_s"] <= row["step_max_s"]
        assert row["tokens_per_s"] == pytest.approx(row["batch"] / row["step_p50_s"])
        assert row["rise"] == pytest.approx(row["tokens_per_s"] / document["rows"][0]["tokens_per_s"])
    first = document["rows"][0]
    assert first["rise_predicted"] == 1
    config = json.loads((ROOT / "assets" / "model" / "config.json").read_text())
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * 4
    assert [row["kv_cache_bytes"] for row in document["rows"]] == [batch * (16 + 3) * token for batch in (1, 2, 3)]
    # What the engine reads is calc's matrices and the norms; the bandwidth is the one that explains batch 1.
    norms = 4 * config["hidden_size"] * (2 * config["num_hidden_layers"] + 1)
    moved = first["weight_bytes"] - norms + token * first["context_tokens"]
    assert first["context_tokens"] == 16 + 3 / 2
    assert document["bytes_per_s"] == pytest.approx(moved / first["step_p50_s"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["batch", "--batches", "8..1"], "goes down: write 1..8"),
        (["batch", "--batches", "1024", "--context", "1000000"], "use smaller batches or a shorter context"),
        (["generate"], "no prompt: give"),
        (["generate", "--prompt-ids", "1,999999"], "999"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["generate", "--prompt", "x", "--model", "/no/such/model"], "/no/such/model"),
        (["evaluate", "--cases", "/no/such/cases.json"], "/no/such/cases.json"),
        (["benchmark", "--lengths", "0"], "lengths"),
        (["benchmark", "--lengths", "5", "--output", "/no/such/folder/x.json"], "/no/such/folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(words: list[str], said: str) -> None:
    done = kvscope(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_whole_study_has_every_part() -> None:
    document = answer()
    parts = ("memory", "intensity", "evaluate", "kv-evaluate", "benchmark")
    assert document.keys() == {"command", "schema", *parts}
    assert document["memory"]["max_batch"] == 59
    assert document["intensity"]["prefill"]["bytes"] == 9_437_184
    assert document["kv-evaluate"]["passed"] is True
    assert len(document["benchmark"]["rows"]) == 3
