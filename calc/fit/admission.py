"""What devices admit of a study: the seam between the questions of `calc.fit.solve` and the rule that counts.

`Costs` is what every rule answers: `calc.fit.plain_costs` counts weights and cache alone, `calc.fit.server_costs` what
a server reserves, and `calc.fit.rules` picks one of them.
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
    """How many requests of one context are admitted, and the bytes of the device that decides.

    `batch`: all that fit. `missing_bytes`: what those asked for lack, 0 where they fit. `kv_bytes` and `state_bytes`
    are of one request. `free_bytes`: left beside the requests asked for, or beside none where they do not fit
    (then negative where even the weights do not). `problem`: why no server could run it; `runnable`: whether the
    rule counts it regardless. `stage`: the pipeline stage that decides, from 1; 0 where the rule does not say.
    `steps`: the calculation, result first, where it comes with the answer.
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
        """The study that is counted."""

    @property
    def fewer_never_fit(self) -> bool:
        """Whether what does not fit n pipeline stages does not fit fewer either."""

    @property
    def rule(self) -> str:
        """What is counted, in words."""

    @property
    def any_degree(self) -> bool:
        """Whether devices share layers, so that any number of them does."""

    def runs_on(self, device: DeviceSpec) -> bool:
        """Whether the rule's server runs on `device` at all."""

    def admission(self, context: int | None = None, batch: int | None = None) -> Admission:
        """What is admitted of `context` tokens (None: the study's) for `batch` requests (None: all that fit)."""

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
        """What is admitted of the study's context by `pp` pipeline stages of `tp` devices each."""

    def least_stages(self, tp: int, batch: int) -> int:
        """Pipeline stages of `tp` devices below which `batch` requests certainly do not fit."""

    def equal_split_devices(self, batch: int, most: int) -> int | None:
        """The fewest devices by the assignment's rule, up to `most`; None where there is none or it does not apply."""

    def reason(self, at: Admission, batch: int) -> str:
        """What stays free of `at`, or what is missing and for what, in words."""

    def shortage(self, batch: int) -> str:
        """What a device lacks for `batch` requests, in a sentence; "" if they fit."""


def offered(names: Sequence[str], own: StorageFormat) -> list[StorageFormat]:
    """Formats by name, the study's own in place of the one of its name, else first."""
    known = [own if name == own.name else FORMATS[name] for name in names]
    return known if own in known else [own, *known]
