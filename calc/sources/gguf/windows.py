"""How many tokens each layer keeps: what llama.cpp writes into its code for each architecture, and what files add.

Read off llama.cpp's ``load_arch_hparams`` (src/models/*.cpp, October 2026). Where an architecture has windows, the
file's ``attention.sliding_window_pattern`` (a period, or one flag per layer) goes before the period given here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calc.sources.gguf.facts import Facts, Undetermined

WINDOW, PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Every `period`-th layer keeps all tokens (0: none does; None: only the file says which).

    `full_first`: the first layer of each period, else the last. `default`: the window where the file has none.
    `fixed`: the window whatever the file says. `chunked`: it restarts. `only_layers`: the rule holds for a model of
    that many layers.
    """

    period: int | None
    full_first: bool = False
    default: int | None = None
    fixed: int | None = None
    chunked: bool = False
    only_layers: int | None = None


RULES: Mapping[str, Rule] = {
    "afmoe": Rule(period=4),
    "cohere2": Rule(period=4),
    "cohere2moe": Rule(period=4, full_first=True),
    "exaone-moe": Rule(period=4),
    "exaone4": Rule(period=4, default=4096, only_layers=64),
    "gemma2": Rule(period=2, default=4096),
    "gemma3": Rule(period=6),
    "gemma3n": Rule(period=5),
    "gemma4": Rule(period=None),
    "gpt-oss": Rule(period=2),
    "granite_swa": Rule(period=None),
    "laguna": Rule(period=4, full_first=True),
    "lfm2": Rule(period=0),
    "llama4": Rule(period=4, default=8192, fixed=8192, chunked=True),
    "maple": Rule(period=None),
    "mellum": Rule(period=4),
    "mimo2": Rule(period=None),
    "muse-glimmer": Rule(period=4),
    "olmo2": Rule(period=4),
    "plamo3": Rule(period=8),
    "smallthinker": Rule(period=4, full_first=True, fixed=4096),
    "spark2_5": Rule(period=None),
    "step35": Rule(period=None),
}


def windows(facts: Facts, n_layers: int) -> list[int | None]:
    """The tokens that each layer keeps; None where it keeps all. Raises Undetermined."""
    rule = RULES.get(facts.architecture)
    if rule is None or rule.only_layers not in (None, n_layers):
        return [None] * n_layers
    stated = facts.maybe(WINDOW)
    window = rule.default if stated is None else stated
    if not window:
        return [None] * n_layers
    window = rule.fixed or window
    return [window if slides else None for slides in _sliding(facts, rule, n_layers)]


def _sliding(facts: Facts, rule: Rule, n_layers: int) -> list[bool]:
    if isinstance(facts.get(PATTERN), list):
        return [bool(facts.at(PATTERN, i)) for i in range(n_layers)]
    period = facts.maybe(PATTERN)
    period = rule.period if period is None else period
    if period is None:
        raise Undetermined(f"{facts.architecture}.{PATTERN} missing: it says which layers slide")
    full = 0 if rule.full_first else period - 1
    return [not period or i % period != full for i in range(n_layers)]


def is_chunked(facts: Facts) -> bool:
    """Whether windows restart (Llama 4)."""
    rule = RULES.get(facts.architecture)
    return rule is not None and rule.chunked


def unused_window(facts: Facts, kept: list[int | None]) -> str | None:
    """The note on a window that the file states and llama.cpp does not apply."""
    if any(kept) or not (stated := facts.maybe(WINDOW)):
        return None
    return f"{WINDOW} {stated:,} is not used: llama.cpp has no windows for this {facts.architecture}"
