"""The axes of a sweep: the lists that vary."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from calc.model.checks import check_count
from calc.model.named import weights_as
from calc.model.spec import ModelSpec
from calc.model.storage import StorageFormat
from calc.model.stored_format import stored_format
from calc.model.study import DeviceSpec, Policy, Study

if TYPE_CHECKING:
    from calc.model.named import NamedFormat
    from calc.servers.records import ServerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The lists that vary. Each has at least one entry; contexts, batches and degrees are at least 1."""

    models: tuple[ModelSpec, ...]
    devices: tuple[DeviceSpec, ...]
    tps: tuple[int, ...]
    contexts: tuple[int, ...]
    batches: tuple[int, ...]
    weight_formats: tuple[StorageFormat | NamedFormat | None, ...]
    kv_formats: tuple[StorageFormat | None, ...]
    policy: Policy = Policy.EQUAL_SPLIT
    server: ServerOptions | None = None

    def __post_init__(self) -> None:
        for name in ("contexts", "batches", "tps"):
            values = getattr(self, name)
            check_count(name, min(values))
            check_count(name, max(values))

    @property
    def points(self) -> int:
        """Rows of the sweep."""
        return self.settings * len(self.contexts) * len(self.batches)

    @property
    def settings(self) -> int:
        """Combinations of everything except context and batch."""
        return prod(map(len, (self.models, self.devices, self.tps, self.weight_formats, self.kv_formats)))


def as_stored(study: Study, chosen: StorageFormat | NamedFormat | None) -> Study:
    """`study` with that weight format; None: as the checkpoint stores the weights, or the default format."""
    found = stored_format(study.model) if chosen is None else weights_as(chosen, study.model)
    return study if found is None else replace(study, weight_format=found)
