"""memory and intensity against the command line's contract: keys, types, exit codes, sizes, streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from calc import __main__ as calc_main
from tui.headless import cli

ROOT = Path(__file__).parents[2]
NUMBER = (int, float)
MODEL = {
    "name": str,
    "n_layers": int,
    "n_heads": int,
    "n_kv_heads": int,
    "head_dim": int,
    "hidden_size": int,
    "intermediate_size": int,
    "vocab_size": int,
    "source": str,
}
COMPONENTS = ("embedding", "attention", "mlp", "experts", "norms", "head", "other")
PARAMETERS = {"total": int, "active_per_token": int, "components": dict.fromkeys(COMPONENTS, int)}
TP_ROW = {
    "tp": int,
    "weight_bytes_per_gpu": int,
    "kv_bytes_per_request_per_gpu": NUMBER,
    "max_batch": int,
    "fits": bool,
}
STEP = {"name": str, "formula": str, "substituted": str, "value": NUMBER, "unit": str}
MEMORY = {
    "command": str,
    "schema": int,
    "model": MODEL,
    "parameters": PARAMETERS,
    "weight_bytes": int,
    "kv_bytes_per_token": NUMBER,
    "kv_bytes_per_request": int,
    "state_bytes_per_sequence": int,
    "device_memory_bytes": int,
    "fits": bool,
    "max_batch": int,
    "tp": [TP_ROW],
    "steps": [STEP],
    "notes": [str],
}
PHASE = {
    "flops": int,
    "bytes": int,
    "intensity": NUMBER,
    "formula_flops": str,
    "formula_bytes": str,
    "formula_intensity": str,
    "limit": (int, float, type(None)),
}
INTENSITY = {
    "command": str,
    "attention": str,
    "element_bytes": NUMBER,
    "prefill": PHASE,
    "decode": PHASE,
    "prefill_by_context": [{"context": int, "flops": int, "bytes": int, "intensity": NUMBER}],
    "decode_by_batch": [
        {"batch": int, "attention_intensity": NUMBER, "linear_intensity": NUMBER, "step_intensity": NUMBER}
    ],
    "observations": [str],
}


def faults(value: Any, shape: Any, at: str = "$") -> list[str]:
    """Where `value` lacks a key of `shape` or has another type; more keys than the contract's are allowed."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{at}: not an object"]
        missing = [f"{at}.{key}: missing" for key in shape if key not in value]
        return missing + [f for k, s in shape.items() if k in value for f in faults(value[k], s, f"{at}.{k}")]
    if isinstance(shape, list):
        if not isinstance(value, list) or not value:
            return [f"{at}: not a list with something in it"]
        return [f for i, item in enumerate(value) for f in faults(item, shape[0], f"{at}[{i}]")]
    kinds = shape if isinstance(shape, tuple) else (shape,)
    right = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    return [] if right else [f"{at}: {value!r} is a {type(value).__name__}"]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.main(["--no-tui", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def answer(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The document of a command that must succeed: one on stdout, nothing on stderr."""
    code, out, err = run([*words, "--json"], capsys)
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(out)
    return document


def test_faults_are_found() -> None:
    assert faults({"a": 1, "b": [True]}, {"a": int, "b": [bool]}) == []
    assert faults({"a": True, "b": []}, {"a": int, "b": [bool], "c": str}) == [
        "$.c: missing",
        "$.a: True is a bool",
        "$.b: not a list with something in it",
    ]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--model", "mistral-7b-v0.1", "--context", "32Ki"],
        ["--model", "gpt2", "--kv-format", "q8_0", "--weight-bytes", "0.5"],
        ["--device", "a100-80gb", "--policy", "replicated", "--tp", "1,3,16"],
        ["--gpu-memory", "1GB"],
        ["--model", str(ROOT / "assets" / "model" / "config.json")],
    ],
)
def test_memory(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(["memory", *words], capsys)
    assert faults(document, MEMORY) == []
    assert (document["command"], document["schema"]) == ("memory", 1)
    assert sum(document["parameters"]["components"].values()) == document["parameters"]["total"]
    assert document["fits"] is (document["max_batch"] > 0)


def test_memory_says_what_the_assignment_says(capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(["memory"], capsys)
    assert document["parameters"]["total"] == 8_030_261_248
    assert document["weight_bytes"] == 16_060_522_496
    assert document["kv_bytes_per_token"] == 131_072
    assert document["kv_bytes_per_request"] == 2**30
    assert (document["device_memory_bytes"], document["max_batch"]) == (80 * 10**9, 59)
    assert {row["tp"]: row["max_batch"] for row in document["tp"]}[2] == 134
    assert answer(["memory", "--gpu-memory", "80GiB"], capsys)["max_batch"] == 65


@pytest.mark.parametrize(
    "words", [[], ["--attention", "flash", "--softmax-flops", "0"], ["--group-size", "4", "--contexts", "1..1Ki"]]
)
def test_intensity(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(["intensity", *words], capsys)
    assert faults(document, INTENSITY) == []
    assert document["command"] == "intensity"


def test_intensity_says_what_the_assignment_says(capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(["intensity"], capsys)
    assert (document["prefill"]["flops"], document["prefill"]["bytes"]) == (542_113_792, 9_437_184)
    assert (document["decode"]["flops"], document["decode"]["bytes"]) == (529_408, 532_992)


def test_python_m_calc_answers_alike(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["memory", "--json", "--context", "4k"]
    assert calc_main.main(words) == 0
    theirs = capsys.readouterr().out
    assert run(words, capsys)[1] == theirs


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["memory", "--gpu-memory", "80"], ["80GB is 80,000,000,000 B", "80GiB is 85,899,345,920 B"]),
        (["memory", "--gpu-memory", "80G"], ["80GB", "80GiB"]),
        (["memory", "--gpu-memory", "-1GB"], ["gpu-memory"]),
        (["memory", "--context", "0"], ["context", "at least 1"]),
        (["memory", "--context", "8b"], ["context"]),
        (["memory", "--model", "no-such-model"], ["no-such-model"]),
        (["memory", "--model", "/no/such/config.json"], ["/no/such/config.json"]),
        (["memory", "--device", "no-such-device"], ["no-such-device"]),
        (["memory", "--n-kv-heads", "5"], ["n_heads 32 is not divisible by n_kv_heads 5"]),
        (["memory", "--kv-format", "fp7"], ["fp7"]),
        (["memory", "--weight-bytes", "2", "--weight-format", "fp8"], ["not allowed with"]),
        (["memory", "--tp", "4..1"], ["goes down"]),
        (["memory", "--policy", "none"], ["none"]),
        (["memory", "--output", "/no/such/folder/x.json"], ["/no/such/folder"]),
        (["memory", "--no-such-option"], ["--no-such-option"]),
        (["intensity", "--softmax-flops", "-4"], ["softmax-flops"]),
        (["intensity", "--softmax-flops", "many"], ["softmax-flops", "from 0 to a million"]),
        (["intensity", "--model", "deepseek-v3", "--group-size", "4"], ["--group-size", "deepseek-v3"]),
        (["intensity", "--batches", "0"], ["at least 1"]),
        (["memroy"], ["did you mean memory?"]),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(words, capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert all(part in err for part in said), err


def test_what_does_not_fit_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(["memory", "--gpu-memory", "10GB"], capsys)
    assert (document["fits"], document["max_batch"]) == (False, 0)
    assert any("Does not fit" in note for note in document["notes"])


def test_output_is_written_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "memory.json"
    code, out, err = run(["memory", "--json", "--output", str(file)], capsys)
    assert (code, out) == (0, "")
    assert err == f"wrote {file}\n"
    assert json.loads(file.read_text())["max_batch"] == 59
    assert [entry.name for entry in tmp_path.iterdir()] == ["memory.json"]
    assert run(["memory", "--json", "--quiet", "--output", str(file)], capsys) == (0, "", "")


@pytest.mark.parametrize(("form", "start"), [("csv", "Quantity,Value,Unit,Note"), ("md", "## llama-3-8b on")])
def test_other_formats(form: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(["memory", "--format", form], capsys)
    assert (code, err) == (0, "")
    assert out.startswith(start)


def test_as_a_process() -> None:
    """Exit codes reach the shell, stdout holds the document alone, and an ASCII pipe is no reason to fail."""
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "tui", "memory"]
    done = subprocess.run([*command, "--json"], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["max_batch"] == 59
    refused = subprocess.run([*command, "--gpu-memory", "80"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "Traceback" not in refused.stderr


def test_a_reader_that_leaves_early_is_no_failure() -> None:
    done = subprocess.run(
        f"{sys.executable} -m tui models --format csv | head -1; exit ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
