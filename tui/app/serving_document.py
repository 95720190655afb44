"""The served load as a table of the settings file. Does not import calc.speed, because the first paint waits for
this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any

from calc.units import MAX_COUNT, MAX_LIST
from tui.form.serving import LOADS, Serving

ENGINES = ("vllm", "sglang", "trtllm", "transformers", "llamacpp")
"""The engines that can be estimated, by their names in `calc.speed`."""
SHARES, LISTS = ("prefix_hit", "acceptance"), ("batches", "devices")


def serving_document(serving: Serving) -> dict[str, Any]:
    """Values that are not the default: shares as text, limits as a table."""
    usual = Serving()
    values = {f.name: getattr(serving, f.name) for f in fields(serving)}
    changed = {name: value for name, value in values.items() if value != getattr(usual, name) and value is not None}
    return {name: _written(name, value) for name, value in changed.items()}


def _written(name: str, value: Any) -> Any:
    if name == "limits":
        return dict(value)
    return list(value) if name in LISTS else str(value) if name in SHARES else value


def serving_from(table: Mapping[str, Any]) -> Serving:
    """What a table describes; what it lacks is the default. Raises ValueError."""
    values = {f.name: table[f.name] for f in fields(Serving) if f.name in table}
    values |= {name: Fraction(str(values[name])) for name in SHARES if name in values}
    values |= {name: tuple(values[name]) for name in LISTS if name in values}
    if "limits" in values:
        values["limits"] = tuple((str(name), float(seconds)) for name, seconds in dict(values["limits"]).items())
    serving = Serving(**values)
    if not all(_possible(serving)):
        raise ValueError("the served load has an invalid value")
    return serving


def _possible(serving: Serving) -> tuple[bool, ...]:
    shares = (serving.tp, serving.pp, serving.ep, serving.dp_attention, serving.dcp)
    counts = (*shares, serving.count, serving.prompt_tokens, serving.new_tokens, *serving.batches)
    texts = (*serving.devices, *(() if serving.version is None else (serving.version,)))
    return (
        all(_is_count(n) for n in (*counts, *(() if serving.chunk is None else (serving.chunk,)))),
        0 < len(serving.batches) <= MAX_LIST,
        len(serving.devices) <= MAX_LIST,
        all(isinstance(text, str) for text in texts),
        serving.load in LOADS,
        serving.engine in ENGINES,
        serving.drafted == 0 or (_is_count(serving.drafted) and serving.drafted <= MAX_LIST),
        0 <= serving.acceptance <= 1,
        serving.prefix_hit is None or 0 < serving.prefix_hit <= 1,
        all(name in ("ttft", "tpot", "e2e") and seconds > 0 for name, seconds in serving.limits),
        serving.price is None or 0 < float(serving.price) < 1e9,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_COUNT
