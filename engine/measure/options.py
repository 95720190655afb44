"""What a benchmark, batches, a list of formats or a thread count may be, checked before anything heavy is imported."""

from collections.abc import Sequence
from typing import cast, get_args

from engine.errors import OptionError
from engine.process.events import Batch, Benchmark, CacheKind, DType, FormatChoice, Formats

MAX_THREADS = 1024
MAX_TOKENS = 1_000_000
MAX_RANKS = 64
MAX_BATCH = 1024


def check_benchmark(options: Benchmark) -> None:
    """Raise `OptionError` unless the sweep can be run."""
    if not options.lengths:
        raise OptionError("lengths", "the benchmark needs at least one prompt length, such as 10,50,100")
    check_counts("lengths", options.lengths, high=MAX_TOKENS, noun="prompt length")
    check_count("new_tokens", options.new_tokens, low=1, high=MAX_TOKENS)
    check_count("repeats", options.repeats, low=1, high=1000)
    check_count("warmup", options.warmup, low=0, high=1000)
    check_threads(options.threads)
    check_ranks(options.tp)


def check_batch(options: Batch) -> None:
    """Raise `OptionError` unless the batches can be run, memory apart."""
    if not options.batches:
        raise OptionError("batches", "name at least one batch, such as 1,2,4,8 or 1..8")
    check_counts("batches", options.batches, high=MAX_BATCH, noun="batch")
    check_count("context", options.context, low=1, high=MAX_TOKENS)
    check_count("new_tokens", options.new_tokens, low=1, high=MAX_TOKENS)
    check_count("repeats", options.repeats, low=1, high=1000)
    check_threads(options.threads)
    check_ranks(options.tp)


def check_formats(options: Formats) -> None:
    """Raise `OptionError` unless the comparison can be run."""
    if not options.choices:
        raise OptionError("formats", "name at least one format, such as bfloat16,int8")
    check_count("tokens", options.n_tokens, low=2, high=4096)
    check_threads(options.threads)


def parse_formats(text: str) -> tuple[FormatChoice, ...]:
    """Comma-separated formats, each a dtype or dtype/cache: "bfloat16,int4,float32/int8". Raises OptionError."""
    return tuple(dict.fromkeys(_parse_format(part.strip()) for part in text.split(",")))


def _parse_format(text: str) -> FormatChoice:
    dtype, slash, cache = text.partition("/")
    dtypes = [name for name in get_args(DType) if name != "auto"]
    if dtype not in dtypes:
        raise OptionError("formats", f"{dtype!r} is no format; use {', '.join(dtypes)}, or one with a cache: int8/int8")
    if slash and cache not in get_args(CacheKind):
        raise OptionError("formats", f"{cache!r} is no way to keep the cache; use {', '.join(get_args(CacheKind))}")
    return FormatChoice(dtype=cast(DType, dtype), cache=cast(CacheKind, cache or "full"))


def check_threads(threads: int | None) -> None:
    """Raise `OptionError` unless torch could be given this many threads (None: its own choice)."""
    if threads is not None:
        check_count("threads", threads, low=1, high=MAX_THREADS)


def check_ranks(tp: int) -> None:
    """Raise `OptionError` unless that many tensor-parallel ranks could be started."""
    check_count("tp", tp, low=1, high=MAX_RANKS)


def check_count(field: str, value: int, *, low: int, high: int) -> None:
    """Raise `OptionError` unless low <= value <= high."""
    if not low <= value <= high:
        name = field.replace("_", "-")
        raise OptionError(field, f"{name} must be a whole number from {low:,} to {high:,}, not {value:,}")


def check_counts(field: str, values: Sequence[int], *, high: int, noun: str) -> None:
    """Raise `OptionError` unless all are from 1 to `high` and none is there twice."""
    for value in values:
        check_count(field, value, low=1, high=high)
    repeated = {value for value in values if values.count(value) > 1}
    if repeated:
        raise OptionError(field, f"the {noun} {min(repeated)} is given twice; once is enough")


def parse_ids(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers: "10,50,100". Raises ValueError with one sentence."""
    return tuple(_whole_number(part) for part in text.split(","))


def parse_counts(text: str) -> tuple[int, ...]:
    """The same with ranges that double and hold both ends: "1..6" is 1, 2, 4, 6. Raises ValueError."""
    return tuple(count for part in text.split(",") for count in _parse_range(part))


def _parse_range(text: str) -> list[int]:
    first, dots, last = text.partition("..")
    if not dots:
        return [_whole_number(text)]
    low, high = _whole_number(first), _whole_number(last)
    if not 0 < low <= high:
        raise ValueError(f"the range {text.strip()} does not go up from 1 or more; write one like 1..32")
    counts = [low]
    while counts[-1] < high:
        counts.append(min(2 * counts[-1], high))
    return counts


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text.strip()!r} is not a whole number; write a list like 10,50,100") from None
