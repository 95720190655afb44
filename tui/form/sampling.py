"""Reading the options of the live panes: text in, values or one sentence out."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

from calc.errors import QuantityError
from calc.units import parse_count, parse_counts
from engine.errors import OptionError
from engine.measure.kinds.batch import MAX_BATCH
from engine.measure.kinds.machine import dtypes_of
from engine.measure.options import MAX_TOKENS
from engine.records import ALL, TO_THE_END
from engine.speculation import Speculate, parse_speculate

DTYPE_CHOICES = ("auto", "float32", "bfloat16", "float16", "float64", "int8", "int4")
DTYPE_HELP = (
    "Data type of the weights and of the cache. auto: the type in the file. int8 and int4 apply to the weights only, "
    "with one scale per 32 values; they lose some precision."
)
CACHE_CHOICES = ("full", "window", "int8")
CACHE_HELP = (
    "full: keep all keys and values. window: sliding-window layers keep only their window. int8: keep them in 8 "
    "bits, with one scale per head."
)
TP_CHOICES = ("1", "2", "3", "4", "6", "8")
TP_HELP = "Tensor-parallel ranks: processes that share the heads, weights and cache."
COMPILED_CHOICES = ("off", "auto")
COMPILED_HELP = (
    "For the latency sweep. off: runs with and without the cache use the same layers. auto: runs with the cache "
    "use the compiled step if there is one, as batches do."
)
ROWS_CHOICES = ("ragged", "equal")
ROWS_HELP = "For batches. ragged: row lengths from half the context to all of it. equal: all rows are equally long."
MAX_NEW_TOKENS = 1_000_000
MAX_SEED = 2**63 - 1
_IDS = re.compile(r"\s*(?:ids\s*:)?\s*\[?\s*([0-9]+(?:[\s,]+[0-9]+)*)[\s,]*\]?\s*", re.IGNORECASE)


def read_new_tokens(text: str) -> int:
    """The number of tokens to generate; all: to the end of the context."""
    if text.strip().lower() == ALL:
        return TO_THE_END
    return parse_count(text, what="new tokens", maximum=MAX_NEW_TOKENS)


def new_tokens_text(count: int) -> str:
    """As shown to the user."""
    return ALL if count == TO_THE_END else f"{count:,}"


def read_temperature(text: str) -> float:
    """0 or blank is greedy."""
    return _read_number(text or "0", what="temperature", low=0.0, high=100.0, allowed="0 (greedy) to 100")


def read_top_k(text: str) -> int | None:
    """Blank is off."""
    return parse_count(text, what="top-k") if text.strip() else None


def read_top_p(text: str) -> float | None:
    """Blank is off."""
    if not text.strip():
        return None
    value = _read_number(text, what="top-p", low=0.0, high=1.0, allowed="above 0 and at most 1")
    if value == 0:
        raise QuantityError("top-p must be above 0 and at most 1, not 0")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class MoreSampling:
    """The rarely used options, all in one field."""

    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    model_sampling: bool = False
    stop: tuple[str, ...] = ()
    speculate: Speculate | None = None


MORE_HELP = (
    "min-p 0.05: leave out unlikely tokens. repetition 1.1, presence 0.5: penalties. "
    'stop "TEXT": end before this text (\\n is a new line). '
    "speculate lookup, or the path of a smaller model: draft tokens; the text stays the same (lookup,7: 7 per step). "
    "model: use the model's own settings if temperature is 0 or an option is off."
)
_MORE = {
    "min-p": ("min_p", 0.0, 1.0, "0 to 1"),
    "repetition": ("repetition_penalty", 0.01, 100.0, "above 0, 1 is off"),
    "presence": ("presence_penalty", -100.0, 100.0, "-100 to 100, 0 is off"),
}


def read_more(text: str) -> MoreSampling:
    """``min-p 0.05, repetition 1.1, stop "END", model``; blank is none of them."""
    try:
        words = [word.strip(",") for word in shlex.split(text.replace("\\", "\\\\"))]
    except ValueError:
        raise QuantityError('put the stop text in quotes: stop "END"') from None
    found: dict[str, Any] = {"stop": ()}
    left = iter(word for word in words if word)
    for name in left:
        if name == "model":
            found["model_sampling"] = True
            continue
        value = next(left, None)
        if name == "speculate" and value:
            found["speculate"] = _read_speculate(value)
        elif name == "stop" and value:
            found["stop"] = (*found["stop"], value.replace("\\n", "\n").replace("\\t", "\t"))
        elif name in _MORE and value is not None:
            field, low, high, allowed = _MORE[name]
            found[field] = _read_number(value, what=name, low=low, high=high, allowed=allowed)
        else:
            raise QuantityError(
                f'{name[:40]!r} is not known or has no value; use {", ".join(_MORE)}, stop "TEXT", speculate, model'
            )
    return MoreSampling(**found)


def _read_speculate(text: str) -> Speculate:
    try:
        return parse_speculate(text)
    except OptionError as error:
        raise QuantityError(error.message) from None


def read_seed(text: str) -> int | None:
    """Blank means a new seed for each run."""
    return parse_count(text, what="seed", minimum=0, maximum=MAX_SEED) if text.strip() else None


def read_path(text: str) -> str | None:
    """Blank means the bundled file; ``~`` is the home folder. The engine checks whether it exists."""
    stripped = text.strip()
    if not stripped:
        return None
    if "\0" in stripped:
        raise QuantityError("a path cannot contain a NUL character")
    from os.path import expanduser

    return expanduser(stripped)


def read_dtypes(text: str) -> str:
    """Names of dtypes separated by commas; blank means the default ones."""
    try:
        dtypes_of(text.strip())
    except OptionError as error:
        raise QuantityError(error.message) from None
    return text.strip()


def read_atol(text: str) -> float | None:
    """Blank is the default for the dtype."""
    if not text.strip():
        return None
    value = _read_number(text, what="tolerance", low=0.0, high=1e9, allowed="a small number such as 1e-4")
    if value == 0:
        raise QuantityError("tolerance must be above 0, such as 1e-4")
    return value


def read_lengths(text: str) -> tuple[int, ...]:
    """Prompt lengths, each at least one token."""
    return parse_counts(text, what="prompt lengths", maximum=10**6)


def read_batches(text: str) -> tuple[int, ...]:
    """Batch sizes."""
    return parse_counts(text, what="batches", maximum=MAX_BATCH)


def read_context(text: str) -> int:
    """Tokens of the longest row."""
    return parse_count(text, what="context", maximum=MAX_TOKENS)


def read_repeats(text: str) -> int:
    """Number of repeats of a measurement."""
    return parse_count(text, what="repeats", maximum=1000)


def read_ids(text: str) -> tuple[int, ...] | None:
    """Token ids in ``1, 2, 3`` or ``ids: 1 2 3``; None for any other text."""
    match = _IDS.fullmatch(text)
    return tuple(int(part) for part in re.split(r"[\s,]+", match[1])) if match else None


def _read_number(text: str, *, what: str, low: float, high: float, allowed: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise QuantityError(f"{what} must be a number, {allowed}, not {text.strip()[:40]!r}") from None
    if not low <= value <= high:
        raise QuantityError(f"{what} must be {allowed}, not {text.strip()[:40]}")
    return value
