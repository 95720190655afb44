"""``memory`` and ``solve`` with --policy llamacpp: options, the engine block, the split that fits, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calc import __main__ as calc_main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = calc_main.main(list(words))
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code, out, err = run(capsys, *words, "--policy", "llamacpp", "--json")
    assert code == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


EIGHT = ("memory", "--model", "llama-3-8b", "--weight-format", "q8_0")


def test_devices_and_host_in_the_engine_block(capsys: pytest.CaptureFixture[str]) -> None:
    engine = answer(capsys, *EIGHT, "--device", "rtx-4090")["engine"]
    (device,) = engine["devices"]
    assert device["name"] == "NVIDIA RTX 4090"
    assert (device["weight_bytes"], device["kv_bytes"]) == (7_974_764_544, 8192 * 131_072)
    assert engine["host"]["weight_bytes"] == 558_170_112
    assert engine["host"]["prompt_cache_bytes"] == 8 * 2**30


def test_layers_cache_and_experts_on_the_host(capsys: pytest.CaptureFixture[str]) -> None:
    some = answer(capsys, *EIGHT, "--device", "rtx-4090", "--n-gpu-layers", "10", "--kv-on-host", "--parallel", "2")
    assert some["engine"]["devices"][0]["weight_bytes"] == 2_644_099_072
    assert some["engine"]["host"]["kv_bytes"] == 2 * 8192 * 131_072
    assert "--parallel 2 " in some["launch"]
    assert "--n-gpu-layers 10 " in some["launch"]
    assert "--no-kv-offload" in some["launch"]
    whole = answer(capsys, *EIGHT, "--device", "rtx-4090", "--n-gpu-layers", "all")
    assert whole["engine"]["n_gpu_layers"] == 33
    moe = ("memory", "--model", "qwen3-30b-a3b", "--weight-format", "q8_0", "--device", "rtx-4090")
    assert answer(capsys, *moe, "--n-cpu-moe", "48")["engine"]["devices"][0]["weight_bytes"] == 1_344_380_928


def test_unlike_devices(capsys: pytest.CaptureFixture[str]) -> None:
    two = answer(capsys, *EIGHT, "--device", "rtx-3090, rtx-3060", "--tensor-split", "3,1")
    assert [device["name"] for device in two["engine"]["devices"]] == ["NVIDIA RTX 3090", "NVIDIA RTX 3060 12GB"]
    assert [row["tp"] for row in two["tp"]] == [2]
    assert "--tensor-split 3,1 " in two["launch"]
    code, _, err = run(capsys, *EIGHT, "--device", "rtx-3090,rtx-3060", "--policy", "vllm")
    assert code == 2
    assert "only --policy llamacpp shares a model among different devices" in err


@pytest.mark.slow
def test_solve_over_unlike_devices(capsys: pytest.CaptureFixture[str]) -> None:
    """Other devices and their number are asked of such as are alike."""
    two = answer(
        capsys, "solve", "--model", "llama-3-70b", "--weight-format", "Q4_K_M", "--device", "rtx-3090,rtx-4060",
        "--tensor-split", "3,1",
    )  # fmt: skip
    assert (two["tp"], two["device"]) == (2, "NVIDIA RTX 3090 and NVIDIA RTX 4060")
    assert 0 < two["answers"]["split"]["n_gpu_layers"] < 81
    assert len(two["answers"]["split"]["devices"]) == 2
    assert len({row["max_batch"] for row in two["answers"]["device"]}) > 3
    assert two["answers"]["devices"]["devices"] == 2  # such as the first


def test_k_and_v_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """K of 32 layers x 1,024 elements at 34/32 B, V at 18/32 B."""
    mixed = answer(capsys, *EIGHT, "--device", "rtx-4090", "--kv-format", "q8_0/q4_0")
    assert mixed["engine"]["devices"][0]["kv_bytes"] == 8192 * 32 * (1088 + 576)
    assert "--cache-type-k q8_0 --cache-type-v q4_0" in mixed["launch"]


def test_one_user_means_one_slot(capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(capsys, *EIGHT, "--device", "h200-sxm")
    assert "--parallel 1 " in document["launch"]
    assert document["max_batch"] > 100
    batch = answer(capsys, *EIGHT, "--device", "h200-sxm", "--batch", "4")
    assert "--parallel 4 " in batch["launch"]
    assert (batch["asked_fits"], batch["asked_batch"]) == (True, 4)


def test_what_does_not_fit_names_the_split_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *EIGHT, "--device", "rtx-4060", "--policy", "llamacpp")
    assert code == 0
    assert "does not start" in out
    assert "of 33 layers on the device: llama-server " in " ".join(out.split())
    assert "Start it with" not in out
    document = answer(capsys, *EIGHT, "--device", "rtx-4060")
    assert document["fits"] is False
    assert any("llama-server" in note and "--n-gpu-layers" in note for note in document["notes"])


@pytest.mark.slow
def test_solve_finds_the_split(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("solve", "--model", "gpt-oss-120b", "--device", "rtx-4090", "--find", "split")
    document = answer(capsys, *words)
    split = document["answers"]["split"]
    assert split["fits"] is True
    assert split["n_gpu_layers"] == 37
    assert 0 < split["n_cpu_moe"] < 36
    assert f"--n-cpu-moe {split['n_cpu_moe']} " in split["launch"]
    assert document["advice"][0]["options"] == ["--n-cpu-moe", str(split["n_cpu_moe"])]
    code, out, _ = run(capsys, *words, "--policy", "llamacpp")
    assert code == 0
    assert "Split between devices and host: 37 layers on devices" in out
    dense = answer(capsys, "solve", "--model", "llama-3-70b", "--weight-format", "Q4_K_M", "--gpu-memory", "24GiB")
    assert 0 < dense["answers"]["split"]["n_gpu_layers"] < 81
    assert dense["answers"]["split"]["n_cpu_moe"] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*EIGHT, "--policy", "vllm", "--n-gpu-layers", "0"), "--n-gpu-layers has no effect with --policy vllm"),
        ((*EIGHT, "--kv-on-host"), "--kv-on-host needs a server policy"),
        ((*EIGHT, "--policy", "llamacpp", "--n-cpu-moe", "2"), "has no routed experts"),
        (
            (*EIGHT, "--policy", "llamacpp", "--swa-full"),
            "for a model without window layers",
        ),
        ((*EIGHT, "--policy", "llamacpp", "--tensor-split", "1,x"), "expected one number per device, such as 3,1"),
        ((*EIGHT, "--policy", "llamacpp", "--parallel", "2", "--max-num-seqs", "3"), "give only one of them"),
        ((*EIGHT, "--policy", "llamacpp", "--engine-version", "9.9.9"), "looks like b6089"),
        (("solve", "--find", "split"), "--find split needs llama.cpp"),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str) -> None:
    try:
        code = calc_main.main(list(words))
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert said in capsys.readouterr().err
