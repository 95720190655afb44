"""Rarer caches as servers keep them: compressed rows, keys of block indexers, states without a cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from calc.errors import SpecError
from calc.hf.build import spec_from_config
from calc.model.spec import ModelSpec
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.servers.llamacpp.layout import layout_of
from calc.servers.records import ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.servers.serving import as_served
from calc.servers.versions import steps_at_once
from calc.sources.catalog import find_device, find_model, manual_device
from tests.calc.hf.test_architectures_of_2026 import RING_MINI
from tests.calc.sources.test_gguf_llama_cpp import LINES, load

GIB, MIB = 2**30, 2**20


def report(model: ModelSpec, *, context: int, device: str = "h200", **options: Any) -> ServerReport:
    study = Study(model=model, device=find_device(device), context=context, policy=Policy.REPLICATED)
    asked = ServerOptions(**options)
    return server_report(as_served(study, asked, weights_given=False, cache_given=False), asked)


# llama.cpp


@pytest.mark.parametrize("arch", sorted(LINES))
def test_llama_cpp_allocates_this_cache_for_every_architecture(arch: str, tmp_path: Any) -> None:
    """65,536 tokens in F16, as llama.cpp printed it."""
    line = LINES[arch]
    model = load(tmp_path / "m.gguf", arch, line)
    study = Study(model=model, device=manual_device(10**13), context=65_536, policy=Policy.REPLICATED)
    layout = layout_of(study, ServerOptions(engine="llamacpp"))
    said = sum(mib for _, _, mib in line["cache"]) + line["state"]
    assert sum(layout.cache_bytes(1).values()) / MIB == pytest.approx(said, abs=0.02)


@pytest.mark.parametrize(("arch", "mib"), [("glm5-next", 60 + 144), ("minimax-m3", 384 + 192), ("qwen4exp", 96 + 24)])
def test_index_keys_of_another_width(arch: str, mib: int, tmp_path: Any) -> None:
    """Loads of the same files with an indexer of 64 in place of 32: three rows, a row of 64 values, no more."""
    model = load(tmp_path / "m.gguf", arch, LINES[arch])
    wide = [
        replace(layer, mixers=tuple(replace(m, index_dim=64) if m.index_elements else m for m in layer.mixers))
        for layer in model.layers
    ]
    study = Study(model=replace(model, layers=tuple(wide)), device=manual_device(10**13), context=65_536)
    cache = sum(layout_of(study, ServerOptions(engine="llamacpp")).cache_bytes(1).values())
    assert cache / MIB - LINES[arch]["state"] == pytest.approx(mib, abs=0.02)


def test_llama_cpp_gives_every_slot_cells_of_compressed_rows() -> None:
    model, device = find_model("deepseek-v4-flash"), manual_device(10**13)
    layout = layout_of(Study(model=model, device=device, context=65_536), ServerOptions(engine="llamacpp"))
    assert sum(layout.cache_bytes(2).values()) == 2 * sum(layout.cache_bytes(1).values())


def test_a_build_before_an_architecture() -> None:
    with pytest.raises(SpecError, match="does not support the cache of compressed attention: it came with b9510"):
        report(find_model("deepseek-v4-flash"), context=4096, engine="llamacpp", version="b9000")


# vLLM


def test_deepseek_v4_as_a_log_of_vllm_0_22_has_it() -> None:
    """vllm-project/vllm#44376: 30,000 tokens need 6.66 GiB; 13,528 is the most that 5.44 GiB hold."""
    model = find_model("deepseek-v4-flash")
    asked: dict[str, Any] = {"version": "0.22.0", "tp": 2, "max_num_batched_tokens": 16_384}
    needed = report(model, context=30_000, **asked)
    assert needed.kv_request_bytes / GIB == pytest.approx(6.66, abs=0.005)
    assert len(needed.groups) == 5
    assert report(model, context=13_528, **asked).kv_request_bytes / GIB == pytest.approx(5.44, abs=0.005)


def test_a_block_of_deepseek_v4_by_hand() -> None:
    """21 layers of rows for 4 tokens, 20 for 128, 43 windows; slots until 0.28, pages side by side since."""
    rows, keys, wide = 64 * 584 + 64, 64 * 132 + 192, 2 * 584 + 560  # to multiples of 576
    model, asked = find_model("deepseek-v4-flash"), {"kv_pool_bytes": 10 * GIB}
    for version, block in (("0.28.0", 22 * (rows + keys + wide)), ("0.33", 21 * (rows + keys) + 20 * wide)):
        assert report(model, context=65_536, version=version, **asked).kv_blocks == 10 * GIB // block


