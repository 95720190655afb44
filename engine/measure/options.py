"""The options of measurements as data, and what their values may be. Checked before anything heavy is imported."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from engine.errors import OptionError
from engine.records import ALL, MAX_RANKS, TO_THE_END, CompileMode, Device, DType

MAX_THREADS = 1024
MAX_TOKENS = 1_000_000
MAX_REPEATS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a command: its words, its help, and the field of the request that it sets.

    `read` turns the text into a value, and raises ValueError or EngineError with one sentence. A `constant` makes it a
    flag without a value, which sets the field to just that.
    """

    name: str
    flags: tuple[str, ...]
    field: str
    help: str
    read: Callable[[str], Any] = str
    write: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()
    metavar: str = ""
    constant: object = None

    def words(self, value: object) -> list[str]:
        """The option as a command line writes it for `value`, in its first word."""
        return [self.flags[0]] if self.constant is not None else [self.flags[0], self.write(value)]


MODEL_HELP = ".gguf, .safetensors, .pt, a model folder, org/name or org/name:Q4_K_M (default: the bundled model)"
MODEL = Option(
    name="weights",
    flags=("--model", "--weights", "--model_state_dict", "--model-state-dict"),
    field="model",
    metavar="FILE",
    help=MODEL_HELP,
)
DTYPE = Option(
    name="dtype",
    flags=("--dtype",),
    field="dtype",
    choices=get_args(DType),
    help="default: float64 to evaluate, else auto",
)
COMPILE = Option(
    name="compile",
    flags=("--compile",),
    field="compile",
    choices=get_args(CompileMode),
    help="use the compiled decode step (default auto; off for benchmark)",
)
TP = Option(
    name="tp",
    flags=("--tp",),
    field="tp",
    read=int,
    metavar="N",
    help="tensor-parallel ranks, as processes (default 1)",
)
DEVICE = Option(
    name="device",
    flags=("--device",),
    field="device",
    choices=get_args(Device),
    help="default auto: cuda if torch finds a GPU, else cpu",
)
THREADS = Option(
    name="threads",
    flags=("--threads",),
    field="threads",
    read=int,
    metavar="N",
    help="torch threads (default: 1 for a small model)",
)
N_HEADS = Option(
    name="n_heads",
    flags=("--n-heads",),
    field="n_heads",
    read=int,
    metavar="N",
    help="attention heads, for weights in the assignment's format (default 1)",
)
MODEL_OPTIONS = (MODEL, DTYPE, COMPILE, TP, DEVICE, THREADS, N_HEADS)
"""What every command takes that runs a model."""
NEW_TOKENS = Option(
    name="new_tokens",
    flags=("--new-tokens",),
    field="new_tokens",
    read=int,
    metavar="N",
    help="default 40 (for batch: 16 steps)",
)
REPEATS = Option(name="repeats", flags=("--repeats",), field="repeats", read=int, metavar="N", help="default 5")


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
        raise OptionError(field, f"the {noun} {min(repeated)} is given twice")


def parse_ids(text: str) -> tuple[int, ...]:
    """Comma-separated whole numbers: "10,50,100". Raises ValueError with one sentence."""
    return tuple(_whole_number(part) for part in text.split(","))


def parse_new_tokens(text: str) -> int:
    """A whole number of tokens to generate, or "all" to the end of the context. Raises ValueError."""
    return TO_THE_END if text == ALL else _whole_number(text)


def parse_counts(text: str) -> tuple[int, ...]:
    """The same with ranges that double and hold both ends: "1..6" is 1, 2, 4, 6. Raises ValueError."""
    return tuple(count for part in text.split(",") for count in _parse_range(part))


def write_counts(counts: Sequence[int]) -> str:
    """Counts as `parse_counts` reads them."""
    return ",".join(map(str, counts))


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
