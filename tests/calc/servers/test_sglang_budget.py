"""SGLang's defaults by version and device, and what data-parallel attention holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calc.model.study import Policy, Study
from calc.servers.records import ServerOptions
from calc.servers.report import server_report
from calc.servers.sglang_budget import SglangSetting, graph_batch, static_fraction, tier
from calc.sources.catalog import find_device, find_model

GIB = 2**30
H100 = SglangSetting(
    total_mib=81_090, tp=1, dp_attention=1, version=(0, 5, 6), latent=False, multimodal=False, drafted=False
)


@pytest.mark.parametrize(
    ("changes", "fraction"),
    [
        ({}, 0.834),  # 81,090 - (512 + 8,192 x 1.5 + 2 x 256 + 128) = 67,650
        ({"version": (0, 5, 23)}, 0.829),  # 58 prefill sizes of 8 MiB more
        ({"version": (0, 5, 23), "latent": True}, 0.815),  # 1.5 GiB more
        ({"version": (0, 4, 9)}, 0.874),  # 10 GiB
        ({"version": (0, 4, 9), "tp": 8}, 0.83),  # 13.5 GiB
        ({"tp": 8}, 0.817),  # 512 graphs, 1,024 for eight ranks
        ({"tp": 8, "dp_attention": 8}, 0.59),  # 512 x 8 x 4.5 more
        ({"total_mib": 46_068, "tp": 1}, 0.852),  # 512 + 6,144 + 64 + 128
        ({"total_mib": 22_500}, 0.837),  # 2,048 tokens: 512 + 3,072 + 48 + 128 = 3,760 (0.833)
        ({"drafted": True}, 0.809),
    ],
)
def test_the_static_share(changes: dict[str, object], fraction: float) -> None:
    setting = replace(H100, **changes)  # type: ignore[arg-type]
    assert float(static_fraction(setting, tier(setting).chunk)) == pytest.approx(fraction, abs=0.0045)


def test_defaults_of_devices() -> None:
    sizes = {15: (2048, 8), 24: (4096, 48), 45: (4096, 32), 79: (8192, 256), 140: (8192, 256), 190: (16_384, 512)}
    for gib, (chunk, graphs) in sizes.items():
        setting = replace(H100, total_mib=gib * 1024, version=(0, 5, 23))
        assert (tier(setting).chunk, graph_batch(setting)) == (chunk, graphs)
    old = replace(H100, total_mib=24 * 1024)
    assert (tier(old).chunk, graph_batch(old), graph_batch(replace(old, tp=4))) == (2048, 24, 80)


def test_attention_groups_hold_all_of_attention() -> None:
    """DeepSeek-V3 at TP 8: attention of 61 layers and the embedding are on every rank, an eighth of the rest."""
    study = Study(model=find_model("deepseek-v3"), device=find_device("mi300x"), policy=Policy.REPLICATED)
    options = ServerOptions(engine="sglang", tp=8)
    shared, groups = (server_report(study, replace(options, dp_attention=n)).weight_bytes_per_gpu for n in (1, 8))
    latent = study.model.layers[0].mixers[0]
    divided = sum(t.params for t in latent.tensors(7168) if t.share != "whole")
    embedding = study.model.vocab_size * 7168
    assert groups - shared == pytest.approx(2 * (61 * divided + embedding) * 7 / 8, rel=0.01)


def test_the_default_pool_of_2026_is_within_its_band() -> None:
    """Qwen3-0.6B on an H100: 59.4 GiB in a log of 2026."""
    study = Study(model=find_model("qwen3-0.6b"), device=find_device("h100-sxm"), policy=Policy.REPLICATED)
    report = server_report(study, ServerOptions(engine="sglang"))
    low, high = report.bands["kv_pool_bytes"]
    assert low <= 59.4 * GIB <= high
