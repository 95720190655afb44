"""The measured cost of a model's formats, kept while the app runs and shown as a table. No widgets here.

The app owns one `Effects`: the Generate tab adds its runs, and both live tabs add their comparisons with float32.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from calc.commands.tables import KEPT, Column, Row, Table
from calc.units import Quantity, format_decimal, format_duration_s, format_rate
from engine.measure.kinds.formats import FormatMeasured, FormatRow, Formats
from engine.process.events import Loaded
from engine.records import CacheKind, Event, ModelInfo
from engine.weights.hub import cached_model
from tui.live.generation import Generation
from tui.live.result_text import SHORT_NAMES, times

BUNDLED = "bundled"
LEAST_TOKENS = 8
"""A run with fewer tokens has no useful median."""
MARK = "▶"
"""Marks the row of the current choice."""


class Choice(NamedTuple):
    """A combination that a model can run in: its actual dtype, the kind of cache, tensor-parallel ranks."""

    dtype: str
    cache: CacheKind
    tp: int

    @property
    def name(self) -> str:
        """``int4``, ``bfloat16, int8 cache, tp 2``."""
        cache = "" if self.cache == "full" else f", {self.cache} cache"
        return f"{self.dtype}{cache}" + (f", tp {self.tp}" if self.tp > 1 else "")

    @property
    def short_name(self) -> str:
        """``bf16/int8 tp2``."""
        cache = "" if self.cache == "full" else f"/{self.cache}"
        return f"{SHORT_NAMES.get(self.dtype, self.dtype)}{cache}" + (f" tp{self.tp}" if self.tp > 1 else "")


REFERENCE = Choice("float32", "full", 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A choice and its latest measurements. Bytes are per rank; errors None: not compared."""

    choice: Choice
    weight_bytes: int
    kv_token_bytes: int
    tpot_p50_s: float
    tokens_per_s: float
    n_same: int | None = None
    n_compared: int = 0
    mean_error: float | None = None


@dataclass(slots=True)
class _Model:
    """One model: its effects in the order of their first measurement, the last load, and what auto ran as."""

    effects: dict[Choice, Effect] = field(default_factory=dict)
    info: ModelInfo | None = None
    auto: str | None = None


def model_key(model: str | None) -> str:
    """One name for a model, however a request writes it: the real path, also for a name in the local cache."""
    if model is None:
        return BUNDLED
    path = model if os.path.exists(model) else cached_model(model) if "/" in model else None
    return model if path is None else os.path.realpath(path)


