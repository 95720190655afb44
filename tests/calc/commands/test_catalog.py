"""The catalogs as JSON: numbers, not the texts of the table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calc import __main__ as calc_main


def rows(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    assert calc_main.main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["command"], document["schema"]) == (words[0], 2)
    return {row["name"]: row for row in document["rows"]}


def test_a_model_is_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows(["models", "llama-3-8b"], capsys)["llama-3-8b"] == {
        "name": "llama-3-8b", "hf_id": "meta-llama/Meta-Llama-3-8B", "parameters": 8_030_261_248, "n_layers": 32,
        "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "hidden_size": 4096,
    }  # fmt: skip


def test_a_device_is_its_numbers_and_nulls(capsys: pytest.CaptureFixture[str]) -> None:
    """79.19 GiB is 85,029,615,042 B; the ridge of an H100 SXM is 989.4 TFLOP/s over 3.35 TB/s. A P40 has no bf16."""
    found = rows(["devices"], capsys)
    h100 = found["h100-sxm"]
    assert (h100["memory_bytes"], h100["bandwidth_bytes_per_s"]) == (85_029_615_042, 3.35e12)
    assert h100["peak_flops_per_s"]["bf16"] == pytest.approx(989.4e12, rel=1e-4)
    assert h100["ridge_flops_per_byte"] == pytest.approx(295.3, rel=1e-3)
    assert found["p40"]["ridge_flops_per_byte"] is None
    assert "bf16" not in found["p40"]["peak_flops_per_s"]
