"""What a benchmark, a list of formats or a thread count may be, checked before anything heavy is imported."""

from typing import cast, get_args

from engine.errors import OptionError
from engine.events import Benchmark, CacheKind, DType, FormatChoice, Formats

MAX_THREADS = 1024
MAX_TOKENS = 1_000_000
MAX_RANKS = 64


def check_benchmark(options: Benchmark) -> None:
    """Raise `OptionError` unless the sweep can be run."""
    if not options.lengths:
        raise OptionError("lengths", "the benchmark needs at least one prompt length, such as 10,50,100")
    for length in options.lengths:
        check_count("lengths", length, low=1, high=MAX_TOKENS)
    repeated = {length for length in options.lengths if options.lengths.count(length) > 1}
    if repeated:
        raise OptionError("lengths", f"the prompt length {min(repeated)} is given twice; once is enough")
    check_count("new_tokens", options.new_tokens, low=1, high=MAX_TOKENS)
    check_count("repeats", options.repeats, low=1, high=1000)
    check_count("warmup", options.warmup, low=0, high=1000)
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


def parse_counts(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers: "10,50,100". Raises ValueError with one sentence."""
    parts = [part.strip() for part in text.split(",")]
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        wrong = next((part for part in parts if not part.lstrip("+-").isdigit()), text)
        raise ValueError(f"{wrong!r} is not a whole number; write a list like 10,50,100") from None
