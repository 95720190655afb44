"""What a server refuses at its start, and options that would change nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest

from bench.server_models import models
from calc import __main__ as calc_main
from calc.errors import SpecError
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.servers.launch import launch_command
from calc.servers.names import ENGINES
from calc.servers.records import ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.servers.versions import version_remark
from calc.sources.catalog import find_device, find_model

H200 = find_device("h200-sxm")
QWEN = find_model("qwen3-8b")
"""40,960 positions."""
GIB = 2**30


def report(engine: str, model: ModelSpec = QWEN, context: int = 8192, **options: object) -> ServerReport:
    study = Study(model=model, device=H200, context=context, policy=Policy.REPLICATED)
    return server_report(study, ServerOptions(engine=engine, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(("engine", "variable"), [("vllm", "VLLM_ALLOW_LONG"), ("sglang", "SGLANG_ALLOW_OVERWRITE")])
def test_a_context_beyond_the_model_does_not_start(engine: str, variable: str) -> None:
    beyond, most = report(engine, context=1_000_000), report(engine, context=40_960)
    assert beyond.refusal is not None
    assert "1,000,000 is longer than the model's context limit of 40,960" in beyond.refusal
    assert variable in beyond.refusal
    assert (beyond.starts, beyond.fits, beyond.requests) == (False, False, 0)
    assert launch_command(beyond) is None
    assert (most.refusal, most.starts, most.fits) == (None, True, True)


def test_llama_cpp_and_transformers_start_and_say_so() -> None:
    for engine, said in (("llamacpp", "caps each slot"), ("transformers", "never trained")):
        beyond = report(engine, context=65_536)
        assert beyond.starts
        assert any(said in line for line in beyond.assumptions)
        assert not any(said in line for line in report(engine, context=40_960).assumptions)


def test_scaled_positions_count() -> None:
    scaled = replace(QWEN, max_context=131_072)
    assert report("vllm", scaled, context=131_072).starts
    assert not report("vllm", scaled, context=131_073).starts


def test_a_model_without_a_limit_is_not_refused() -> None:
    assert report("vllm", replace(QWEN, max_context=None), context=200_000).refusal is None


def test_a_pool_larger_than_what_is_left_does_not_start() -> None:
    left = report("vllm", gpu_memory_utilization=Fraction(1)).kv_pool_bytes
    small, large = report("vllm", kv_pool_bytes=left // 2), report("vllm", kv_pool_bytes=2 * left)
    assert small.fits
    assert not large.fits
    assert large.refusal is not None
    assert "is more than the" in large.refusal
    assert launch_command(large) is None
    command = launch_command(small)
    assert command is not None
    assert f"--kv-cache-memory-bytes {left // 2}" in command
    assert "--gpu-memory-utilization" not in command  # vLLM does not read it beside a given pool


def test_who_starts_with_less_than_a_request() -> None:
    for engine, starts in (("vllm", False), ("sglang", True), ("transformers", True)):
        short = report(engine, context=40_960, kv_pool_bytes=GIB)
        assert not short.fits
        assert short.starts is starts, engine
        assert (launch_command(short) is not None) is starts, engine


def test_solve_says_that_a_context_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["solve", "--model", "qwen3-8b", "--device", "h200-sxm", "--context", "65536", "--find", "batch", "--json"]
    assert calc_main.main([*words, "--policy", "vllm"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is False
    assert document["shortage"].startswith("vLLM does not start: --max-model-len 65,536 is longer than")
    assert document["advice"][0]["options"] == ["--context", "40960"]
    assert calc_main.main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is True
    assert "The context of 65,536 tokens is longer than the model's limit of 40,960." in document["notes"]


IDLE = [
    ({"disable_hybrid": True}, ("vllm", "sglang", "transformers", "llamacpp")),
    ({"prefix_caching_of_states": True}, ("vllm", "sglang", "transformers", "llamacpp")),
    ({"speculative_tokens": 3}, ("vllm", "sglang", "transformers", "llamacpp")),
    ({"speculative_layers": 1}, ("transformers", "llamacpp")),
    ({"enforce_eager": True}, ("transformers", "llamacpp")),
    ({"max_num_seqs": 7}, ("transformers",)),
    ({"block_size": 32}, ("transformers", "llamacpp")),
    ({"gpu_memory_utilization": Fraction(1, 2)}, ("transformers", "llamacpp")),
    ({"max_num_batched_tokens": 4096}, ()),
    ({"pp": 2}, ("sglang", "transformers", "llamacpp")),
    ({"dcp": 2, "tp": 16}, ("sglang", "transformers", "llamacpp")),
    ({"dp_attention": 2, "tp": 2}, ("vllm", "transformers", "llamacpp")),
]


@pytest.mark.parametrize(("options", "idle"), IDLE, ids=lambda value: next(iter(value), "none"))
@pytest.mark.parametrize("engine", ENGINES)
def test_an_option_changes_something_or_is_refused(engine: str, options: dict[str, object], idle: list[str]) -> None:
    if engine in idle:
        with pytest.raises(SpecError, match=r"has no effect|is not supported"):
            report(engine, **options)
        return
    plain, asked = report(engine, tp=options.get("tp", 1)), report(engine, **options)
    same = replace(asked, options=plain.options, assumptions=plain.assumptions, steps=plain.steps)
    assert same != plain or launch_command(asked) != launch_command(plain)


def test_tokens_are_shared_where_kv_heads_are_repeated() -> None:
    """vLLM's config/model.py: 8 KV heads on 16 ranks are held twice, so that two ranks can share the tokens of each."""
    assert report("vllm", find_model("llama-3-8b"), tp=16, dcp=2).kv_tokens > 0
    for tp, dcp, times in ((8, 2, "once"), (16, 4, "2 times")):
        with pytest.raises(SpecError, match=f"TP {tp} holds each of the 8 KV heads {times}"):
            report("vllm", find_model("llama-3-8b"), tp=tp, dcp=dcp)