def test_windows_hold_two_steps_since_0_26() -> None:
    assert [steps_at_once(v, pp) for v, pp in (((0, 25, 1), 2), ((0, 26), 1), ((0, 26), 2), ((0, 33), 2))] == [
        1,
        2,
        2,
        3,
    ]
    model = find_model("gemma-3-27b")
    old, new = (report(model, context=65_536, version=version) for version in ("0.25.1", "0.26.0"))
    blocks = [max(g.blocks_per_request for g in each.groups if g.kind == "sliding") for each in (old, new)]
    assert blocks == [-(-(1023 + 8192) // 16) + 1, -(-(1023 + 2 * 8192) // 16) + 1]


def test_minimax_m3_keeps_index_keys_beside_k_and_v() -> None:
    """60 layers of 4 KV heads x 2 x 128, 57 index keys of 128, all in 16 bits; TP 4."""
    each = 60 * 1 * 256 * 2 + 57 * 128 * 2
    for engine, version in (("vllm", "0.33"), ("sglang", "0.5.23")):
        found = report(find_model("minimax-m3"), context=4096, engine=engine, version=version, tp=4)
        assert found.kv_request_bytes == 4096 * each


def test_versions_that_lack_a_model() -> None:
    flash, m3 = find_model("deepseek-v4-flash"), find_model("minimax-m3")
    with pytest.raises(SpecError, match=r"vllm 0\.19\.0 does not support .* use --engine-version 0\.20 or later"):
        report(flash, context=4096, version="0.19.0")
    assert report(flash, context=4096, tp=2).version == "0.33"
    assert report(m3, context=4096, tp=8).version == "0.33"
    with pytest.raises(SpecError, match="how sglang stores the cache of compressed attention is not known"):
        report(flash, context=4096, engine="sglang")


def test_lightning_attention_in_versions_that_had_it(tmp_path: Any) -> None:
    """A state of heads x 64 x 64 in the type of the activations; taken out of vLLM in 0.23."""
    model = load(tmp_path / "m.gguf", "minimax-01", LINES["minimax-01"])
    found = report(model, context=4096, version="0.19.0")
    states = next(group for group in found.groups if group.kind == "recurrent")
    assert states.layers == 1
    assert found.block_size == 16 * -(-4 * 64 * 64 * 2 // (16 * 2 * 128 * 2))
    with pytest.raises(SpecError, match=r"only versions from 0\.11 to before 0\.23 have it"):
        report(model, context=4096, version="0.26.0")


def test_compressed_attention_is_kept_in_fp8_alone() -> None:
    model = find_model("deepseek-v4-flash")
    study = Study(
        model=model, device=find_device("h200"), context=4096, kv_format=FORMATS["bf16"], policy=Policy.REPLICATED
    )
    with pytest.raises(SpecError, match="compressed attention in fp8"):
        server_report(study, ServerOptions(tp=2, version="0.26.0"))


# transformers


def test_transformers_keeps_a_window_and_rows() -> None:
    """A row is key and value: 127 of the window in 43 layers, rows and index keys, and the tokens without a row."""
    found = report(find_model("deepseek-v4-flash"), context=65_536, device="mi300x", engine="transformers")
    rows = 43 * 127 * 512 + 21 * 16_384 * (512 + 128) + 20 * 512 * 512
    states = 21 * 2 * 4 * 2 * 2 * (512 + 128) + 20 * 128 * 2 * 512
    assert found.kv_request_bytes == 2 * (rows + states)


def test_transformers_keeps_the_key_of_a_latent_indexer() -> None:
    found = report(find_model("deepseek-v3.2"), context=4096, device="mi300x", engine="transformers")
    assert found.kv_request_bytes == 4096 * 61 * (576 + 128) * 2


def test_indexers_beside_recurrent_layers_are_known_to_llama_cpp_alone(tmp_path: Any) -> None:
    for arch, words in (("qwen4exp", "a block indexer"), ("glm5-next", "a latent indexer")):
        model = load(tmp_path / f"{arch}.gguf", arch, LINES[arch])
        with pytest.raises(
            SpecError, match=f"how vllm stores the keys of {words} beside recurrent layers is not known"
        ):
            report(model, context=4096)


def test_lightning_attention_of_ling_is_another() -> None:
    """Its class in vLLM stayed when MiniMax-01's went, and its states are not known here."""
    model = spec_from_config(RING_MINI, name="ring-mini-linear", source="test")
    with pytest.raises(SpecError, match="how vllm stores the state of a gated lightning attention layer is not known"):
        report(model, context=4096)
