"""llama.cpp: buffers against those that it reserves itself, placement against logs, the split that fits, builds."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import SpecError
from calc.model.named import NamedFormat, weights_as
from calc.model.spec import ModelSpec, uniform
from calc.model.storage import FORMATS
from calc.model.study import Study
from calc.servers.launch import launch_command
from calc.servers.llamacpp.builds import build_of
from calc.servers.llamacpp.cache import CacheShape, kept_by_layer, layer_bytes, window_cells
from calc.servers.llamacpp.compute import batch_of
from calc.servers.llamacpp.layout import CONTEXT_BYTES, layout_of
from calc.servers.llamacpp.placement import HOST, placed
from calc.servers.llamacpp.split import largest_split
from calc.servers.records import ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.sources.catalog import find_device, find_model, manual_device
from calc.units import GIB
from tests.calc.servers.llamacpp_buffers import CASES, Case
from tests.examples import examples

MIB = 2**20


def study(model: ModelSpec, *, weights: str = "q8_0", memory: int = 24 * GIB, **changes: Any) -> Study:
    return Study(
        model=model,
        device=manual_device(memory),
        **{"context": 8192, "weight_format": FORMATS[weights], **changes},
    )


def report(
    model: str, *, context: int = 8192, weights: str = "q8_0", memory: int = 24 * GIB, **options: Any
) -> ServerReport:
    asked = study(find_model(model), weights=weights, memory=memory, context=context)
    return server_report(asked, ServerOptions(engine="llamacpp", **options))


# Buffers


def of_case(case: Case) -> ServerReport:
    options = dict(case.options)
    cache, slots = FORMATS[options.pop("kv", "bf16")], options.get("max_num_seqs", 1)
    devices = tuple(manual_device(mib * MIB) for mib in case.devices_mib)
    asked = study(find_model(case.model), context=case.cells // slots, kv_format=cache)
    return server_report(asked, ServerOptions(engine="llamacpp", devices=devices, **options))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{'-'.join(case.options) or 'all'}-{case.cells}")
def test_buffers_as_llama_cpp_reserves_them(case: Case) -> None:
    """Weights but for padded rows, the cache but for padded states; all of a device and of the host within 2 %."""
    found = of_case(case)
    for share, (weights, cache, compute) in zip(found.devices, case.devices, strict=True):
        assert share.weight_bytes == pytest.approx(weights, rel=1e-4)
        assert share.kv_bytes == pytest.approx(cache, rel=1e-4)
        assert share.total_bytes == pytest.approx(weights + cache + compute, rel=0.02)
        assert share.compute_bytes == pytest.approx(compute, rel=0.15)
    assert found.host is not None
    weights, cache, compute = case.host
    assert (found.host.weight_bytes, found.host.kv_bytes) == (weights, cache)
    assert found.host.compute_bytes == pytest.approx(compute, rel=0.01)


def test_llama_3_8b_on_one_device() -> None:
    """(8,030,261,248 - the embedding's 525,336,576 - norms) at 34/32 B, 266,240 norm weights at 4 B."""
    found = report("llama-3-8b")
    assert found.weight_bytes_per_gpu == (8_030_261_248 - 525_336_576 - 266_240) * 34 // 32 + 4 * 266_240
    assert found.host is not None
    assert found.host.weight_bytes == 525_336_576 * 34 // 32


def test_a_tied_embedding_is_on_the_host_and_once_on_a_device() -> None:
    tied = find_model("llama-3.2-1b")
    table = tied.vocab_size * tied.hidden_size * 34 // 32
    whole = layout_of(study(tied), ServerOptions(engine="llamacpp")).weight_bytes
    assert whole[HOST] == table
    kept = layout_of(study(tied), ServerOptions(engine="llamacpp", n_gpu_layers=0)).weight_bytes
    assert kept[HOST] == whole[0]  # layers and table; the head is that table
    assert kept[0] == 0


def on_host_and_device(model: ModelSpec, **changes: Any) -> tuple[float, float]:
    """MiB of weights on the host and on one device."""
    held = layout_of(study(model, **changes), ServerOptions(engine="llamacpp")).weight_bytes
    return held[HOST] / MIB, held[0] / MIB


def test_model_buffers_of_public_logs() -> None:
    """TinyLlama in F32 on a GTX 1050 Ti: CPU 250.00 MiB, CUDA0 3,946.35 MiB."""
    host, device = on_host_and_device(find_model("tinyllama-1.1b"), weights="fp32")
    assert host == pytest.approx(250.00, abs=0.005)
    assert device == pytest.approx(3946.35, abs=0.005)


def test_two_unlike_devices_of_a_public_log() -> None:
    """Command R in Q4_K_S, tied, 12 of 40 layers on a 4070 Ti (llama.cpp 6122): the head is on the second device."""
    model = find_model("command-r")
    asked = replace(study(model, context=4096), weight_format=weights_as(NamedFormat("Q4_K_S"), model))
    devices = (find_device("rtx-3090"), find_device("rtx-3090"))
    split = (Fraction(12), Fraction(29))
    layout = layout_of(asked, ServerOptions(engine="llamacpp", devices=devices, tensor_split=split))
    held = {place: round(n / MIB, 2) for place, n in layout.weight_bytes.items()}
    assert held == {HOST: 1640.62, 0: 5434.38, 1: 13_989.53}
    assert layout.cache_bytes(1) == {HOST: 0, 0: 1536 * MIB, 1: 3584 * MIB}


def test_a_load_of_the_wheel_on_a_cpu() -> None:
    """xllamacpp 2026.10.11549, eight small layers in Q8_0: model buffer 140.32 MiB, KV 64.00 MiB for two slots."""
    small = uniform(
        name="small", n_layers=8, n_heads=16, n_kv_heads=4, head_dim=64, hidden_size=1024, intermediate_size=4096,
        vocab_size=8192,
    )  # fmt: skip
    layout = layout_of(study(small, context=4096), ServerOptions(engine="llamacpp", n_gpu_layers=0))
    assert layout.weight_bytes[HOST] / MIB == pytest.approx(140.32, abs=0.005)
    assert layout.cache_bytes(2)[HOST] / MIB == 64


def test_tables_for_every_layer_are_on_the_host() -> None:
    """Gemma 3n: 262,144 rows for each layer, stored as the embedding is and only looked up."""
    plain = uniform(
        name="plain", n_layers=2, n_heads=4, n_kv_heads=4, head_dim=64, hidden_size=256, intermediate_size=512,
        vocab_size=1024,
    )  # fmt: skip
    more = replace(plain, other_params=64_000)
    with_tables, without = on_host_and_device(more), on_host_and_device(plain)
    assert (with_tables[0] - without[0]) * MIB == 64_000 * 34 / 32
    assert with_tables[1] == without[1]


# Placement


def test_layers_of_public_logs() -> None:
    """KV buffers: 782, 736 and 690 MiB of 48 layers (46 MiB each); 12,327 and 11,153 MiB of 40 layers (587 each)."""
    assert _layers_on(placed(48, [1, 1, 1])) == [17, 16, 15]
    assert _layers_on(placed(40, [1, 1])) == [21, 19]


def _layers_on(placement: Any) -> list[int]:
    return [placement.of_layer[:-1].count(device) for device in range(placement.n_devices)]


@examples(200)
@given(
    n_layers=st.integers(1, 200),
    shares=st.lists(st.integers(1, 10**12), min_size=1, max_size=8),
    taken=st.none() | st.integers(0, 300),
)
def test_the_upper_layers_are_on_devices_in_order(n_layers: int, shares: list[int], taken: int | None) -> None:
    placement = placed(n_layers, shares, n_gpu_layers=taken)
    assert len(placement.of_layer) == n_layers + 1
    assert list(placement.of_layer) == sorted(placement.of_layer)
    assert placement.on_devices == (n_layers + 1 if taken is None else min(taken, n_layers + 1))


def test_experts_and_cache_on_the_host() -> None:
    options = ServerOptions(engine="llamacpp", n_cpu_moe=10, kv_on_host=True)
    layout = layout_of(study(find_model("qwen3-30b-a3b")), options)
    experts = 128 * 3 * 2048 * 768 * 34 // 32
    assert layout.weight_bytes[HOST] == layout.weights.input + 10 * experts
    assert layout.cache_bytes(1) == {HOST: 48 * 8192 * 2 * 4 * 128 * 2, 0: 0}
    with pytest.raises(SpecError, match="no routed experts"):
        report("llama-3-8b", n_cpu_moe=1)


def test_unlike_devices_share_by_their_memory() -> None:
    devices = (find_device("rtx-3090"), find_device("rtx-3060"))
    found = report("llama-3-8b", devices=devices)
    assert [share.name for share in found.devices] == [device.name for device in devices]
    assert found.devices[0].weight_bytes > 1.7 * found.devices[1].weight_bytes
    halves = report("llama-3-8b", devices=devices, tensor_split=(Fraction(1), Fraction(1)))
    assert halves.devices[0].kv_bytes == 17 * 8192 * 4096
    with pytest.raises(SpecError, match="1 shares for 2 devices"):
        report("llama-3-8b", devices=devices, tensor_split=(Fraction(1),))


# Slots


def test_one_slot_unless_more_are_asked_for() -> None:
    one = report("llama-3-8b")
    assert one.max_num_seqs == 1
    assert "--parallel 1 " in (launch_command(one) or "")
    held = one.devices[0].total_bytes + CONTEXT_BYTES + (one.requests - 1) * 8192 * 131_072
    assert held <= 24 * GIB < held + 8192 * 131_072 * 1.1
    four = report("llama-3-8b", max_num_seqs=4)
    assert (four.kv_pool_bytes, four.kv_tokens, four.max_concurrency) == (4 * 8192 * 131_072, 4 * 8192, 4)


def test_window_cells() -> None:
    assert window_cells(1024, n_seq=4, n_ubatch=512, n_ctx=1_000_000) == 4608
    assert window_cells(1024, n_seq=1, n_ubatch=512, n_ctx=1024) == 1024


@pytest.mark.parametrize(
    ("context", "slots", "mib"), [(2048, 1, 45.0), (5000, 1, 112.5), (8192, 1, 180.0), (5000, 4, 444.38)]
)
def test_kv_buffers_as_measured(context: int, slots: int, mib: float) -> None:
    """SmolLM2-135M, f16 cache, unified: "KV buffer size" of llama.cpp itself."""
    found = report("smollm2-135m", context=context, max_num_seqs=slots)
    assert found.kv_pool_bytes / MIB == pytest.approx(mib, abs=0.005)


def cache_of(model: ModelSpec, *, context: int, build: int = 11_549) -> int:
    shape = CacheShape(context=context, slots=1, ubatch=512, key_bytes=2, value_bytes=2)
    return sum(layer_bytes(each, shape) for layer in kept_by_layer(model, build) for each in layer)


def test_caches_of_windows() -> None:
    """Gemma 3 1B: 4 full layers, 22 of 512 + 512 cells; Phi-3: its window is switched off (4,096 of 3,072 x 2)."""
    row = 2 * 256 * 2
    assert cache_of(find_model("gemma-3-1b"), context=8192) == row * (4 * 8192 + 22 * 1024)
    assert cache_of(find_model("phi-3.5-mini"), context=4096) == 1_610_612_736
    assert cache_of(find_model("mistral-7b-v0.1"), context=16_384) == 32 * 16_384 * 4096


# The split that fits


def test_the_split_of_a_dense_model() -> None:
    """One layer more does not fit."""
    asked = study(find_model("llama-3-8b"), memory=8 * GIB)
    found = largest_split(asked, ServerOptions(engine="llamacpp"))
    assert found is not None
    assert found.fits
    assert found.n_cpu_moe == 0
    one_more = ServerOptions(engine="llamacpp", n_gpu_layers=(found.n_gpu_layers or 0) + 1)
    assert not server_report(asked, one_more).fits
    assert f"--n-gpu-layers {found.n_gpu_layers} " in (launch_command(found) or "")


def test_experts_go_to_the_host_before_layers_do() -> None:
    asked = study(find_model("qwen3-30b-a3b"), memory=16 * GIB)
    found = largest_split(asked, ServerOptions(engine="llamacpp"))
    assert found is not None
    assert (found.n_gpu_layers, found.fits) == (49, True)
    one_less = ServerOptions(engine="llamacpp", n_cpu_moe=found.n_cpu_moe - 1)
    assert not server_report(asked, one_less).fits
    assert f"--n-cpu-moe {found.n_cpu_moe} " in (launch_command(found) or "")
    tiny = largest_split(replace(asked, device=manual_device(2 * GIB)), ServerOptions(engine="llamacpp"))
    assert tiny is not None
    assert tiny.n_cpu_moe == 48
    assert (tiny.n_gpu_layers or 0) < 49
    old = largest_split(asked, ServerOptions(engine="llamacpp", version="b6000"))
    assert old is not None
    assert (old.n_cpu_moe, (old.n_gpu_layers or 0) < 49) == (0, True)


def test_no_split_fits_a_device_without_room_for_a_batch() -> None:
    assert largest_split(study(find_model("llama-3-8b"), memory=GIB // 2), ServerOptions(engine="llamacpp")) is None


# Builds


@pytest.mark.parametrize(("text", "build"), [("b4800", 4800), ("7003 (596a297cb)", 7003), (" B6089 ", 6089)])
def test_builds(text: str, build: int) -> None:
    assert build_of(text) == build


@pytest.mark.parametrize("text", ["9.9.9", "0.19.0", "latest", "b", "12"])
def test_what_is_no_build_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="looks like b6089"):
        build_of(text)


def test_before_the_latent_cache_every_head_was_kept() -> None:
    """DeepSeek-V3: 61 layers x 128 heads x (192 + 128) x 2 B = 4,997,120 B per token."""
    deepseek = find_model("deepseek-v3")
    assert cache_of(deepseek, context=256, build=4800) == 256 * 4_997_120
    assert cache_of(deepseek, context=256) == 256 * 61 * 576 * 2


def test_before_the_window_cache_windows_kept_the_whole_context() -> None:
    """Gemma 3 27B on b4800: 62 layers x 16 heads x 128 x 2 x 2 B."""
    gemma = find_model("gemma-3-27b")
    assert cache_of(gemma, context=20_480, build=4800) == 62 * 20_480 * 8192
    said = report("gemma-3-27b", version="b4800").assumptions
    assert "window layers cache the whole context before b5554" in said


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"n_cpu_moe": 1}, "--n-cpu-moe: it came with b6089"),
        ({"cache_ram_bytes": GIB}, "--cache-ram: it came with b6725"),
        ({"swa_full": True}, "--swa-full: it came with b5554"),
    ],
)
def test_a_build_before_an_option_refuses_it(option: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        report("gpt-oss-20b", version="b4800", **option)


def test_a_build_before_a_quantized_cache_refuses_it() -> None:
    asked = study(find_model("llama-3-8b"), kv_format=FORMATS["q8_0"])
    for version, words in (("b1500", "no quantized cache"), ("b2000", "only quantizes K")):
        with pytest.raises(SpecError, match=words):
            server_report(asked, ServerOptions(engine="llamacpp", version=version))


def test_the_prompt_cache_of_the_host() -> None:
    assert [_prompts(version=version) for version in (None, "b6000")] == [8 * GIB, 0]
    assert _prompts(cache_ram_bytes=GIB) == GIB


def _prompts(**options: Any) -> int:
    host = report("llama-3-8b", **options).host
    assert host is not None
    return host.prompt_cache_bytes


def test_launch_lines_of_a_build() -> None:
    new = launch_command(report("llama-3-8b", max_num_seqs=3, cache_ram_bytes=GIB, kv_on_host=True)) or ""
    assert "--ctx-size 24576 --parallel 3 " in new
    assert "--n-gpu-layers 999 " in new
    assert new.endswith("--cache-ram 1024 --flash-attn on --no-kv-offload --kv-unified")
    old = launch_command(report("llama-3-8b", max_num_seqs=3, version="b5000")) or ""
    assert old.endswith("--flash-attn")


def test_every_kind_of_layer_has_a_mask_of_its_own() -> None:
    """DeepSeek-V4 keeps rows of 4 and of 128 tokens beside its windows: 2,048, 256 and 128 + 512, padded, cells.

    Which of the first two was counted was up to the order of a set: 103.5 MB in one process, 101.7 in the next.
    """
    shape = CacheShape(context=8192, slots=1, ubatch=512, key_bytes=2, value_bytes=2)
    batch = batch_of(kept_by_layer(find_model("deepseek-v4-flash"), build_of(None)), shape, 1)
    assert batch.mask_bytes == (2048 + 256 + 768) * 512 * 2
