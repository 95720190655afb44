"""What a format will cost, in one line, as soon as it is chosen: predictions plain, measurements with ●. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from calc.units import format_decimal, format_duration_s
from engine.records import ModelInfo
from tui.live.formats import Choice, Effect
from tui.live.load_memory import weight_bytes
from tui.live.predict import DTYPES, cache_token_term, predicted_times, read_spec, spec_of

Turned = Literal["dtype", "cache-kind", "tp"]
AUTO_LINES = (
    "auto: the file's own type, or float32 if this CPU is slow at 16 bits",
    "auto: the file's own type if this CPU is fast at it",
)
"""Before a run has shown what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """calc's figures for a choice before it runs; None if the model's sizes or the machine's rates are unknown.

    Bytes are the total of all ranks; `full_token_bytes` is that of the full cache, for comparison.
    """

    weight_bytes: float | None = None
    token_bytes: float | None = None
    full_token_bytes: float | None = None
    tpot_s: float | None = None


def expected(choice: Choice, path: str, info: ModelInfo | None, *, prompt_tokens: int, new_tokens: int) -> Expected:
    """calc's figures for a model at `path` that was loaded as `info`, if it was."""
    spec = read_spec(path) or (spec_of(info) if info is not None else None)
    if spec is None:
        return Expected()
    weights = weight_bytes(spec, choice.dtype)
    if info is None:
        return Expected(weight_bytes=weights)
    as_chosen = info
    if choice.dtype != info.dtype:
        cache_dtype = _cache_dtype(choice.dtype, info)
        as_chosen = msgspec.structs.replace(info, dtype=choice.dtype, cache_dtype=cache_dtype, step_weight_bytes=None)
    times = predicted_times(as_chosen, choice.cache, prompt_tokens=prompt_tokens, new_tokens=new_tokens)
    return Expected(
        weight_bytes=weights,
        token_bytes=float(cache_token_term(as_chosen, choice.cache).value),
        full_token_bytes=float(cache_token_term(as_chosen).value),
        tpot_s=None if times is None else times.tpot_s,
    )


def _cache_dtype(dtype: str, info: ModelInfo) -> str:
    """With packed weights, the cache has the dtype of arithmetic: the loaded model's if it is also packed."""
    if dtype in DTYPES:
        return dtype
    return info.cache_dtype if info.dtype not in DTYPES and info.cache_dtype else "bfloat16"


def choice_lines(
    choice: Choice, turned: Turned, ahead: Expected, *, measured: Effect | None, info: ModelInfo | None
) -> tuple[str, ...]:
    """The sentence on a newly chosen setting, longest first; it begins with what that dial changes."""
    if choice.tp > 1 and choice.dtype not in DTYPES:
        return (f"✗ {choice.dtype} weights run on one rank only: set tp to 1 or choose a floating-point dtype",)
    heads = {"dtype": _weights, "cache-kind": _cache, "tp": _ranks}[turned](choice, ahead, measured, info)
    bound = "" if ahead.tpot_s is None else f"TPOT ≥ {format_duration_s(ahead.tpot_s)}"
    speed = "" if measured is None else f"● {format_duration_s(measured.tpot_p50_s)}"
    same, error, same_short = _agreement(measured)
    ask = "" if same else "f: measure its error"
    return (
        _joined(heads[0], bound and f"{bound} predicted", speed and f"{speed} measured", same + error, ask),
        _joined(heads[0], bound, speed, same, ask),
        _joined(heads[0], bound, speed, same_short),
        _joined(heads[1], bound, speed, same_short),
        _joined(heads[1], bound.removeprefix("TPOT "), speed, same_short),
    )


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _agreement(measured: Effect | None) -> tuple[str, str, str]:
    """How close the logits are to float32's: tokens, mean error, a short form; empty if they were not compared."""
    if measured is None or measured.n_same is None or measured.mean_error is None:
        return "", "", ""
    n_same, n_compared = measured.n_same, measured.n_compared
    full = f"● {n_same} of {n_compared} tokens as in float32"
    return full, f", |Δlogit| {measured.mean_error:.4f}", f"● {n_same}/{n_compared} same"


def _weights(choice: Choice, ahead: Expected, measured: Effect | None, info: ModelInfo | None) -> tuple[str, str]:
    """``int4: 153 MB of weights (bfloat16 269 MB)``: beside what is loaded."""
    size = _size(measured.weight_bytes if measured is not None else None, ahead.weight_bytes)
    if not size:
        return choice.name, choice.short_name
    beside = info is not None and info.dtype != choice.dtype and choice.tp == info.tp == 1
    now = f" ({info.dtype} {format_decimal(info.weight_bytes)})" if beside and info is not None else ""
    each = " per rank" if measured is not None and choice.tp > 1 else ""
    return f"{choice.name}: {size} of weights{each}{now}", f"{choice.short_name}: {size}{each}"


def _cache(choice: Choice, ahead: Expected, measured: Effect | None, info: ModelInfo | None) -> tuple[str, str]:
    """``int8 cache: 12.24 kB per token (full 23.04 kB)``."""
    size = _size(measured.kv_token_bytes if measured is not None else None, ahead.token_bytes)
    name = f"{choice.cache} cache"
    if not size:
        return name, name
    if choice.cache == "window" and info is not None and info.sliding_window is None:
        return f"{name}: the same as full, no layer has a window", f"{name}: as full"
    full = ahead.full_token_bytes
    beside = f" (full {format_decimal(full)})" if choice.cache != "full" and choice.tp == 1 and full else ""
    each = " and rank" if measured is not None and choice.tp > 1 else ""
    return f"{name}: {size} per token{each}{beside}", f"{name}: {size}"


def _ranks(choice: Choice, ahead: Expected, measured: Effect | None, info: ModelInfo | None) -> tuple[str, str]:
    """``tp 2: 135 MB of weights per rank (269 MB on one)``; predicted: an even share."""
    share = None if ahead.weight_bytes is None else ahead.weight_bytes / choice.tp
    size = _size(measured.weight_bytes if measured is not None else None, share)
    name = f"tp {choice.tp}"
    if not size:
        return name, name
    if choice.tp == 1:
        return f"{name}: {size} of weights", f"{name}: {size}"
    about = "" if measured is not None else "about "
    whole = f" ({format_decimal(ahead.weight_bytes)} on one)" if ahead.weight_bytes else ""
    return f"{name}: {about}{size} of weights per rank{whole}", f"{name}: {size} per rank"


def _size(measured: float | None, predicted: float | None) -> str:
    """Bytes as measured, else as predicted; empty if neither is known."""
    if measured is not None:
        return f"● {format_decimal(measured)}"
    return "" if predicted is None else format_decimal(predicted)
