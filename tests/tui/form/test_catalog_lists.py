"""The device picker: this machine stands first, measured or not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from calc.model.study import Study
from calc.sources.catalog import find_device, find_model
from calc.sources.machine import cpu_name
from tui.form.catalog_lists import (
    MANUAL,
    THIS,
    current_device,
    device_called,
    device_list,
    device_preview,
    model_preview,
)
from tui.form.command_line import device_options
from tui.form.pick_list import Choice, column_widths, line

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


@pytest.mark.parametrize("width", [73, 99])
def test_a_line_shows_every_number_whole(width: int) -> None:
    """73 cells: the list on a screen of 80. Names give way, numbers never; where there is room, names are whole too."""
    pick = device_list(STUDY)
    choices = pick.search("")
    widths = column_widths(choices, pick.right, width)
    lines = [line(choice, widths, pick.right) for choice in choices]
    assert max(map(len, lines)) <= width
    for choice, shown in zip(choices, lines, strict=True):
        assert all(cell in shown for cell in choice.cells[1:])
    assert any("…" in shown for shown in lines) == (width == 73)


def test_what_does_not_fit_gives_way_from_the_right() -> None:
    cells = ("a-long-name-of-a-model", "1.00 B", "32L 32q 8kv d128", "org/name-of-a-model")
    one = [Choice(key="a", cells=cells, preview=str)]
    right = frozenset({1})
    assert [column_widths(one, right, room) for room in (69, 60, 56, 48, 36, 30)] == [
        [22, 6, 16, 19], [22, 6, 16, 10], [22, 6, 16, 0], [22, 6, 16, 0], [22, 6, 0, 0], [22, 6, 0, 0],
    ]  # fmt: skip
    assert line(one[0], [10, 8, 0, 0], right) == "a-long-na…    1.00 B"


def test_previews_are_of_the_devices_that_are_asked_for() -> None:
    """Llama-3-8B on four H100 SXM, 8,192 tokens: 301 requests, as the strip says; DeepSeek-V3 needs eight H200."""
    study = replace(STUDY, tps=(4,))
    assert "max batch 301 on 4 devices at 8,192 tokens" in device_preview(find_device("h100-sxm"), study)
    assert "max batch 64 at 8,192 tokens" in device_preview(find_device("h100-sxm"), STUDY)
    eight = replace(study, tps=(8,), device=find_device("h200-sxm"))
    assert "max batch 916 on 8 such devices at 8,192 tokens" in model_preview(find_model("deepseek-v3"), eight)
    assert "max batch 64 on this device" in model_preview(find_model("llama-3-8b"), STUDY)
