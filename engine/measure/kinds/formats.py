"""formats: what each weight and cache format costs and gains against float32: memory, speed, error of the logits."""

from typing import cast, get_args

import msgspec

from engine.errors import OptionError
from engine.measure.measurement import Document, Measurement, PlainTable, machine_line, plain_document
from engine.measure.options import COMPILE, DEVICE, MODEL, THREADS, Option, check_count, check_threads
from engine.records import CacheKind, CompileMode, Device, DType, Machine, MeasurementFinished, Request, RowMeasured
from engine.text import duration, plural

MAX_TEXT_TOKENS = 4096


class FormatChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dtype of the weights and a way to keep the cache. The row of "auto" says what that turned out to be."""

    dtype: DType
    cache: CacheKind = "full"


class Formats(Request, frozen=True, kw_only=True):
    """What each of `choices` costs and gains compared with float32 and a full cache: memory, speed, error of the
    logits.

    Measured on the first `n_tokens` tokens of a bundled text, one decode step per token.
    """

    model: str | None = None
    choices: tuple[FormatChoice, ...] = (
        FormatChoice(dtype="bfloat16"),
        FormatChoice(dtype="float16"),
        FormatChoice(dtype="int8"),
        FormatChoice(dtype="int4"),
        FormatChoice(dtype="float32", cache="int8"),
    )
    n_tokens: int = 128
    threads: int | None = None
    compile: CompileMode = "auto"
    device: Device = "auto"


class FormatRow(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of formats. Errors: |logit - float32's| over all tokens and the whole vocabulary.

    `n_same`: the number of `n_tokens` predictions with the same most likely token. `perplexity`: e to the mean of -log
    p of the token that follows. Times are those of decode steps.
    """

    dtype: str
    cache: CacheKind
    weight_bytes: int
    kv_bytes_per_token: int
    load_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    tokens_per_s: float
    n_tokens: int
    n_same: int
    mean_error: float
    max_error: float
    perplexity: float
    compiled: bool


class FormatsResult(msgspec.Struct, frozen=True, kw_only=True):
    """The reference (float32, full cache) first, then the requested formats. `notes` are whole sentences."""

    model: str
    rows: tuple[FormatRow, ...]
    machine: Machine
    notes: tuple[str, ...] = ()


class FormatMeasured(RowMeasured, frozen=True, kw_only=True):
    """One choice of a `Formats` is done; the reference comes first."""

    row: FormatRow


class FormatsFinished(MeasurementFinished, frozen=True, kw_only=True):
    """Ends a `Formats`."""

    result: FormatsResult


def check(request: Formats) -> None:
    """Raise `OptionError` unless the comparison can be run."""
    if not request.choices:
        raise OptionError("formats", "name at least one format, such as bfloat16,int8")
    check_count("tokens", request.n_tokens, low=2, high=MAX_TEXT_TOKENS)
    check_threads(request.threads)


def parse_formats(text: str) -> tuple[FormatChoice, ...]:
    """Comma-separated formats, each a dtype or dtype/cache: "bfloat16,int4,float32/int8". Raises OptionError."""
    return tuple(dict.fromkeys(_parse_format(part.strip()) for part in text.split(",")))


def _parse_format(text: str) -> FormatChoice:
    dtype, slash, cache = text.partition("/")
    dtypes = [name for name in get_args(DType) if name != "auto"]
    if dtype not in dtypes:
        raise OptionError(
            "formats", f"{dtype!r} is not a format; use {', '.join(dtypes)}, or one with a cache: int8/int8"
        )
    if slash and cache not in get_args(CacheKind):
        raise OptionError("formats", f"{cache!r} is not a kind of cache; use {', '.join(get_args(CacheKind))}")
    return FormatChoice(dtype=cast(DType, dtype), cache=cast(CacheKind, cache or "full"))


def write_formats(choices: tuple[FormatChoice, ...]) -> str:
    """Formats as `parse_formats` reads them."""
    return ",".join(c.dtype if c.cache == "full" else f"{c.dtype}/{c.cache}" for c in choices)


def document(result: FormatsResult) -> Document:
    """{"command": "formats", "model", "rows", "machine", "notes"}; the first row is the reference, float32."""
    return {"command": "formats", **plain_document(result)}


def table(result: FormatsResult) -> PlainTable:
    """A row per format, the reference first, then the machine and the notes."""
    return PlainTable(
        title=f"formats of {result.model} against float32, on {plural(result.rows[0].n_tokens, 'token')} of text",
        header=(
            "weights", "cache", "bytes", "per token", "p95", "tokens/s", "same token", "mean error", "max",
            "perplexity",
        ),
        rows=tuple(map(_cells, result.rows)),
        after=(machine_line(result.machine), *result.notes),
    )  # fmt: skip


def _cells(row: FormatRow) -> tuple[str, ...]:
    return (
        row.dtype,
        row.cache,
        f"{row.weight_bytes:,} B",
        duration(row.tpot_p50_s),
        duration(row.tpot_p95_s),
        f"{row.tokens_per_s:,.1f}",
        f"{row.n_same} of {row.n_tokens}",
        f"{row.mean_error:.4f}",
        f"{row.max_error:.3f}",
        f"{row.perplexity:,.2f}",
    )


OPTIONS = (
    MODEL,
    Option(
        name="formats",
        flags=("--formats",),
        field="choices",
        read=parse_formats,
        write=write_formats,
        metavar="LIST",
        help="dtypes, with /CACHE for another cache kind (default bfloat16,float16,int8,int4,float32/int8)",
    ),
    Option(
        name="tokens",
        flags=("--tokens",),
        field="n_tokens",
        read=int,
        metavar="N",
        help="number of text tokens to measure on (default 128)",
    ),
    COMPILE,
    DEVICE,
    THREADS,
)

MEASUREMENTS = (
    Measurement(
        name="formats",
        order=5,
        summary="memory, speed and error of each weight and cache format",
        description="Measure memory, speed and error of the logits of each weight and cache format, against float32.",
        doing="benchmarking",
        request=Formats,
        row=FormatMeasured,
        finished=FormatsFinished,
        options=OPTIONS,
        refusals={"dtype": "it measures several formats, and --formats chooses them"},
        check=check,
        key=lambda row: (row.dtype, row.cache),
        document=document,
        table=table,
    ),
)
