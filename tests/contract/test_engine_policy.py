"""``memory --policy vllm|sglang|transformers|llamacpp``: the engine block of the JSON, refusals, what is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calc.commands.memory import run_memory
from calc.commands.options import SERVERS, study_from, study_parser
from calc.commands.output import guarded
from calc.errors import SpecError
from calc.servers.names import ENGINES

ENGINE_KEYS = {
    "name", "version", "block_size", "weight_bytes_per_gpu", "activation_bytes", "non_torch_bytes",
    "cuda_graph_bytes", "kv_pool_bytes", "kv_blocks", "kv_tokens", "max_concurrency", "groups", "assumptions",
}  # fmt: skip
SIZES = ("weight_bytes_per_gpu", "activation_bytes", "non_torch_bytes", "cuda_graph_bytes", "kv_pool_bytes",
         "kv_blocks", "kv_tokens", "block_size")  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = guarded(lambda: run_memory(words, "kvscope memory"), "kvscope memory")
    out, err = capsys.readouterr()
    return code, out, err


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    code, out, err = run(capsys, *words, "--json")
    assert (code, err) == (0, "")
    document: dict[str, object] = json.loads(out)
    return document


def test_the_names_on_the_command_line_are_the_servers() -> None:
    assert SERVERS == ENGINES


@pytest.mark.parametrize("engine", SERVERS)
def test_engine_block(capsys: pytest.CaptureFixture[str], engine: str) -> None:
    document = answer(capsys, "--policy", engine, "--device", "h100-sxm", "--tp", "1")
    block = document["engine"]
    assert isinstance(block, dict)
    assert set(block) >= ENGINE_KEYS
    assert block["name"] == document["policy"] == engine
    assert all(isinstance(block[name], int) for name in SIZES)
    assert isinstance(block["max_concurrency"], float)
    assert set(block["groups"][0]) == {"kind", "layers", "blocks_per_request"}
    assert all(isinstance(sentence, str) for sentence in block["assumptions"])
    assert document["max_batch"] == int(block["max_concurrency"])
    assert isinstance(document["launch"], str)
    assert document["tp"][0]["weight_bytes_per_gpu"] == block["weight_bytes_per_gpu"]  # type: ignore[index]


def test_log_of_a_server_from_its_pool(capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM 0.19, Llama-3.1-8B, TP 2: 63.76 GiB are 1,044,688 tokens, 127.53 requests of 8192."""
    words = ("--policy", "vllm", "--model", "llama-3.1-8b", "--tp", "2", "--kv-pool", "63.76GiB")
    block = answer(capsys, *words, "--engine-version", "0.19.0")["engine"]
    assert isinstance(block, dict)
    assert block["kv_tokens"] == pytest.approx(1_044_688, rel=0.001)
    assert block["max_concurrency"] == pytest.approx(127.53, rel=0.001)
    assert block["groups"] == [{"kind": "full", "layers": 32, "blocks_per_request": 512}]


def test_the_answer_is_for_the_first_tp(capsys: pytest.CaptureFixture[str]) -> None:
    """Without --tp for one device; what more of them would do comes after."""
    words = ("--policy", "vllm", "--model", "llama-3.1-70b", "--device", "h100-sxm")
    alone, four = answer(capsys, *words), answer(capsys, *words, "--tp", "3,4,2")
    assert isinstance(alone["engine"], dict)
    assert isinstance(four["engine"], dict)
    assert (alone["engine"]["tp"], alone["fits"], alone["max_batch"]) == (1, False, 0)
    assert alone["notes"][0].startswith("vLLM does not start")  # type: ignore[index]
    assert alone["notes"][1] == "With --tp 2 it holds 1.18 full-length requests."  # type: ignore[index]
    assert alone["launch"] is None
    assert (four["engine"]["tp"], four["fits"]) == (4, True)
    assert four["notes"][1] == "TP 3 cannot be served: 64 query heads are not divisible by TP 3."  # type: ignore[index]


def test_a_batch_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "vllm", "--model", "llama-3.1-8b", "--device", "h100-sxm", "--kv-pool", "10GiB")
    document = answer(capsys, *words, "--batch", "8")  # requests of 8,192 tokens take 1 GiB each
    assert (document["asked_batch"], document["asked_fits"], document["free_bytes"]) == (8, True, 2 * 2**30)
    more = answer(capsys, *words, "--batch", "11")
    assert (more["asked_fits"], more["free_bytes"]) == (False, -(2**30))
    assert more["notes"][1] == "11 requests do not fit on one device: 1.07 GB are missing per device."  # type: ignore[index]


