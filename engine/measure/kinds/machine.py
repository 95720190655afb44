"""machine: what the engine's own operators achieve on this machine, saved for predictions and as a device."""

from collections.abc import Sequence

from engine.errors import OptionError
from engine.measure.machine_result import Gpu, MachineResult, MachineRow
from engine.measure.measurement import Document, Measurement, PlainTable, machine_line, plain_document
from engine.measure.options import THREADS, Option, check_threads
from engine.records import MeasurementFinished, Request, RowMeasured
from engine.text import duration, plural, size

ROWS = (1, 4, 16, 128, 512)
"""Rows of the products that are measured: decode steps of small batches, and prompts."""
DTYPES = ("fp32", "bf16", "fp16", "int8", "int4")
DEFAULT_DTYPES = ("fp32", "bf16", "int8", "int4")
_SPELLED = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
BUSY_SHARE = 0.5
"""Share of the cores used by others above which times are not those of an idle machine."""
WIDE_SPREAD = 0.5


class MeasureMachine(Request, frozen=True, kw_only=True):
    """Measure this machine, or answer with an earlier measurement unless `measure` requests a new one.

    `dtypes`: names with commas between them; empty: the usual ones. `threads` None: torch's own choice.
    """

    measure: bool = False
    dtypes: str = ""
    threads: int | None = None


class MachineRowMeasured(RowMeasured, frozen=True, kw_only=True):
    """One dtype has been measured in one round more."""

    row: MachineRow


class MachineFinished(MeasurementFinished, frozen=True, kw_only=True):
    """Ends a `MeasureMachine`."""

    result: MachineResult


def dtypes_of(text: str) -> tuple[str, ...]:
    """The dtypes that a request names, the usual ones for an empty text. Raises OptionError.

    >>> dtypes_of("bfloat16,fp32"), dtypes_of("")
    (('bf16', 'fp32'), ('fp32', 'bf16', 'int8', 'int4'))
    """
    if text in ("", "auto"):
        return DEFAULT_DTYPES
    names = [_SPELLED.get(name.strip().lower(), name.strip().lower()) for name in text.split(",")]
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise OptionError("dtypes", f"dtype {unknown[0]!r} is not measured; choose from {', '.join(DTYPES)}")
    return tuple(dict.fromkeys(names))


def check(request: MeasureMachine) -> None:
    """Raise `OptionError` unless it can be measured."""
    dtypes_of(request.dtypes)
    check_threads(request.threads)


def busy_notes(*, cores: int, load_average: float | None, spread: float) -> tuple[str, ...]:
    """A warning where other work took part of the machine."""
    signs = []
    if load_average is not None and load_average > BUSY_SHARE * cores:
        signs.append(f"the load average was {load_average:.1f} on {plural(cores, 'core')}")
    if spread > WIDE_SPREAD:
        signs.append(f"times of the same product differed by {100 * spread:.0f} %")
    if not signs:
        return ()
    return (f"This machine was busy: {' and '.join(signs)}. Measure again when it is idle: kvscope machine --measure",)


def document(result: MachineResult) -> Document:
    """{"command": "machine", "schema", "cpu", "cores", "memory_bytes", "gpus", "read_bytes_per_s",
    "matmul_flops_per_s", "operator_overhead_s", "load_average", "spread", "measured_at", "versions", …}.

    `matmul_flops_per_s`: by dtype, then by rows. Also what calc reads as a device: see `calc.sources.machine`.
    """
    fields = plain_document(result)
    rows = fields.pop("rows")
    del fields["machine"]
    rates = {name: {row["dtype"]: row[name] for row in rows} for name in ("read_bytes_per_s", "matmul_flops_per_s")}
    first = ("cpu", "cores", "memory_bytes", "gpus")
    last = [name for name in fields if name not in first]
    return {
        "command": "machine", "schema": 1, **{name: fields[name] for name in first}, **rates,
        **{name: fields[name] for name in last},
    }  # fmt: skip


def table(result: MachineResult) -> PlainTable:
    """A row per dtype, then the overhead, GPUs, the machine and the notes."""
    return PlainTable(
        title=f"machine: {result.cpu}, measured {result.measured_at}",
        header=("dtype", "reads", *(f"{rows} rows" for rows in ROWS)),
        rows=tuple(_cells(row.dtype, row.read_bytes_per_s, row.matmul_flops_per_s) for row in result.rows),
        after=(*_sentences(result), machine_line(result.machine), *result.notes),
    )


def _cells(name: str, read: float, multiply: dict[str, float]) -> tuple[str, ...]:
    rates = (f"{multiply[str(rows)] / 1e9:,.1f} GFLOP/s" if str(rows) in multiply else "-" for rows in ROWS)
    return (name, f"{read / 1e9:,.1f} GB/s", *rates)


def _sentences(result: MachineResult) -> Sequence[str]:
    memory = "" if result.memory_bytes is None else f"{size(result.memory_bytes)} of memory, "
    load = "" if result.load_average is None else f", load average {result.load_average:.1f}"
    return (
        f"{memory}an empty operator takes {duration(result.operator_overhead_s)}",
        *map(_gpu_sentence, result.gpus),
        f"medians of {plural(result.rounds, 'round')}, spread {100 * result.spread:.0f} %{load}",
    )


def _gpu_sentence(gpu: Gpu) -> str:
    rates = [
        f"{dtype} reads {read / 1e9:,.0f} GB/s and achieves {max(multiply.values()) / 1e12:,.1f} TFLOP/s"
        for (dtype, read), multiply in zip(gpu.read_bytes_per_s.items(), gpu.matmul_flops_per_s.values(), strict=True)
    ]
    return f"GPU {gpu.name}, {size(gpu.memory_bytes)}: {'; '.join(rates)}"


def known(request: MeasureMachine) -> MachineFinished | None:
    """What was kept of this machine, where it still holds and has all that is asked for."""
    from engine.measure.machine_file import machine_path, read_earlier

    earlier = read_earlier(machine_path()).result
    if request.measure or earlier is None or not _answers(earlier, request):
        return None
    return MachineFinished(request_id=request.request_id, result=earlier)


def _answers(earlier: MachineResult, request: MeasureMachine) -> bool:
    measured = {row.dtype for row in earlier.rows}
    return set(dtypes_of(request.dtypes)) <= measured and request.threads in (None, earlier.threads)


OPTIONS = (
    Option(
        name="measure",
        flags=("--measure",),
        field="measure",
        constant=True,
        help="measure again (default: reuse the last measurement)",
    ),
    Option(
        name="dtype",
        flags=("--dtype",),
        field="dtypes",
        metavar="bf16,fp32",
        help=f"dtypes to measure, from {', '.join(DTYPES)} (default {','.join(DEFAULT_DTYPES)})",
    ),
    THREADS,
)

MEASUREMENTS = (
    Measurement(
        name="machine",
        order=7,
        summary="what this machine achieves: memory reads, matrix products",
        description="Measure what the engine's operators achieve on this machine. Afterwards, --device this means this "
        "machine.",
        doing="benchmarking",
        request=MeasureMachine,
        row=MachineRowMeasured,
        finished=MachineFinished,
        options=OPTIONS,
        check=check,
        key=lambda row: row.dtype,
        document=document,
        table=table,
        known=known,
        plots=True,
    ),
)