@pytest.mark.parametrize(
    ("model", "what"), [("gpt-oss-120b", "a window of 128 tokens"), ("qwen3-next-80b-a3b", "a recurrent state")]
)
def test_windows_and_states_are_not_shared_token_by_token(model: str, what: str) -> None:
    """vLLM's SlidingWindowSpec: "DCP not support sliding window"."""
    with pytest.raises(SpecError, match=f"--dcp 2: {what} cannot be shared"):
        report("vllm", find_model(model), tp=16, dcp=2)


def test_windows_kept_as_all_tokens_are_shared() -> None:
    assert report("vllm", find_model("gpt-oss-120b"), tp=16, dcp=2, disable_hybrid=True).kv_tokens > 0


@pytest.mark.parametrize(
    ("engine", "kept", "not_kept"),
    [
        ("vllm", ("bf16", "fp8", "fp8_e5m2"), ("q8_0", "q4_k", "iq4_nl")),
        ("sglang", ("bf16", "fp8_e4m3"), ("q4_0",)),
        ("llamacpp", ("fp32", "q8_0", "q5_1", "iq4_nl"), ("fp8", "int8", "q4_k", "nvfp4")),
    ],
)
def test_caches_are_kept_in_the_servers_own_formats(
    engine: str, kept: tuple[str, ...], not_kept: tuple[str, ...]
) -> None:
    study = Study(model=QWEN, device=find_device("h100-sxm"), policy=Policy.REPLICATED)
    options = ServerOptions(engine=engine)
    for name in kept:
        assert server_report(replace(study, kv_format=FORMATS[name]), options).kv_pool_bytes > 0
    for name in not_kept:
        with pytest.raises(SpecError, match=f"has no {name}"):
            server_report(replace(study, kv_format=FORMATS[name]), options)


def test_options_about_layers_that_a_model_has() -> None:
    windows, states = models()["google/gemma-3-12b-it"], models()["Qwen/Qwen3.5-27B"]
    assert report("vllm", windows, disable_hybrid=True).fits
    assert report("sglang", windows, disable_hybrid=True).fits
    assert report("vllm", states, prefix_caching_of_states=True, tp=2).fits
    assert report("vllm", states, speculative_tokens=3, tp=2).fits
    assert report("vllm", speculative_tokens=3, speculative_layers=1).fits
    with pytest.raises(SpecError, match=r"--disable-hybrid has no effect before vLLM 0\.9\.1"):
        report("vllm", windows, disable_hybrid=True, version="0.8.5")


def test_versions_that_were_never_measured() -> None:
    assert version_remark("vllm", None) is None
    assert version_remark("vllm", "0.19.0") is None
    assert version_remark("llamacpp", "b9999") is None
    for engine, text, newest in (("vllm", "9.9.9", "0.33"), ("vllm", "0.34", "0.33"), ("sglang", "0.6", "0.5.23")):
        assert version_remark(engine, text) == f"{text} is newer than any known version: counted as {newest}"
    for text in ("0.33.0", "0.33.1", "0.28", "0.1"):
        assert f"no log of {text}" in str(version_remark("vllm", text))
    assert "9.9.9 is newer" in report("vllm", version="9.9.9").assumptions[-1]


def test_defaults_of_the_largest_devices() -> None:
    """vllm/engine/arg_utils.py: 16,384 tokens from 160 GiB on since 0.28."""
    study = Study(model=QWEN, device=find_device("b200-sxm"), policy=Policy.REPLICATED)
    tokens = [
        server_report(study, ServerOptions(version=version)).max_num_batched_tokens for version in ("0.27.1", "0.28")
    ]
    assert tokens == [8192, 16_384]


def test_a_sequence_needs_a_block_for_its_state() -> None:
    """Qwen3.6-27B on 0.25.1: "max_num_seqs (1024) exceeds available Mamba cache blocks" (kaito-project/kaito#2319)."""
    model, device = find_model("qwen3.6-27b"), find_device("h100-sxm")
    study = Study(model=model, device=device, context=32_768, policy=Policy.REPLICATED)
    new = server_report(study, ServerOptions(version="0.25.1"))
    assert new.max_num_seqs == 1024 > new.kv_blocks
    assert new.refusal == (
        f"--max-num-seqs 1,024 is more than the {new.kv_blocks:,} blocks for recurrent states: use {new.kv_blocks:,} "
        "or less"
    )
    assert server_report(study, ServerOptions(version="0.19.0")).refusal is None
    assert server_report(study, ServerOptions(version="0.25.1", max_num_seqs=new.kv_blocks)).starts
    assert server_report(study, ServerOptions(version="0.25.1", enforce_eager=True)).refusal is None


def test_a_card_without_bfloat16_is_told_the_type() -> None:
    study = Study(model=QWEN, device=find_device("v100-sxm2-32gb"), context=8192, policy=Policy.REPLICATED)
    assert "--dtype float16" in str(launch_command(server_report(study, ServerOptions())))
    assert "--dtype" not in str(launch_command(report("vllm")))


def test_fp8_while_loading_is_said() -> None:
    study = Study(model=QWEN, device=H200, policy=Policy.REPLICATED, weight_format=FORMATS["fp8"])
    assert "every linear layer in fp8, as --quantization fp8 makes it" in "; ".join(
        server_report(study, ServerOptions()).assumptions
    )
