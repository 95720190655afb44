"""What devices admit of a study: the seam between the questions of `calc.fit.solve` and the rule that counts.

`Costs` is what every rule answers: `calc.fit.plain_costs` counts weights and cache only, `calc.fit.server_costs` what a
server reserves, and `calc.fit.rules` picks one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from calc.model.storage import FORMATS

if TYPE_CHECKING:
    from calc.explain.terms import Term
    from calc.model.storage import StorageFormat
    from calc.model.study import DeviceSpec, Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """How many requests of one context are admitted, and the bytes on the limiting device.

    `batch`: all that fit. `missing_bytes`: what the requested ones lack, 0 if they fit. `kv_bytes` and `state_bytes`
    are per request. `free_bytes`: what the requested ones leave, or what no request leaves if they do not fit (negative
    if even the weights do not fit). `problem`: why no server could run it; `runnable`: whether the rule counts it
    anyway. `stage`: the limiting pipeline stage, from 1; 0 if the rule has none. `steps`: the calculation, result
    first, if it comes with the answer.
    """

    batch: int
    missing_bytes: int
    weight_bytes: int = 0
    kv_bytes: int = 0
    state_bytes: int = 0
    free_bytes: int = 0
    problem: str | None = None
    runnable: bool = True
    stage: int = 0
    steps: tuple[Term, ...] = ()


class Costs(Protocol):
    """What the devices that share a model hold and admit, under one rule."""

    @property
    def study(self) -> Study:
        """The counted study."""

    @property
    def fewer_never_fit(self) -> bool:
        """Whether what does not fit in n pipeline stages cannot fit in fewer."""

    @property
    def rule(self) -> str:
        """What is counted, in words."""

    @property
    def any_degree(self) -> bool:
        """Whether devices share layers, so that any number of them can share the model."""

    def runs_on(self, device: DeviceSpec) -> bool:
        """Whether the rule's server runs on `device` at all."""

    def admission(self, context: int | None = None, batch: int | None = None) -> Admission:
        """The admission of `batch` requests (None: all that fit) of `context` tokens each (None: the study's)."""

    def steps(self, at: Admission, context: int) -> tuple[Term, ...]:
        """The calculation of `at`, the admission of `context` tokens: its result first."""

    def admits(self, context: int, batch: int) -> bool:
        """Whether `batch` requests of `context` tokens fit. A longer context never admits more."""

    def on(self, device: DeviceSpec) -> Costs:
        """The same on another device."""

    def stored(self, weights: StorageFormat, cache: StorageFormat) -> Costs:
        """The same with other storage formats."""

    def offered_formats(self) -> tuple[Sequence[StorageFormat], Sequence[StorageFormat]]:
        """Formats of weights and of the cache that could be chosen, the study's own among them."""

    def shared(self, tp: int, pp: int, batch: int) -> Admission:
        """The admission of the study's context on `pp` pipeline stages of `tp` devices each."""

    def least_stages(self, tp: int, batch: int) -> int:
        """Pipeline stages of `tp` devices below which `batch` requests certainly do not fit."""

    def equal_split_devices(self, batch: int, most: int) -> int | None:
        """The fewest devices by the assignment's rule, up to `most`; None if there is none or it does not apply."""

    def reason(self, at: Admission, batch: int) -> str:
        """In words: what is left free at `at`, or what is missing and for what."""

    def shortage(self, batch: int) -> str:
        """What a device lacks for `batch` requests, in a sentence; "" if they fit."""


def offered(names: Sequence[str], own: StorageFormat) -> list[StorageFormat]:
    """Formats by name; the study's own format replaces the one of its name, or comes first."""
    known = [own if name == own.name else FORMATS[name] for name in names]
    return known if own in known else [own, *known]
