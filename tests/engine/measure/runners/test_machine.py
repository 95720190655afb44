"""kvscope machine: what is measured, what counts, what was kept. Times are fed in; no test looks at real ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.commands.cli import parse
from engine.commands.run import follow
from engine.errors import OptionError, Stopped
from engine.machine import last_cache_bytes, total_bytes
from engine.measure.kinds.machine import (
    MachineFinished,
    MachineRowMeasured,
    MeasureMachine,
    busy_notes,
    check,
    document,
    dtypes_of,
    known,
    table,
)
from engine.measure.machine_result import MachineResult
from engine.measure.products import COLUMNS, Product, products
from engine.measure.runners import machine
from engine.measure.turns import Turns
from engine.process.held import HeldModel
from engine.records import Event, Progress, Request

SMALL = 300_000


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a measurement is kept: nothing so far, and matrices are small."""
    monkeypatch.setenv("KVSCOPE_MACHINE", str(tmp_path / "machine.json"))
    monkeypatch.setattr(machine, "_matrix_bytes", lambda n_dtypes: SMALL)
    monkeypatch.setattr(machine, "TINY_RUNS", 2)
    return tmp_path / "machine.json"


def events(**options: object) -> list[Event]:
    return list(machine.run(MeasureMachine(**options), HeldModel(), lambda: False))  # type: ignore[arg-type]


def finished(**options: object) -> MachineResult:
    last = events(**options)[-1]
    assert isinstance(last, MachineFinished)
    return last.result


def product(way: str, rows: int) -> Product:
    return Product(way=way, rows=rows, weight_bytes=100.0, flops=200.0 * rows, run=lambda: None)


def test_rates_by_hand() -> None:
    """100 bytes in 0.5 s by the layers and in 0.25 s compiled: the faster way counts, at each count of rows."""
    made = {(way, "fp32", rows): product(way, rows) for way in ("layers", "compiled") for rows in (1, 16)}
    made[("layers", "fp32", 128)] = product("layers", 128)
    turns = Turns(
        {},
        seconds={
            ("layers", "fp32", 1): [0.5, 0.5, 9.0], ("compiled", "fp32", 1): [0.25],
            ("layers", "fp32", 16): [1.0], ("compiled", "fp32", 16): [2.0], ("layers", "fp32", 128): [4.0],
            ("cpu", "overhead", 0): [0.006 * machine.TINY_RUNS],
        },
    )  # fmt: skip
    row = machine._row("cpu", "fp32", made, turns)
    assert row.read_bytes_per_s == 400.0
    assert row.matmul_flops_per_s == {"1": 800.0, "16": 3200.0, "128": 6400.0}
    assert machine._overhead_s("cpu", turns) == pytest.approx(0.002)  # three operators


