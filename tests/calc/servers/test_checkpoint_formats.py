"""What a server makes of a checkpoint's own formats: caches in fp8, MXFP4 experts, rows of sparse latent attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.server_models import models
from calc import __main__ as calc_main
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.stored_format import stored_format
from calc.model.study import DeviceSpec, Policy, Study
from calc.servers.expert_padding import expert_bytes, marlin_bytes, triton_bytes
from calc.servers.facts import facts_from_config
from calc.servers.records import ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.sources import load_model
from calc.sources.catalog import find_device, find_model, manual_device

GIB = 2**30
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 131_072,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}
    },
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True},
}


def answer(capsys: pytest.CaptureFixture[str], config: dict[str, Any], folder: Path, *words: str) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(config))
    common = ["--policy", "vllm", "--device", "h100-sxm", "--tp", "1", "--json"]
    assert calc_main.main(["memory", "--model", str(folder / "config.json"), *common, *words]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_the_cache_of_a_compressed_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """2 x 32 layers x 8 heads x 128 elements in fp8: 65,536 B per token; told otherwise, or before 0.15, twice that."""
    config = {**LLAMA, "quantization_config": COMPRESSED}
    own = answer(capsys, config, tmp_path)
    assert own["kv_bytes_per_token"] == 65_536
    assert "the cache is in fp8, as the checkpoint says" in own["engine"]["assumptions"]
    told = answer(capsys, config, tmp_path, "--kv-format", "bf16")
    assert told["kv_bytes_per_token"] == 131_072
    assert "--kv-cache-dtype bfloat16" in told["launch"]
    assert answer(capsys, config, tmp_path, "--engine-version", "0.14.1")["kv_bytes_per_token"] == 131_072


def test_modelopt_says_it_beside_the_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(beside))
    assert answer(capsys, LLAMA, tmp_path)["kv_bytes_per_token"] == 65_536
    assert answer(capsys, LLAMA, tmp_path, "--engine-version", "0.13.0")["kv_bytes_per_token"] == 131_072


@pytest.mark.parametrize(
    ("quantization", "found"),
    [
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, ("fp8", "modelopt")),
        ({"quant_method": "modelopt_fp4", "quantization": {"kv_cache_quant_algo": "NVFP4"}}, ("nvfp4", "modelopt")),
        ({"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, ("fp8", "modelopt")),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": None}, (None, "")),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, (None, "")),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "int"}}, (None, "")),
        ({"quant_method": "fp8"}, (None, "")),
    ],
)
def test_what_a_config_says_of_its_cache(quantization: dict[str, Any], found: tuple[str | None, str]) -> None:
    facts = facts_from_config({"quantization_config": quantization})
    assert (facts.cache_format, facts.quantizer) == found


def report(model: ModelSpec, device: DeviceSpec, **options: Any) -> ServerReport:
    study = Study(
        model=model,
        device=device,
        policy=Policy.REPLICATED,
        weight_format=stored_format(model) or FORMATS["bf16"],
        kv_format=FORMATS[options.pop("kv", "bf16")],
    )
    return server_report(study, ServerOptions(**options))


def test_padded_experts_by_hand() -> None:
    """2,880 to 3,072 and 2,944; 17 bits for 32 values of 4 bits and their scale, per 4 of them."""
    assert expert_bytes(2880, 2880) == 3 * 2880 * 2880 * 17 // 32
    assert marlin_bytes(2880, 2880) == 3 * 3072 * 2944 * 17 // 32
    assert expert_bytes(4096, 2048) == marlin_bytes(4096, 2048) == triton_bytes(4096, 2048)


@pytest.mark.parametrize(
    ("name", "device", "version", "gib"),
    [
        ("gpt-oss-120b", "h100-sxm", "0.10.1", 65.9651),  # vllm-project/vllm#23278
        ("gpt-oss-120b", "h100-sxm", "0.14.1", 64.38),  # vllm-project/vllm#33155
        ("gpt-oss-20b", "a100-80gb", "0.11.0", 13.7164),  # a public log of gpt-oss-20b, Marlin
    ],
)
def test_loaded_experts_are_the_logs(name: str, device: str, version: str, gib: float) -> None:
    loaded = report(find_model(name), find_device(device), version=version).weight_bytes_per_gpu
    assert loaded / GIB == pytest.approx(gib, rel=0.004)


def test_gpt_oss_120b_on_one_h100_is_the_log() -> None:
    """-2.14 GiB for the cache at 0.10.1 and 0.9 (vllm-project/vllm#23278)."""
    pool = report(find_model("gpt-oss-120b"), find_device("h100-sxm"), version="0.10.1").kv_pool_bytes
    assert pool / GIB == pytest.approx(-2.14, abs=0.15)


@pytest.mark.parametrize(
    ("device", "version", "row"),
    [
        ("h200-sxm", "0.19.0", 656),
        ("b200-sxm", "0.19.0", 576),
        ("b200-sxm", "0.17.0", 656),
        ("h100-sxm", "0.13.0", 656),
    ],
)
def test_fp8_rows_of_sparse_attention(device: str, version: str, row: int) -> None:
    """61 layers, the indexer's 132 B beside the row: 48,068 B per token on Hopper."""
    found = report(models()["deepseek-ai/DeepSeek-V3.2"], find_device(device), version=version, tp=8, kv="fp8")
    assert found.kv_request_bytes == 61 * (row + 132) * 8192


def test_rows_that_are_not_sparse_or_not_quantized_are_plain() -> None:
    device = find_device("h200-sxm")
    dense = report(models()["deepseek-ai/DeepSeek-R1"], device, tp=8, kv="fp8")
    assert dense.kv_request_bytes == 61 * 576 * 8192
    sparse = report(models()["deepseek-ai/DeepSeek-V3.2"], device, tp=8)
    assert sparse.kv_request_bytes == 61 * (2 * 576 + 132) * 8192


@pytest.mark.parametrize(("name", "tp", "token"), [("deepseek-v2", 8, 983_040), ("deepseek-v2-lite", 1, 442_368)])
def test_before_the_latent_cache_every_head_was_kept(name: str, tp: int, token: int) -> None:
    """vLLM before 0.7.1: K and V of 256 for 128 (16) heads in 60 (27) layers (vllm-project/vllm#4650)."""
    old = report(find_model(name), find_device("h100-sxm"), version="0.5.4", tp=tp)
    new = report(find_model(name), find_device("h100-sxm"), version="0.7.1", tp=tp)
    assert (old.kv_request_bytes, old.block_size) == (token * 8192, 16)
    assert new.kv_request_bytes == find_model(name).n_layers * 576 * 2 * 8192


def test_metas_own_fp8_file_keeps_attention_in_16_bits(tmp_path: Path) -> None:
    """57.7520 GiB per GPU at TP 8 (vllm-project/vllm#6746); its file of July 2024 had 16 KV heads."""
    kept = [f"model.layers.{i}.self_attn.{name}_proj" for i in range(126) for name in "qkvo"]
    kept += [f"model.layers.{i}.mlp.{name}_proj" for i in (0, 125) for name in ("gate", "up", "down")]
    config = {
        **LLAMA, "hidden_size": 16_384, "intermediate_size": 53_248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 16,
        "quantization_config": {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head", *kept]},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(str(tmp_path / "config.json"))
    loaded = report(model, find_device("h100-sxm"), version="0.5.3", tp=8).weight_bytes_per_gpu
    assert loaded / GIB == pytest.approx(57.7520, rel=0.001)


def test_fp8_caches_on_devices_without_fp8() -> None:
    """vllm-project/vllm#26431 (RTX 3090) and 1CatAI/1Cat-vLLM#27 (V100): type fp8e4nv not supported."""
    model = find_model("llama-3.1-8b")
    volta, ampere, ada = (report(model, find_device(name), kv="fp8") for name in ("v100-sxm2-32gb", "rtx-3090", "l40s"))
    assert volta.refusal is not None
    assert "--kv-format fp8_e5m2 works" in volta.refusal
    assert ampere.refusal is None
    assert any("no instructions for fp8" in said for said in ampere.assumptions)
    assert not any("fp8 (E4M3)" in said for said in ada.assumptions)
    other = report(model, find_device("v100-sxm2-32gb"), kv="fp8_e5m2")
    assert other.refusal is None


def test_quark_has_scales_of_a_cache_and_no_format() -> None:
    quark = {"quant_method": "quark", "export": {"kv_cache_group": ["*k_proj", "*v_proj"]},
             "layer_quant_config": {"*k_proj": {"output_tensors": {"dtype": "fp8_e4m3"}}}}  # fmt: skip
    known = facts_from_config({**LLAMA, "quantization_config": quark})
    assert (known.cache_format, known.cache_scales) == (None, "fp8")
    found = report(find_model("llama-3.1-8b"), find_device("mi300x"), facts=known)
    assert any("has scales for a fp8 cache" in said for said in found.assumptions)


@pytest.mark.parametrize(
    ("name", "engine"), [("minimax-m3", "vllm"), ("qwen3.5-35b-a3b", "sglang"), ("gpt-oss-120b", "llamacpp")]
)
def test_a_page_of_a_server_has_one_account_of_the_cache(
    capsys: pytest.CaptureFixture[str], name: str, engine: str
) -> None:
    """What the plain rule says of indexers, windows and states is not the server's."""
    words = ["memory", "--model", name, "--device", "h200", "--policy", engine, "--json", "--context", "8192"]
    assert calc_main.main(words) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    for other in ("Not counted in the cache", "the cache of one request is", "Counted at bf16"):
        assert other not in notes
    assert ("whole KV heads are repeated" in notes) is (engine != "llamacpp")


def test_sglang_keeps_index_keys_in_fp8_but_where_the_device_is_not_known() -> None:
    model, typed = find_model("deepseek-v3.2"), manual_device(192 * GIB)
    known, other = (report(model, device, engine="sglang", tp=8) for device in (find_device("h200"), typed))
    tokens = known.context
    assert known.kv_request_bytes == tokens * 61 * (576 * 2 + 132)
    assert other.kv_request_bytes == tokens * 61 * (576 * 2 + 256)


def test_a_page_says_a_devices_memory_once(capsys: pytest.CaptureFixture[str]) -> None:
    """MI300X: 191.98 GiB as PyTorch reports it, not its label read as 10^9; and no windows where there are none."""
    words = ["memory", "--model", "llama-3.1-8b", "--device", "mi300x", "--policy", "llamacpp", "--context", "8192"]
    assert calc_main.main([*words, "--tensor-split", "3,1", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    everything = " ".join([*said["notes"], *said["engine"]["assumptions"]])
    assert "191.98 GiB" in everything
    for other in ("178.81 GiB", "windows and states keep less", "cannot be served"):
        assert other not in everything
    assert [row["tp"] for row in said["tp"]] == [2]


def test_drafts_that_are_counted_are_not_said_to_be_missing(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["memory", "--model", "deepseek-r1", "--device", "h200", "--policy", "vllm", "--tp", "8", "--json"]
    for more, said in (([], True), (["--speculative-layers", "1"], False)):
        assert calc_main.main([*words, "--context", "8192", *more]) == 0
        notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
        assert ("multi-token-prediction layers are not counted" in notes) is said
