"""The fields of the Load pane: how each is read and written, its meaning, and its ``kvscope simulate`` options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calc.commands.options import limits
from calc.model.study import Study
from calc.simulate.lengths import parse_lengths
from calc.units import parse_count, parse_share
from tui.form.command_line import study_options
from tui.form.load import ARRIVALS, LoadAsked
from tui.form.serving import Limit

REQUESTS = 2000
"""Requests simulated at each rate: enough for p99, and simulated in a fraction of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadField:
    """A field: label, cells, reader (to values of `LoadAsked` by name), writer, and its F1 help."""

    name: str
    label: str
    width: int
    read: Callable[[str], Mapping[str, Any]]
    write: Callable[[LoadAsked], str]
    meaning: str
    blank: str = ""


def _lengths(name: str) -> Callable[[str], Mapping[str, Any]]:
    def read(text: str) -> Mapping[str, Any]:
        parse_lengths(text)
        return {name: text.strip()}

    return read


def _share(text: str) -> Mapping[str, Any]:
    return {"prefix_hit": parse_share(text) if text.strip() else None}


def _limits(text: str) -> Mapping[str, Any]:
    return {"limits": tuple(limits(text).items()) if text.strip() else ()}


def limit_words(found: tuple[Limit, ...]) -> str:
    """Limits as typed text that reads back to the same: ``ttft=500ms,tpot=50ms``."""
    return ",".join(f"{name}={value * 1e3:.10g}ms" for name, value in found)


LENGTHS = "1024, 512..2048, exponential:300, normal:1000,200 or lognormal:800,0.7 (median, sigma)."
FIELDS = (
    LoadField(
        name="prompt",
        label="prompt",
        width=14,
        read=_lengths("prompt"),
        write=lambda asked: asked.prompt,
        meaning=f"Prompt tokens: {LENGTHS}",
    ),
    LoadField(
        name="new",
        label="out",
        width=14,
        read=_lengths("new"),
        write=lambda asked: asked.new,
        meaning=f"Generated tokens: {LENGTHS}",
    ),
    LoadField(
        name="prefix",
        label="prefix",
        width=5,
        read=_share,
        write=lambda asked: "" if asked.prefix_hit is None else f"{float(asked.prefix_hit):.10g}",
        meaning="Share of every prompt that is a common prefix, such as 0.5 or 50%.",
        blank="none",
    ),
    LoadField(
        name="limits",
        label="limits",
        width=24,
        read=_limits,
        write=lambda asked: limit_words(asked.limits),
        meaning="Limits that p99 must meet, any of: ttft=500ms,tpot=50ms,e2e=10s.",
        blank="none",
    ),
    LoadField(
        name="tp",
        label="TP",
        width=4,
        read=lambda text: {"tp": parse_count(text, what="TP", maximum=1024)},
        write=lambda asked: str(asked.tp),
        meaning="Tensor-parallel GPUs that share one copy of the model.",
    ),
)


def load_words(study: Study, asked: LoadAsked) -> list[str]:
    """Options of ``kvscope simulate``; without a rate."""
    words = [*study_options(study), "--requests", str(REQUESTS)]
    for name, value, usual in (
        ("--prompt-tokens", asked.prompt, "1024"),
        ("--new-tokens", asked.new, "256"),
        ("--prefix-hit", "" if asked.prefix_hit is None else str(float(asked.prefix_hit)), ""),
        ("--limit", limit_words(asked.limits), ""),
        ("--tp", str(asked.tp), "1"),
        ("--arrivals", asked.arrivals, ARRIVALS[0]),
    ):
        if value != usual:
            words += [name, value]
    return words
