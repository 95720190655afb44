"""vLLM before 0.8: tokens of a step by version, and tensors that counted as used because NCCL still read them."""

from __future__ import annotations

import pytest

from calc.model.study import Policy, Study
from calc.servers.records import ModelFacts, ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.servers.versions import parse_version
from calc.servers.vllm_v0 import batched_tokens, unreturned_bytes
from calc.sources.catalog import find_device, find_model

GIB = 2**30


def report(model: str, device: str, version: str, *, tp: int, context: int, **more: object) -> ServerReport:
    study = Study(model=find_model(model), device=find_device(device), context=context, policy=Policy.REPLICATED)
    return server_report(study, ServerOptions(version=version, tp=tp, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "context", "tokens"),
    [
        ("0.3.0", 131_072, 131_072),
        ("0.5.2", 131_072, 131_072),
        ("0.5.3", 32_768, 32_768),
        ("0.5.3", 131_072, 512),
        ("0.6.4.post1", 131_072, 512),
        ("0.6.5", 131_072, 2048),
        ("0.7.3", 1024, 2048),
    ],
)
def test_tokens_of_a_step(version: str, context: int, tokens: int) -> None:
    assert batched_tokens(parse_version(version), context, whole_prompts=False) == tokens


def test_prompts_with_images_are_never_cut() -> None:
    asked = report("gemma-3-12b", "h100-sxm", "0.7.3", tp=1, context=65_536, facts=ModelFacts(multimodal=True))
    assert asked.max_num_batched_tokens == 65_536


def test_unreturned_tensors_of_sums() -> None:
    model = find_model("llama-2-70b")  # 80 layers, two sums each and one of the embedding, 4,096 x 8,192 in 16 bits
    asked = {"tp": 4, "batched_tokens": 4096, "element_bytes": 2, "room_bytes": 40 * GIB}
    assert unreturned_bytes(model, (0, 2, 6), **asked) == 161 * 64 * 2**20
    assert unreturned_bytes(model, (0, 2, 6), **{**asked, "room_bytes": GIB}) == GIB
    assert unreturned_bytes(model, (0, 6, 4), **asked) == 0
    assert unreturned_bytes(model, (0, 2, 6), **{**asked, "tp": 1}) == 0
    assert unreturned_bytes(model, (0, 5, 3), **{**asked, "batched_tokens": 512}) == 0  # 8 MiB: vLLM's own sums


def test_pools_of_pull_request_2031() -> None:
    """Llama 2 on A100 80 GB: 7,351 blocks of 8 MiB on one, 20,865 of 1.25 MiB on four, 1.8 GiB below the band."""
    one, four = (report(f"llama-2-{n}", "a100-80gb", "0.2.6", tp=tp, context=4096) for n, tp in (("7b", 1), ("70b", 4)))
    low, high = one.bands["kv_pool_bytes"]
    assert low <= 7351 * 2**23 <= high
    assert -2 * GIB < 20_865 * 5 * 2**18 - four.bands["kv_pool_bytes"][0] < 0
