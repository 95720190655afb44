"""What the engine keeps of this machine, calc reads as a device: place, fields and processor stand twice, and agree."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from calc.commands.estimate import run_estimate
from calc.errors import SourceError, UnknownName
from calc.model.storage import FORMATS
from calc.sources import machine as calcs
from calc.sources.catalog import find_device, search_devices
from calc.speed.constants import constants_of
from calc.speed.kernels import device_for_times
from engine.machine import cpu_name, usable_cores
from engine.measure import machine_file as engines
from engine.measure.machine_result import Gpu, MachineResult, MachineRow
from engine.records import Machine

NOW = datetime(2026, 12, 1, 12, tzinfo=UTC)
ROWS = (
    MachineRow(dtype="fp32", read_bytes_per_s=8e9, matmul_flops_per_s={"1": 4e9, "128": 50e9, "512": 60e9}),
    MachineRow(dtype="bf16", read_bytes_per_s=10e9, matmul_flops_per_s={"1": 10e9, "128": 120e9, "512": 110e9}),
)


def result(**changes: object) -> MachineResult:
    """A measurement of this very machine."""
    machine = Machine(cpu="c", cores=2, threads=1, device="cpu", dtype="", torch="2", python="3", system="s")
    usual = MachineResult(
        cpu=cpu_name(), cores=usable_cores(), threads=1, memory_bytes=24 * 10**9, last_cache_bytes=None, gpus=(),
        rows=ROWS, operator_overhead_s=2e-6, load_average=0.1, spread=0.05, rounds=5,
        measured_at=NOW.isoformat(), versions=engines.versions(), machine=machine,
    )  # fmt: skip
    return msgspec.structs.replace(usual, **changes)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a measurement, where both sides look for it."""
    path = tmp_path / "deep" / "machine.json"
    monkeypatch.setenv("KVSCOPE_MACHINE", str(path))
    assert engines.keep(result(), path).kept_in == str(path)
    return path


def test_both_sides_name_the_same_file_and_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("KVSCOPE_MACHINE", str(tmp_path / "m.json")), ("KVSCOPE_CACHE", str(tmp_path)), ("", "")):
        for variable in ("KVSCOPE_MACHINE", "KVSCOPE_CACHE"):
            monkeypatch.delenv(variable, raising=False)
        if name:
            monkeypatch.setenv(name, value)
        assert engines.machine_path() == calcs.machine_path()
    assert calcs.cpu_name() == cpu_name()
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nmodel name : Some CPU @ 3 GHz\n")
    assert calcs.cpu_name(info) == cpu_name(info) == "Some CPU @ 3 GHz"


@pytest.mark.usefixtures("kept")
def test_it_is_a_device_with_the_measured_rates() -> None:
    device = find_device("this")
    assert device.memory_bytes == 24 * 10**9
    assert device.bandwidth_bytes_per_s == 10e9  # the fastest dtype's
    assert device.peak_flops_per_s == {"fp32": 60e9, "bf16": 120e9}  # at whichever rows
    assert device.ridge() == 12
    assert device.source.startswith("measured by kvscope machine, 2026-12-01")
    assert find_device("THIS") == find_device("this-cpu") == device
    assert search_devices("")[0].spec == device
    constants = constants_of(device)
    assert constants.family == "this machine"
    assert constants.product["fp32"].bandwidth == 0.8
    assert (constants.product["bf16"].bandwidth, constants.product["bf16"].t0_s) == (1.0, 2e-6)


@pytest.mark.usefixtures("kept")
def test_an_estimate_takes_the_rates_of_the_weights_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    """SmolLM2's products in float32 run at the 60 GFLOP/s of fp32, in bfloat16 at 120: prompts take half as long."""
    device = find_device("this")
    prompts = {}
    for dtype in ("fp32", "bf16"):
        timed = device_for_times(device, constants_of(device), FORMATS[dtype])
        assert timed.path(FORMATS[dtype].bytes_per_element) == dtype
        words = ["--model", "smollm2-135m", "--device", "this", "--weight-format", dtype, "--json"]
        assert run_estimate(words, "kvscope estimate") == 0
        said = json.loads(capsys.readouterr().out)
        assert said["calibration"]["family"] == "this machine"
        products = [o for o in said["prefill"]["operators"] if o["name"] == "mlp.gate_up_proj"]
        prompts[dtype] = products[0]["time_s"]
    assert prompts["fp32"] == pytest.approx(2 * prompts["bf16"], rel=0.01)


