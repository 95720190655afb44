"""The device picker: this machine stands first, measured or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calc.model.study import Study
from calc.sources.catalog import find_device, find_model
from calc.sources.machine import cpu_name
from tui.form.catalog_lists import MANUAL, THIS, current_device, device_called, device_list
from tui.form.command_line import device_options

STUDY = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"))


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "machine.json"
    monkeypatch.setenv("KVSCOPE_MACHINE", str(path))
    row = {"dtype": "bf16", "read_bytes_per_s": 10e9, "matmul_flops_per_s": {"1": 10e9, "512": 130e9}}
    record = {
        "cpu": cpu_name(), "cores": 2, "threads": 1, "memory_bytes": 24 * 10**9, "gpus": [], "rows": [row],
        "operator_overhead_s": 2e-6, "load_average": 0.1, "spread": 0.1, "measured_at": "2026-12-01T12:00:00+00:00",
    }  # fmt: skip
    path.write_text(json.dumps(record))
    return path


@pytest.mark.usefixtures("measured")
def test_this_machine_stands_first_and_is_taken_with_its_rates() -> None:
    first, second, *_ = device_list(STUDY).search("")
    assert (first.key, second.key) == (THIS, MANUAL)
    assert first.cells == ("this", "22.35 GiB", "10.00 GB/s", "130.0 GFLOP/s", "ridge 13")
    assert "measured by kvscope machine" in first.preview()
    device = device_called(THIS, STUDY.device)
    assert device == find_device("this")
    assert current_device(device) == THIS
    assert device_options(device) == ["--device", "this"]
    assert [choice.key for choice in device_list(STUDY).search("h200-sxm")][:1] == ["h200-sxm"]


def test_before_it_was_measured_the_line_says_what_to_run() -> None:
    first = device_list(STUDY).search("")[0]
    assert first.key == THIS
    assert first.preview() == "This machine has not been measured: run kvscope machine."
    assert device_called(THIS, STUDY.device) == STUDY.device
