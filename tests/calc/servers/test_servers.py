"""Servers' formulas and policies: goldens from start-up logs in our own form, rules by version, properties."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import lcm

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.server_models import facts, models
from calc.errors import SpecError
from calc.model.count import parameters
from calc.model.layers import Attention, Dense, LayerSpec, Mamba2, Stated
from calc.model.pipeline import stage_layers
from calc.model.shares import padded_vocab
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.servers.facts import facts_from_config
from calc.servers.launch import launch_command
from calc.servers.records import ModelFacts, ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.servers.versions import default_batched_tokens, default_max_seqs, default_utilization, is_large, parse_version
from calc.servers.vllm_budget import capture_sizes, encoder_peak, sampler_peak
from calc.servers.vllm_cache import aligned_block_size, group_size
from calc.servers.weights import allocated, stage_weight_bytes
from calc.sources.catalog import find_device, find_model, manual_device
from tests.examples import examples

GIB = 2**30
MIB = 2**20
H100 = find_device("h100-sxm")


def study(model: ModelSpec, **changes: object) -> Study:
    values: dict[str, object] = {"model": model, "device": H100, "context": 8192, "policy": Policy.REPLICATED}
    return Study(**{**values, **changes})  # type: ignore[arg-type]


def gib(size: float) -> int:
    return int(size * GIB)


# What a log says, given its pool: model, GiB, length, options, tokens, concurrency (facts of public logs).
GOLDENS = [
    ("Qwen/Qwen2.5-3B-Instruct", 14.74, 4096, {"version": "0.17.0"}, 429_328, 104.82),
    ("meta-llama/Meta-Llama-3-8B", 62.52, 8192, {"version": "0.13.0", "tp": 4}, 2_048_704, 250.09),
    ("Qwen/Qwen3-235B-A22B", 11.51, 32_768, {"version": "0.10.2", "tp": 8}, 256_800, 7.84),
    ("google/gemma-3-27b-it", 109.86, 4096, {"version": "0.11.0rc2"}, 205_696, 50.05),
    ("google/gemma-2-9b-it", 54.12, 8192, {"version": "0.19.0"}, 168_880, 20.60),
    ("google/gemma-3-4b-it", 62.51, 8192, {"version": "0.19.0"}, 468_144, 57.05),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 16.75, 8192, {"version": "0.19.0", "tp": 4}, 365_968, 44.68),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", 44.59, 262_144, {"version": "0.10.2", "tp": 2}, 973_760, 14.77),
    ("Qwen/Qwen3.5-27B", 7.47, 32_768, {"version": "0.19.0", "tp": 4}, 122_304, 13.87),
    ("Qwen/Qwen3.8-27B", 80.17, 262_144, {"version": "0.25.1", "speculative_layers": 1}, 1_191_213, 4.54),
    ("google/gemma-4-26B-A4B-it", 83.89, 262_144, {"version": "0.25.1", "max_num_batched_tokens": 2496},
     3_875_400, 14.78),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pool", "length", "options", "tokens", "concurrency"), GOLDENS)
def test_logs_of_vllm(
    name: str, pool: float, length: int, options: dict[str, object], tokens: int, concurrency: float
) -> None:
    known = facts().get(name, ModelFacts())
    asked = ServerOptions(kv_pool_bytes=gib(pool), facts=known, **options)  # type: ignore[arg-type]
    report = server_report(study(models()[name], context=length), asked)
    assert report.kv_tokens == pytest.approx(tokens, rel=0.001)
    assert report.max_concurrency == pytest.approx(concurrency, rel=0.002)


def test_budget_of_llama_on_h100_equals_the_run() -> None:
    options = ServerOptions(version="0.19.0", gpu_memory_utilization=Fraction(95, 100))
    report = server_report(study(find_model("llama-3.1-8b")), options)
    assert report.weight_bytes_per_gpu / GIB == pytest.approx(14.99, abs=0.005)
    assert report.activation_bytes / GIB == pytest.approx(1.89, abs=0.01)
    assert report.kv_pool_bytes / GIB == pytest.approx(58.11, abs=0.02)
    assert report.kv_tokens == pytest.approx(476_016, rel=0.001)
    assert (report.block_size, report.groups[0].blocks_per_request) == (16, 512)
    low, high = report.bands["kv_pool_bytes"]
    assert low < report.kv_pool_bytes < high


def test_the_pool_is_the_budget_less_its_parts() -> None:
    options = ServerOptions(version="0.26.0", gpu_memory_utilization=Fraction(9, 10))
    report = server_report(study(find_model("llama-3.1-8b")), options)
    parts = report.weight_bytes_per_gpu + report.activation_bytes + report.non_torch_bytes + report.cuda_graph_bytes
    assert report.kv_pool_bytes == -(-H100.memory_bytes * 9 // 10) - parts
    assert report.kv_blocks == report.kv_pool_bytes // (2 * 32 * 8 * 128 * 2 * 16)
    eager = server_report(study(find_model("llama-3.1-8b")), replace(options, enforce_eager=True))
    assert eager.cuda_graph_bytes == 0
    assert eager.kv_pool_bytes == report.kv_pool_bytes + report.cuda_graph_bytes


def test_graphs_are_outside_the_budget_before_0_21() -> None:
    options = ServerOptions(version="0.19.0")
    graphs = server_report(study(find_model("llama-3.1-8b")), options)
    eager = server_report(study(find_model("llama-3.1-8b")), replace(options, enforce_eager=True))
    assert graphs.cuda_graph_bytes > 0
    assert graphs.kv_pool_bytes == eager.kv_pool_bytes


def test_a_model_too_large_is_an_answer() -> None:
    report = server_report(study(find_model("llama-3.1-70b")), ServerOptions())
    assert not report.fits
    assert report.kv_pool_bytes < 0
    assert (report.kv_blocks, report.kv_tokens, report.max_concurrency) == (0, 0, 0.0)


# Versions and defaults


def test_defaults_by_version_and_device() -> None:
    assert default_utilization((0, 21, 3)) == Fraction(9, 10)
    assert default_utilization((0, 22)) == Fraction(92, 100)
    assert is_large("NVIDIA H100 SXM", gib(79.19))
    assert not is_large("NVIDIA A100 SXM 80GB", gib(79.25))
    assert not is_large("NVIDIA L40S", gib(44.5))
    assert default_batched_tokens((0, 19), large=True) == 8192
    assert default_batched_tokens((0, 19), large=False) == 2048
    assert default_max_seqs((0, 19), large=True) == 1024
    assert default_max_seqs((0, 6), large=True) == 256


@pytest.mark.parametrize("text", ["", "latest", "x0.9"])
def test_a_version_that_is_none(text: str) -> None:
    with pytest.raises(SpecError, match="engine version"):
        parse_version(text)


def test_tokens_are_printed_from_concurrency_since_0_21() -> None:
    model, pool = models()["google/gemma-2-2b-it"], gib(66.47)
    old = server_report(study(model), ServerOptions(version="0.19.0", kv_pool_bytes=pool))
    new = server_report(study(model), ServerOptions(version="0.25.0", kv_pool_bytes=pool))
    assert old.kv_blocks == new.kv_blocks
    assert old.kv_tokens == old.kv_blocks // 2 * 16
    assert new.kv_tokens == new.kv_blocks * 8192 // 1025


def test_window_layers_cost_the_whole_context_without_groups() -> None:
    model, pool = models()["google/gemma-3-12b-it"], gib(40)
    asked = ServerOptions(version="0.19.0", kv_pool_bytes=pool)
    groups = server_report(study(model, context=131_072), asked)
    whole = server_report(study(model, context=131_072), replace(asked, disable_hybrid=True))
    assert whole.max_concurrency == pool // (48 * 2 * 8 * 256 * 2 * 16) / (131_072 // 16)
    assert groups.max_concurrency > 3 * whole.max_concurrency


def test_latent_cache_is_on_every_rank_and_dcp_shares_it() -> None:
    model, pool = models()["deepseek-ai/DeepSeek-R1"], gib(10)
    alone = server_report(study(model), ServerOptions(tp=8, kv_pool_bytes=pool))
    shared = server_report(study(model), ServerOptions(tp=8, dcp=8, kv_pool_bytes=pool))
    assert alone.kv_blocks == pool // (61 * 576 * 2 * 16)
    assert shared.kv_tokens == 8 * alone.kv_tokens
    assert shared.max_concurrency == pytest.approx(8 * alone.max_concurrency)


def test_blocks_of_latent_attention() -> None:
    """335,168 tokens of DeepSeek-R1 on 0.8.4 are blocks of 64; 1,890,896 of Kimi-VL on 0.19 are only of 16."""
    plain, sparse = models()["deepseek-ai/DeepSeek-R1"], models()["deepseek-ai/DeepSeek-V3.2"]
    assert server_report(study(plain), ServerOptions(tp=16, version="0.8.4")).block_size == 64
    assert server_report(study(plain), ServerOptions(tp=16, version="0.19.0")).block_size == 16
    assert server_report(study(sparse), ServerOptions(tp=16, version="0.19.0")).block_size == 64


def test_what_vllm_refuses_is_refused() -> None:
    with pytest.raises(SpecError, match="10 KV heads are not divisible by 4"):
        server_report(study(models()["microsoft/phi-4"]), ServerOptions(tp=4))
    with pytest.raises(SpecError, match="32 query heads are not divisible by TP 5"):
        server_report(study(find_model("llama-3-8b")), ServerOptions(tp=5))
    with pytest.raises(SpecError, match="32 layers are fewer than the 40"):
        server_report(study(find_model("llama-3-8b")), ServerOptions(pp=40))
    with pytest.raises(SpecError, match="stage 11 of 16 has no layer with a cache"):
        server_report(study(models()["nvidia/NVIDIA-Nemotron-3-Nano-4B-FP8"]), ServerOptions(pp=16))
    stated = LayerSpec(
        hidden_size=64,
        mixers=(Stated(label="rare", params=10, state_elements=5),),
        feed_forwards=(Dense(intermediate_size=64),),
        norm_params=64,
    )
    rare = ModelSpec(name="rare", vocab_size=64, layers=(stated,))
    with pytest.raises(SpecError, match="state of a rare layer"):
        server_report(study(rare), ServerOptions())


# Formulas


@pytest.mark.parametrize(
    ("counts", "size"), [([5, 29], 5), ([17, 48], 17), ([12, 36], 12), ([21, 21], 21), ([10, 14], 14)]
)
def test_group_size(counts: list[int], size: int) -> None:
    assert group_size(counts) == size


def test_a_state_page_lengthens_the_blocks() -> None:
    """Block sizes in logs: 544 (Qwen3-Next, tp 2), 784 (Qwen3.5-27B, tp 4), 2144 (Qwen3.6-35B, fp8, 3 guessed)."""
    assert aligned_block_size(page_bytes=(32 * 128 * 128 * 2 + 8192 * 3 * 2) // 2, token_bytes=1024) == 544
    assert aligned_block_size(page_bytes=(48 * 128 * 128 * 4 + 10_240 * 3 * 2) // 4, token_bytes=1024) == 784
    assert aligned_block_size(page_bytes=32 * 128 * 128 * 4 + 8192 * 6 * 2, token_bytes=1024) == 2144


def test_the_allocator_rounds_large_tensors() -> None:
    assert allocated(231 * MIB) == 232 * MIB
    assert allocated(114 * MIB + MIB // 2) == 114 * MIB + MIB // 2  # a rest above 1 MiB is given back
    assert allocated(9 * MIB + 1) == 9 * MIB + 1


def test_pipeline_stages_of_llama_equal_the_runs() -> None:
    """vLLM 0.19, PP 4: 4.26 GiB on the first stage, 3.28 on a middle one."""
    model = find_model("llama-3.1-8b")
    sizes = [
        stage_weight_bytes(model, FORMATS["bf16"], tp=1, stage=stage, plain=2, facts=ModelFacts()) / GIB
        for stage in stage_layers(32, 4)
    ]
    assert sizes == pytest.approx([4.26, 3.28, 3.28, 4.26], abs=0.005)


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen2.5-7b", "gemma-7b", "qwen3-8b"])
def test_weights_of_one_rank_are_the_parameters(name: str) -> None:
    """Beside rotary tables, padding and rounding (below 1 %), nothing is added."""
    model = find_model(name)
    size = stage_weight_bytes(
        model, FORMATS["bf16"], tp=1, stage=(0, model.n_layers), plain=2, facts=ModelFacts(rope_elements=0)
    )
    assert 0 <= size - 2 * parameters(model).total < 0.01 * size


@examples(40)
@given(vocab=st.integers(1, 300_000), tp=st.sampled_from([1, 2, 3, 4, 6, 8]))
def test_padded_vocabulary(vocab: int, tp: int) -> None:
    """The least that is a multiple of 64 and that the ranks divide, as vLLM insists."""
    padded = padded_vocab(vocab, tp)
    assert padded % 64 == 0 == padded % tp
    assert vocab <= padded < vocab + lcm(64, tp)


def test_capture_sizes_and_sampler() -> None:
    assert [capture_sizes(n) for n in (1, 4, 64, 128, 256, 1024)] == [2, 4, 19, 35, 51, 51]
    peak = sampler_peak(
        max_num_seqs=1024, vocab_size=1000, sampler_words=3, element_bytes=2, batched_tokens=10, hidden_size=5
    )
    assert peak == 1024 * 1000 * 14 + 100


# Other servers


def test_sglang_reserves_a_share_of_what_is_free() -> None:
    """Llama-3-8B on H200 with 0.8718: 871,371 tokens in the log."""
    options = ServerOptions(engine="sglang", gpu_memory_utilization=Fraction(8718, 10_000))
    report = server_report(study(find_model("llama-3-8b"), device=find_device("h200-sxm")), options)
    assert report.kv_tokens == pytest.approx(871_371, rel=0.001)
    assert report.block_size == 1
    assert report.kv_pool_bytes // 131_072 == report.kv_tokens


def test_sglang_data_parallel_attention() -> None:
    """Qwen3-Coder-480B, tp 16 with 4 attention groups, pages of 128: 156,800 tokens per group in the log."""
    model = models()["Qwen/Qwen3-Coder-480B-A35B"]
    options = ServerOptions(engine="sglang", tp=16, dp_attention=4, block_size=128, kv_pool_bytes=gib(9.28))
    assert server_report(study(model), options).kv_tokens == 156_800


def test_transformers_grows_its_cache() -> None:
    report = server_report(study(models()["google/gemma-2-2b-it"]), ServerOptions(engine="transformers"))
    row = 2 * 4 * 256 * 2
    assert report.kv_request_bytes == row * (13 * 8192 + 13 * 4095)
    assert report.weight_bytes_per_gpu == 2 * parameters(models()["google/gemma-2-2b-it"]).total


def test_transformers_repeats_the_heads_of_falcon() -> None:
    plain = study(models()["meta-llama/Meta-Llama-3-8B"])
    once = server_report(plain, ServerOptions(engine="transformers"))
    repeated = server_report(plain, ServerOptions(engine="transformers", facts=ModelFacts(repeated_kv=True)))
    assert repeated.kv_request_bytes == 4 * once.kv_request_bytes


@pytest.mark.parametrize("engine", ["transformers", "llamacpp"])
@pytest.mark.parametrize(
    "option", [{"pp": 2}, {"block_size": 16}, {"gpu_memory_utilization": Fraction(1, 2)}], ids=lambda o: next(iter(o))
)
def test_options_that_a_server_does_not_have_are_refused(engine: str, option: dict[str, object]) -> None:
    asked = ServerOptions(engine=engine, **option)  # type: ignore[arg-type]
    with pytest.raises(SpecError):
        server_report(study(find_model("llama-3-8b")), asked)


@examples(60)
@given(
    engine=st.sampled_from(["vllm", "sglang", "transformers", "llamacpp"]),
    context=st.integers(1, 200_000),
    memory=st.integers(1, 300),
    name=st.sampled_from(sorted(models())),
)
def test_every_report_keeps_within_its_pool(engine: str, context: int, memory: int, name: str) -> None:
    asked = study(models()[name], context=context, device=manual_device(memory * GIB))
    report = server_report(asked, ServerOptions(engine=engine, facts=facts().get(name, ModelFacts())))
    assert report.max_concurrency >= 0
    assert report.kv_blocks >= 0
    if report.kv_pool_bytes <= 0:
        assert not report.fits
    elif engine in ("vllm", "transformers"):
        assert int(report.max_concurrency) * report.kv_request_bytes <= report.kv_pool_bytes * 1.0001 + 1
    for low, high in report.bands.values():
        assert low <= high


# Facts of a config, launch commands


def test_facts_of_a_config() -> None:
    text = {"max_position_embeddings": 131_072, "head_dim": 256, "hidden_size": 2560, "num_attention_heads": 8}
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304,
              "num_hidden_layers": 27, "patch_size": 14, "image_size": 896}  # fmt: skip
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 10_000}
    config = {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "text_config": {**text, **linear, "model_type": "gemma3_text"},
        "vision_config": siglip,
    }
    known = facts_from_config(config)
    assert known.rope_elements == 131_072 * 9 * 256
    assert known.vision_params == pytest.approx(419_820_000, rel=0.001)  # counted with transformers
    assert (known.image_elements, known.image_tokens, known.multimodal) == (3 * 896 * 896, 256, True)
    assert facts_from_config(text).rope_elements == 131_072 * 256
    yarn = {**text, "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32_768}}
    assert facts_from_config(yarn).rope_elements == 131_072 * 256
    assert facts_from_config({"mamba_ssm_dtype": "float32"}).state_element_bytes == 4
    assert facts_from_config({"model_type": "falcon", "new_decoder_architecture": True}).repeated_kv


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers())))
def test_facts_of_anything_never_fail(noise: dict[str, object]) -> None:
    for inner in (noise, {"text_config": noise, "vision_config": noise}, {"rope_scaling": noise, "head_dim": 8}):
        assert facts_from_config(inner).vision_params >= 0


def _report(engine: str, **options: object) -> ServerReport:
    asked = ServerOptions(engine=engine, **options)  # type: ignore[arg-type]
    return server_report(study(find_model("llama-3.1-8b"), kv_format=FORMATS["fp8"]), asked)


def test_launch_commands() -> None:
    vllm = launch_command(_report("vllm", tp=2, gpu_memory_utilization=Fraction(95, 100)))
    assert vllm.startswith("vllm serve meta-llama/Llama-3.1-8B --max-model-len 8192 --tensor-parallel-size 2 ")
    assert "--gpu-memory-utilization 0.95" in vllm
    assert "--kv-cache-dtype fp8" in vllm
    assert "--max-num-batched-tokens 8192 --max-num-seqs 1024" in vllm
    sglang = launch_command(_report("sglang", tp=4, dp_attention=2))
    assert "--tp-size 4 --dp-size 2" in sglang
    assert "--enable-dp-attention" in sglang
    assert "--mem-fraction-static 0.761" in sglang
    drafted = launch_command(_report("sglang", speculative_layers=1))
    assert "--speculative-algorithm NEXTN" in drafted
    assert "DynamicCache" in launch_command(_report("transformers"))


def test_a_model_without_attention_has_a_block_a_sequence() -> None:
    state = Mamba2(inner=1024, n_heads=16, groups=1, state=64, kernel=4)
    layer = LayerSpec(hidden_size=512, mixers=(state,), feed_forwards=(), norm_params=512)
    model = ModelSpec(name="mamba", vocab_size=1000, layers=(layer,) * 4)
    report = server_report(study(model), ServerOptions(kv_pool_bytes=GIB))
    page = (1024 * 64 + (1024 + 2 * 64) * 3) * 2
    assert report.kv_blocks == GIB // (4 * page)
    assert report.max_concurrency == report.kv_blocks


def test_attention_layers_of_another_width_share_one_pool() -> None:
    """Global layers with half the bytes per token get blocks of twice the tokens (Gemma 4)."""
    slide = Attention(n_heads=8, n_kv_heads=8, head_dim=64, value_dim=64, window=1024)
    full = Attention(n_heads=8, n_kv_heads=4, head_dim=64, value_dim=64)
    part = (Dense(intermediate_size=512),)
    kinds = [LayerSpec(hidden_size=512, mixers=(m,), feed_forwards=part, norm_params=0) for m in (slide, full)]
    layers = (kinds[0], kinds[0], kinds[1])
    model = ModelSpec(name="two", vocab_size=100, layers=layers)
    report = server_report(study(model, context=32_768), ServerOptions(kv_pool_bytes=GIB, max_num_batched_tokens=1024))
    by_kind = {group.kind: group for group in report.groups}
    assert by_kind["full"].block_tokens == 2 * by_kind["sliding"].block_tokens == 32
    assert by_kind["full"].blocks_per_request == 1024
    assert by_kind["sliding"].blocks_per_request == -(-(1023 + 1024) // 16) + 1


def test_the_largest_image_goes_through_the_encoder() -> None:
    """Qwen2.5-VL: 65,536 patches of 2 x 3 x 14 x 14 elements; TP 4 gathers Q, K and V of all heads of 1,280."""
    vision = {"model_type": "qwen2_5_vl", "hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "patch_size": 14,
              "spatial_merge_size": 2, "temporal_patch_size": 2}  # fmt: skip
    known = facts_from_config({"model_type": "qwen2_5_vl", "vision_config": vision, "hidden_size": 8192})
    assert (known.image_patches, known.image_tokens, known.image_elements) == (65_536, 16_384, 65_536 * 1176)
    peaks = [encoder_peak(batched_tokens=2048, tp=tp, element_bytes=2, facts=known) for tp in (1, 4)]
    whole, gathered = 2 * 1280 + max(11 * 1280, 4 * 3420), 2 * 1280 + 3 * 1280 + 6 * 320
    assert peaks == [65_536 * (inside + 1176) * 2 for inside in (whole, gathered)]


def test_launch_commands_say_how_windows_and_states_are_kept() -> None:
    windows, states = find_model("gemma-3-12b"), find_model("qwen3.5-35b-a3b")
    asked = {"device": find_device("h200"), "context": 8192, "policy": Policy.REPLICATED}
    whole = ServerOptions(disable_hybrid=True)
    assert "--disable-hybrid-kv-cache-manager" in launch_command(server_report(Study(model=windows, **asked), whole))
    cached = ServerOptions(prefix_caching_of_states=True)
    assert "--enable-prefix-caching" in launch_command(server_report(Study(model=states, **asked), cached))
