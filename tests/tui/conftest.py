"""Which panes the app of a test has, and that it is whole at first (tests/tui/run_app.py)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import tui.app.app
import tui.app.panes
from tests.tui.run_app import whole
from tui.app.app import KvscopeApp
from tui.panes.base import Pane


@pytest.fixture(autouse=True)
def _whole_apps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KvscopeApp, "run_test", whole)


@pytest.fixture(autouse=True)
def _panes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """``@pytest.mark.panes("memory")``: the app mounts that pane beside Spec, which takes half the time of all."""
    marker = request.node.get_closest_marker("panes")
    if marker is not None:
        made = tui.app.panes.later_panes

        def chosen() -> Iterator[Pane]:
            return (pane for pane in made() if pane.TITLE.lower() in marker.args)

        monkeypatch.setattr(tui.app.app, "later_panes", chosen)