def test_more_requests_than_sequences_of_a_step_wait(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "vllm", "--model", "qwen3-0.6b", "--device", "h200-sxm", "--context", "512", "--batch", "2000")
    document = answer(capsys, *words)
    assert document["asked_fits"] is True
    assert document["notes"][1].endswith("At most 1,024 of them run at once (--max-num-seqs).")  # type: ignore[index]


def test_no_page_of_a_server_contradicts_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Devices of llama.cpp share layers, not heads: three are served."""
    notes = answer(capsys, "--policy", "llamacpp", "--tp", "3")["notes"]
    assert isinstance(notes, list)
    assert not any("cannot be served" in note or "other reading" in note for note in notes)
    words = ("--policy", "vllm", "--model", "gemma-3-27b", "--device", "h200-sxm", "--context", "128k")
    block = answer(capsys, *words, "--engine-version", "0.19.0")["engine"]
    assert isinstance(block, dict)
    assert block["kv_tokens"] < block["max_concurrency"] * 128_000
    assert any(f"says {block['kv_tokens']:,} tokens, as if" in said for said in block["assumptions"])


def test_float32_weights_take_a_float32_cache(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--policy", "vllm", "--model", "llama-3.1-8b", "--device", "h100-sxm", "--tp", "1")
    plain = answer(capsys, *words, "--weight-format", "fp32", "--gpu-memory-utilization", "0.95")["engine"]
    assert isinstance(plain, dict)
    assert plain["kv_tokens"] == pytest.approx(175_296, rel=0.002)


def test_does_not_fit_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    document = answer(capsys, "--policy", "vllm", "--model", "llama-3.1-70b", "--tp", "1")
    assert document["fits"] is False
    assert document["max_batch"] == 0
    code, out, _ = run(capsys, "--policy", "vllm", "--model", "llama-3.1-70b", "--tp", "1")
    assert code == 0
    assert "does not start" in out


@pytest.mark.parametrize("form", ["text", "csv", "md"])
@pytest.mark.parametrize("engine", SERVERS)
def test_readable_answers(capsys: pytest.CaptureFixture[str], engine: str, form: str) -> None:
    code, out, _ = run(capsys, "--policy", engine, "--device", "h100-sxm", "--format", form)
    assert code == 0
    assert ("Together" if engine == "llamacpp" else "KV pool") in out
    assert form == "csv" or "Start it with: " in out


@pytest.mark.parametrize(
    "words",
    [
        ("--kv-pool", "10GiB"),
        ("--block-size", "32", "--policy", "replicated"),
        ("--enforce-eager",),
        ("--policy", "vllm", "--gpu-memory-utilization", "1.5"),
        ("--policy", "vllm", "--engine-version", "newest"),
        ("--policy", "vllm", "--kv-pool", "10"),
        ("--policy", "llamacpp", "--block-size", "16"),
        ("--policy", "vllm", "--model", "phi-4", "--tp", "4"),
        ("--policy", "vllm", "--tp", "2", "--dcp", "3"),
    ],
)
def test_refused(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_the_whole_study_is_not_a_servers() -> None:
    """Rather than counting it as something else: there the server's options would not be taken either."""
    args = study_parser("kvscope").parse_args(["--policy", "vllm"])
    with pytest.raises(SpecError, match="--policy vllm works with the app and the commands memory, solve and sweep"):
        study_from(args)


def test_a_plain_memory_imports_of_the_servers_their_names_alone() -> None:
    code = (
        "import sys; from calc.commands.memory import run_memory; run_memory(['--json'], 'x');"
        "sys.exit({m for m in sys.modules if m.startswith('calc.servers')} != {'calc.servers', 'calc.servers.names'})"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()


def test_float32_checkpoints_are_loaded_in_16_bits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Gemma 2's configs say float32; vLLM's runs hold them in bfloat16."""
    config = tmp_path / "config.json"
    shape = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
             "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000, "sliding_window": 4096,
             "max_position_embeddings": 8192}  # fmt: skip
    config.write_text(json.dumps({"model_type": "gemma2", "torch_dtype": "float32", **shape}))
    words = ("--model", str(config), "--device", "h100-sxm", "--gpu-memory-utilization", "0.95", "--tp", "1")
    block = answer(capsys, "--policy", "vllm", *words)["engine"]
    assert isinstance(block, dict)
    assert block["weight_bytes_per_gpu"] / 2**30 == pytest.approx(4.9, abs=0.005)
    assert block["kv_tokens"] == pytest.approx(670_160, rel=0.002)
    assert any("float32" in sentence for sentence in block["assumptions"])
    given = answer(capsys, "--policy", "vllm", *words, "--weight-format", "fp32")["engine"]
    assert isinstance(given, dict)
    assert given["weight_bytes_per_gpu"] / 2**30 == pytest.approx(9.8, abs=0.05)
