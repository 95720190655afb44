"""What the engine's own operators reach on this machine: products of few and many rows in each dtype, and overhead.

A product of one row reads a matrix that no cache holds, as a decode step does: a plain sum reads three times faster
than any product (28 against 10 GB/s on an EPYC), so it says nothing of decoding. Each product is measured as the
layers do it and, up to the rows that it takes, as the compiled step does it; the faster one counts.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import torch

from engine.machine import (
    available_bytes,
    cpu_name,
    last_cache_bytes,
    load_average,
    total_bytes,
    usable_cores,
)
from engine.measure.kinds.machine import (
    ROWS,
    MachineFinished,
    MachineRowMeasured,
    MeasureMachine,
    busy_notes,
    check,
    dtypes_of,
    known,
)
from engine.measure.machine_file import keep, machine_path, read_earlier, versions
from engine.measure.machine_result import Gpu, MachineResult, MachineRow
from engine.measure.products import DTYPES, Product, products
from engine.measure.rates import facts
from engine.measure.turns import Turns
from engine.model.devices import synchronize
from engine.model.layers import Linear, Norm
from engine.records import Event, Progress

if TYPE_CHECKING:
    from engine.process.held import HeldModel

ROUNDS = 5
BUDGET_S = 5.0
"""After so long no further round begins, once there are two."""
CACHE_TIMES = 8
"""A matrix is so many times as large as the last cache, so that each product reads memory."""
USUAL_CACHE_BYTES = 32 * 2**20
MOST_BYTES = 2**30
GPU_BYTES = 2**30
TINY, TINY_RUNS = 64, 200
Key = tuple[str, str, int]
"""A device, a dtype and the rows of a product; "overhead" with 0 rows for operators that do nothing."""


def run(request: MeasureMachine, held: "HeldModel", should_stop: Callable[[], bool]) -> Iterator[Event]:
    """What was kept of this machine, else a measurement with progress and rows. Raises EngineError and Stopped."""
    check(request)
    if (answer := known(request)) is not None:
        yield answer
        return
    path = machine_path()
    earlier = read_earlier(path)
    notes = [f"Measured again: {earlier.problem}."] if earlier.problem else []
    if request.threads is not None:
        torch.set_num_threads(request.threads)
    result = yield from measure(request, should_stop, notes=notes)
    yield MachineFinished(result=keep(_merged(result, earlier.result), path))


def measure(
    request: MeasureMachine,
    should_stop: Callable[[], bool],
    *,
    notes: Sequence[str] = (),
    matrix_bytes: int | None = None,
) -> Generator[Event, None, MachineResult]:
    """Progress and rows of a measurement; returns its result. `matrix_bytes`: of each large matrix. Raises Stopped."""
    load, dtypes = load_average(), dtypes_of(request.dtypes)
    yield Progress(stage="machine", done=0, total=1 + ROUNDS, elapsed_ns=0, detail="making matrices")
    made = _products(dtypes, matrix_bytes or _matrix_bytes(len(dtypes)))
    turns = Turns({key: product.run for key, product in made.items()} | _overheads(made))
    began = turns.clock()
    for number in turns.rounds(ROUNDS, BUDGET_S, should_stop):
        done_ns = int((turns.clock() - began) * 1e9)
        detail = f"round {number} of {ROUNDS}" if number else "warm-up"
        yield Progress(stage="machine", done=number, total=1 + ROUNDS, elapsed_ns=done_ns, detail=detail)
        if number > 1:
            yield from (MachineRowMeasured(row=_row("cpu", dtype, made, turns)) for dtype in dtypes)
    return _result(dtypes, made, turns, load, notes)


def _merged(result: MachineResult, earlier: MachineResult | None) -> MachineResult:
    """The new measurement with the dtypes that were measured before as it was now."""
    if earlier is None or earlier.threads != result.threads:
        return result
    new = {row.dtype for row in result.rows}
    older = tuple(row for row in earlier.rows if row.dtype not in new)
    if not older:
        return result
    note = f"{', '.join(row.dtype for row in older)}: as measured at {earlier.measured_at}."
    return msgspec.structs.replace(result, rows=(*result.rows, *older), notes=(*result.notes, note))


def _matrix_bytes(n_dtypes: int) -> int:
    """Bytes of a matrix that no cache holds, as far as memory allows it for all dtypes at once."""
    wanted = min(CACHE_TIMES * (last_cache_bytes() or USUAL_CACHE_BYTES), MOST_BYTES)
    free = available_bytes()
    return wanted if free is None else max(2**20, min(wanted, free // (4 * n_dtypes)))


def _products(dtypes: Sequence[str], matrix_bytes: int) -> dict[Key, Product]:
    """Every product that is timed, by device, dtype and rows; the compiled step's stand beside the layers'."""
    made: dict[Key, Product] = {}
    for dtype in dtypes:
        for product in products(dtype, torch.device("cpu"), matrix_bytes):
            made[(product.way, dtype, product.rows)] = product
    for index in range(torch.cuda.device_count()):
        for dtype in (d for d in dtypes if d in DTYPES):
            for product in products(dtype, torch.device("cuda", index), GPU_BYTES):
                made[(f"cuda:{index}", dtype, product.rows)] = product
    return made


def _overheads(made: Mapping[Key, Product]) -> dict[Key, Callable[[], object]]:
    """Operators that do nothing, on every device: their time is what starting one takes."""
    devices = ["cpu", *sorted({way for way, _, _ in made if way.startswith("cuda")})]
    return {(device, "overhead", 0): _tiny_operators(torch.device(device)) for device in devices}


def _tiny_operators(device: torch.device) -> Callable[[], object]:
    """A linear layer, a norm and a product of numbers, of the engine's own, TINY_RUNS times."""
    x = torch.ones(1, TINY, device=device)
    linear = Linear(torch.ones(TINY, TINY, device=device))
    norm = Norm(torch.ones(TINY, device=device), None, 1e-5)

    def run() -> None:
        with torch.inference_mode():
            for _ in range(TINY_RUNS):
                linear(x), norm(x), x * x
            synchronize(device)

    return run