@pytest.mark.usefixtures("kept")
def test_products_are_points_of_a_roofline() -> None:
    """A product of r rows does 2 r FLOPs with each weight: 2 r / 4 per byte of fp32, 2 r / 2 of bf16."""
    machine = calcs.measured_machine()
    assert machine.points("fp32") == ((0.5, 4e9), (64.0, 50e9), (256.0, 60e9))
    assert machine.points("bf16") == ((1.0, 10e9), (128.0, 120e9), (512.0, 110e9))
    assert machine.points("int4") == ()


def test_a_gpu_is_the_device_where_there_is_one(kept: Path) -> None:
    gpu = Gpu(
        name="NVIDIA H200", memory_bytes=141 * 10**9, read_bytes_per_s={"bf16": 4e12},
        matmul_flops_per_s={"bf16": {"1": 4e12, "512": 600e12}}, operator_overhead_s=4e-6,
    )  # fmt: skip
    engines.keep(result(gpus=(gpu,)), kept)
    assert find_device("this").name == "NVIDIA H200 (this machine)"
    assert find_device("this").peak_flops_per_s == {"bf16": 600e12}
    assert find_device("this-cpu").memory_bytes == 24 * 10**9


def test_a_machine_that_was_never_measured_says_what_to_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KVSCOPE_MACHINE", str(tmp_path / "none.json"))
    with pytest.raises(UnknownName, match=r"^this machine has not been measured: run kvscope machine$"):
        find_device("this")
    assert all(entry.id != "this" for entry in search_devices(""))
    assert engines.read_earlier(tmp_path / "none.json") == engines.Earlier(None)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"rows": 3}', "[" * 100_000, "\xff"])
def test_a_damaged_file_is_said_and_measured_again(kept: Path, text: str) -> None:
    kept.write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match="is damaged: run kvscope machine --measure"):
        find_device("this")
    assert engines.read_earlier(kept, now=NOW) == engines.Earlier(None, f"{kept} is damaged")


@pytest.mark.parametrize("rate", [0, -1.0, "fast", None, 1e300])
def test_rates_that_nothing_reaches_are_refused(kept: Path, rate: object) -> None:
    record = json.loads(kept.read_text())
    record["rows"][0]["read_bytes_per_s"] = rate
    kept.write_text(json.dumps(record))
    with pytest.raises(SourceError, match="is damaged"):
        find_device("this")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"cpu": "Another CPU"}, "for another processor (Another CPU"),
        ({"cores": 4096}, "for another processor"),
        ({"versions": {**engines.versions(), "torch": "1.0"}}, "for another version of torch (1.0)"),
        ({"measured_at": (NOW - timedelta(days=91)).isoformat()}, "is 91 days old"),
    ],
)
def test_what_was_kept_holds_only_while_it_is_true(kept: Path, changes: dict[str, object], reason: str) -> None:
    expected = engines.keep(result(**changes), kept)
    read = engines.read_earlier(kept, now=NOW)
    assert reason in read.problem
    assert read.result == (None if reason else expected)


def test_another_machines_file_is_no_device(kept: Path) -> None:
    engines.keep(result(cpu="Another CPU"), kept)
    with pytest.raises(SourceError, match=r"is from another machine \(Another CPU\)"):
        find_device("this")


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    told = engines.keep(result(), tmp_path / "file" / "machine.json")
    assert told.kept_in == ""
    assert "could not be saved" in told.notes[-1]
    assert "--device this is not available" in told.notes[-1]