def test_a_gpu_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes in 2 s by one row, 128 rows in 4 s, three operators in 6 ms: of the GPU, not of the processor."""
    facts = SimpleNamespace(name="NVIDIA H200", total_memory=141 * 10**9)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    made = {(way, "bf16", rows): product(way, rows) for way in ("layers", "cuda:0") for rows in (1, 128)}
    turns = Turns(
        {},
        seconds={
            ("layers", "bf16", 1): [50.0], ("layers", "bf16", 128): [50.0], ("cuda:0", "bf16", 1): [2.0],
            ("cuda:0", "bf16", 128): [4.0], ("cuda:0", "overhead", 0): [0.006 * machine.TINY_RUNS],
        },
    )  # fmt: skip
    (gpu,) = machine._gpus(made, turns)
    assert (gpu.name, gpu.memory_bytes) == ("NVIDIA H200", 141 * 10**9)
    assert gpu.read_bytes_per_s == {"bf16": 50.0}
    assert gpu.matmul_flops_per_s == {"bf16": {"1": 100.0, "128": 6400.0}}
    assert gpu.operator_overhead_s == pytest.approx(0.002)
    assert machine._row("cpu", "bf16", made, turns).read_bytes_per_s == 2.0


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "int8", "int4"])
def test_products_do_what_they_count(dtype: str) -> None:
    made = list(products(dtype, torch.device("cpu"), SMALL))
    assert {p.rows for p in made} == {1, 4, 16, 128, 512}
    for each in made:
        outputs = each.flops / (2 * each.rows * COLUMNS)
        assert outputs == int(outputs) >= 32
        each.run()
    one = next(p for p in made if p.rows == 1)
    assert 0.8 * SMALL <= one.weight_bytes <= SMALL


def test_a_measurement_is_kept_and_answers_the_next_time(kept: Path) -> None:
    first = events(dtypes="float32")
    assert any(isinstance(event, Progress) for event in first)
    assert any(isinstance(event, MachineRowMeasured) for event in first)
    last = first[-1]
    assert isinstance(last, MachineFinished)
    assert last.result.kept_in == str(kept)
    assert [row.dtype for row in last.result.rows] == ["fp32"]
    assert set(last.result.rows[0].matmul_flops_per_s) == {"1", "4", "16", "128", "512"}
    again = events(dtypes="fp32")
    assert len(again) == 1
    assert again[0] == last


def test_a_dtype_that_was_not_measured_joins_those_that_were(kept: Path) -> None:
    old = finished(dtypes="fp32")
    both = finished(dtypes="bf16")
    assert [row.dtype for row in both.rows] == ["bf16", "fp32"]
    assert both.rows[1] == old.rows[0]
    assert f"fp32: as measured at {old.measured_at}." in both.notes


def test_a_damaged_file_is_measured_again_and_said(kept: Path) -> None:
    kept.write_text("{")
    result = finished(dtypes="fp32")
    assert result.notes[0] == f"Measured again: {kept} is damaged."
    assert finished(dtypes="fp32") == result


def test_a_stop_leaves_nothing_behind(kept: Path) -> None:
    with pytest.raises(Stopped):
        list(machine.run(MeasureMachine(dtypes="fp32"), HeldModel(), lambda: True))
    assert not kept.exists()


def test_a_busy_machine_is_said() -> None:
    assert busy_notes(cores=2, load_average=0.9, spread=0.1) == ()
    assert busy_notes(cores=2, load_average=None, spread=0.1) == ()
    (note,) = busy_notes(cores=2, load_average=1.5, spread=0.7)
    assert note.startswith(
        "This machine was busy: the load average was 1.5 on 2 cores and times of the same product differed by 70 %."
    )
    assert note.endswith("kvscope machine --measure")


def test_dtypes_are_read_as_calc_and_torch_write_them() -> None:
    assert dtypes_of("bfloat16, FP32,bf16") == ("bf16", "fp32")
    with pytest.raises(OptionError, match="dtype 'fp7' is not measured"):
        check(MeasureMachine(dtypes="fp7"))
    with pytest.raises(OptionError):
        check(MeasureMachine(threads=0))


def test_the_document_has_the_keys_of_the_contract(kept: Path) -> None:
    result = finished(dtypes="fp32")
    said = document(result)
    assert list(said)[:8] == [
        "command", "schema", "cpu", "cores", "memory_bytes", "gpus", "read_bytes_per_s", "matmul_flops_per_s",
    ]  # fmt: skip
    assert {"operator_overhead_s", "load_average", "spread", "measured_at", "versions"} <= set(said)
    assert said["read_bytes_per_s"] == {"fp32": result.rows[0].read_bytes_per_s}
    assert said["matmul_flops_per_s"]["fp32"] == result.rows[0].matmul_flops_per_s
    assert datetime.fromisoformat(said["measured_at"]).tzinfo is not None
    assert datetime.now(UTC).year >= 2026
    text = table(result).text()
    assert text.startswith(f"machine: {result.cpu}, measured {result.measured_at}")
    assert "an empty operator takes" in text


def test_facts_of_the_system_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "limit").write_text("1000\n")
    assert total_bytes([tmp_path / "limit"]) == 1000
    (tmp_path / "limit").write_text("max\n")
    machines = total_bytes([])
    assert total_bytes([tmp_path / "limit", tmp_path / "none"]) == machines
    for index, text in enumerate(("32K", "512K", "32768K", "?")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{text}\n")
    assert last_cache_bytes(tmp_path) == 32 * 2**20
    assert last_cache_bytes(tmp_path / "none") is None


def test_what_was_kept_answers_before_any_engine_starts(kept: Path) -> None:
    assert known(MeasureMachine(dtypes="fp32")) is None
    result = finished(dtypes="fp32")
    answer = known(MeasureMachine(request_id=3, dtypes="float32"))
    assert answer is not None
    assert (answer.request_id, answer.result) == (3, result)
    assert known(MeasureMachine(dtypes="fp32", measure=True)) is None
    assert known(MeasureMachine(dtypes="fp32,bf16")) is None
    assert known(MeasureMachine(dtypes="fp32", threads=result.threads + 1)) is None
    args = parse(["--mode", "machine", "--dtype", "float32", "--quiet"])
    outcome = follow(args, [MeasureMachine(dtypes="fp32")], unused)
    assert outcome.answers[0].result == MachineFinished(result=result)


def unused(request: Request) -> Iterator[Event]:
    raise AssertionError(f"{type(request).__name__} was answered already")