def _row(device: str, dtype: str, made: Mapping[Key, Product], turns: Turns[Key]) -> MachineRow:
    """The rates of a dtype on a device: at each count of rows those of the fastest way."""
    ways = {"layers", "compiled"} if device == "cpu" else {device}
    timed = {key: made[key] for key in turns.seconds if key in made and key[0] in ways and key[1] == dtype}
    flops = {rows: [p.flops / turns.median_s(key) for key, p in timed.items() if key[2] == rows] for rows in ROWS}
    return MachineRow(
        dtype=dtype,
        read_bytes_per_s=max(p.weight_bytes / turns.median_s(key) for key, p in timed.items() if key[2] == 1),
        matmul_flops_per_s={str(rows): max(rates) for rows, rates in flops.items() if rates},
    )


def _overhead_s(device: str, turns: Turns[Key]) -> float:
    return turns.median_s((device, "overhead", 0)) / (3 * TINY_RUNS)


def _gpus(made: Mapping[Key, Product], turns: Turns[Key]) -> tuple[Gpu, ...]:
    gpus = []
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        rows = [_row(name, dtype, made, turns) for dtype in dict.fromkeys(d for way, d, _ in made if way == name)]
        properties = torch.cuda.get_device_properties(index)
        gpus.append(
            Gpu(
                name=properties.name,
                memory_bytes=properties.total_memory,
                read_bytes_per_s={row.dtype: row.read_bytes_per_s for row in rows},
                matmul_flops_per_s={row.dtype: row.matmul_flops_per_s for row in rows},
                operator_overhead_s=_overhead_s(name, turns),
            )
        )
    return tuple(gpus)


def _result(
    dtypes: Sequence[str], made: Mapping[Key, Product], turns: Turns[Key], load: float | None, notes: Sequence[str]
) -> MachineResult:
    cores, spread = usable_cores(), turns.spread
    return MachineResult(
        cpu=cpu_name(),
        cores=cores,
        threads=torch.get_num_threads(),
        memory_bytes=total_bytes(),
        last_cache_bytes=last_cache_bytes(),
        gpus=_gpus(made, turns),
        rows=tuple(_row("cpu", dtype, made, turns) for dtype in dtypes),
        operator_overhead_s=_overhead_s("cpu", turns),
        load_average=load,
        spread=spread,
        rounds=turns.n_rounds,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        machine=facts(torch.device("cpu"), ", ".join(dtypes)),
        notes=(*notes, *_compiled_note(made), *busy_notes(cores=cores, load_average=load, spread=spread)),
    )


def _compiled_note(made: Mapping[Key, Product]) -> tuple[str, ...]:
    if any(way == "compiled" for way, _, _ in made):
        return ()
    return ("The compiled step could not be built, so only the layers' products were measured.",)