class Effects:
    """Measured formats of every model of this session, by the model's path."""

    def __init__(self) -> None:
        self._models: dict[str, _Model] = {}

    def of(self, model: str | None) -> tuple[Effect, ...]:
        """The measurements of a model: float32 on one rank first, the others in order."""
        found = self._models.get(model_key(model), _Model()).effects.values()
        return tuple(sorted(found, key=lambda effect: effect.choice != REFERENCE))

    def measured(self, model: str | None, choice: Choice) -> Effect | None:
        """What was measured of a model in one format."""
        return next((effect for effect in self.of(model) if effect.choice == choice), None)

    def known(self, model: str | None, held: ModelInfo | None) -> ModelInfo | None:
        """The model as it was loaded last: in this session, or as the engine holds it."""
        own = held is not None and model_key(model) in (held.name, model_key(held.path))
        return self._info(model) or (held if own else None)

    def _info(self, model: str | None) -> ModelInfo | None:
        """The model as it was loaded last, with the machine's rates if any load measured them."""
        return self._models.get(model_key(model), _Model()).info

    def auto(self, model: str | None) -> str | None:
        """The dtype that auto ran as; None if not yet known."""
        return self._models.get(model_key(model), _Model()).auto

    def take_run(self, run: Generation) -> None:
        """Keep the measurements of a run with the cache if it was long enough."""
        request, info, timing = run.request, run.model, run.timing
        if info is None:
            return
        of_model = self._take_loaded(request.model, request.dtype, info)
        if timing is None or not request.use_cache or timing.n_tokens < LEAST_TOKENS:
            return
        if timing.tpot_p50_s is None or timing.tokens_per_s is None:
            return
        choice = Choice(info.dtype, request.cache, request.tp)
        old = of_model.effects.get(choice)
        new = Effect(
            choice=choice,
            weight_bytes=info.rank_weight_bytes or info.weight_bytes,
            kv_token_bytes=run.kv_token_bytes,
            tpot_p50_s=timing.tpot_p50_s,
            tokens_per_s=timing.tokens_per_s,
        )
        if old is not None:
            new = replace(new, n_same=old.n_same, n_compared=old.n_compared, mean_error=old.mean_error)
        of_model.effects[choice] = new

    def take_formats(self, request: Formats, events: Sequence[Event]) -> None:
        """Keep the results of a comparison, from a batch of its events."""
        for event in events:
            if isinstance(event, FormatMeasured):
                effect = _effect_of(event.row)
                self._model(request.model).effects[effect.choice] = effect
            elif isinstance(event, Loaded):
                self._take_loaded(request.model, request.choices[-1].dtype, event.model)

    def _take_loaded(self, model: str | None, dtype: str, info: ModelInfo) -> _Model:
        """Record a load of `model` requested as `dtype`. Ranks measure no rates, so those of an earlier load stay."""
        of_model = self._model(model)
        if info.read_bytes_per_s is None and of_model.info is not None:
            rates = of_model.info.read_bytes_per_s, of_model.info.matmul_flops_per_s
            info = msgspec.structs.replace(info, read_bytes_per_s=rates[0], matmul_flops_per_s=rates[1])
        of_model.info = info
        if dtype == "auto":
            of_model.auto = info.dtype
        return of_model

    def _model(self, model: str | None) -> _Model:
        return self._models.setdefault(model_key(model), _Model())


def _effect_of(row: FormatRow) -> Effect:
    return Effect(
        choice=Choice(row.dtype, row.cache, 1),
        weight_bytes=row.weight_bytes,
        kv_token_bytes=row.kv_bytes_per_token,
        tpot_p50_s=row.tpot_p50_s,
        tokens_per_s=row.tokens_per_s,
        n_same=row.n_same,
        n_compared=row.n_tokens,
        mean_error=row.mean_error,
    )


def effects_table(effects: Sequence[Effect], chosen: Choice | None) -> Table:
    """A row per choice, with the current one marked: speed with its ratio to the first row's, bytes, error of the
    logits."""
    names = {
        "● TPOT p50": KEPT, "● Rate": 3, "Speedup": 7, "● Bytes": 6, "● Cache/token": 1, "Same token": 5,
        "Mean |Δlogit|": 2,
    }  # fmt: skip
    return Table(
        title="Formats of this model",
        columns=("Format", *(Column(name, numeric=True, priority=p) for name, p in names.items())),
        rows=[_row(effect, effects[0], chosen) for effect in effects],
    )


def _row(effect: Effect, first: Effect, chosen: Choice | None) -> Row:
    tp, is_chosen = effect.choice.tp, effect.choice == chosen

    def size(n_bytes: int) -> Quantity:
        return Quantity(format_decimal(n_bytes) + (f" ×{tp}" if tp > 1 else ""), n_bytes, "B")

    cells = (
        f"{MARK if is_chosen else ' '} {effect.choice.short_name}",
        format_duration_s(effect.tpot_p50_s),
        format_rate(effect.tokens_per_s, "tok/s"),
        times(first.tpot_p50_s / effect.tpot_p50_s),
        size(effect.weight_bytes),
        size(effect.kv_token_bytes),
        "–" if effect.n_same is None else f"{effect.n_same}/{effect.n_compared}",
        "–" if effect.mean_error is None else Quantity(f"{effect.mean_error:.4f}", effect.mean_error),
    )
    return Row(cells, title=effect.choice.name, strong=is_chosen)
