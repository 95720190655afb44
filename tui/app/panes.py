"""The panes: their titles, their keys, and the order in which they are created."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tui.panes.base import Pane

PANES = ("Spec", "Memory", "Intensity", "Roofline", "Estimate", "Generate", "Benchmark", "Load")
"""Titles of the tabs; all but the first are imported after the first paint."""
PANE_KEYS = ("f2", "f3", "f4", "f5", "f6", "f7", "f8", "f12")
"""Their function keys; F9 to F11 have other uses, here or in terminals."""


def later_panes() -> Iterator[Pane]:
    """The panes that are not on the first screen, in tab order; the live panes share their measurements.

    Each is imported when its turn comes, so that keys are handled in between.
    """
    from tui.panes.memory import MemoryPane

    yield MemoryPane(id="pane-memory")
    from tui.panes.intensity import IntensityPane

    yield IntensityPane(id="pane-intensity")
    from tui.panes.roofline import RooflinePane

    yield RooflinePane(id="pane-roofline")
    from tui.panes.estimate import EstimatePane

    yield EstimatePane(id="pane-estimate")
    from tui.live.formats import Effects
    from tui.panes.generate import GeneratePane

    effects = Effects()
    yield GeneratePane(effects, id="pane-generate")
    from tui.panes.benchmark import BenchmarkPane

    yield BenchmarkPane(effects, id="pane-benchmark")
    from tui.panes.load import LoadPane

    yield LoadPane(id="pane-load")
