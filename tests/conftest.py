"""Hypothesis draws the same examples on every CI run; at home it goes on searching. Ctrl-C is heard everywhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.engine.reference import Reference

# Health checks time the drawing of examples, which says more of the machine than of the tests.
SLOW_MACHINE = [HealthCheck.too_slow]
settings.register_profile("default", deadline=None, suppress_health_check=SLOW_MACHINE)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("default")
if os.environ.get("CI"):
    settings.load_profile("ci")

# Processes that share the cores do not each start a thread for every one of them: they would wait for each other.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

# A job that a shell started in the background ignores SIGINT, and so would the tests of it and their processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Compiled steps are kept from run to run, and shared by the processes of one, beside pytest's own cache.

    Without that (``-p no:cacheprovider``) they are kept where the program keeps them.
    """
    os.environ["KVSCOPE_MACHINE"] = os.devnull + ".none"  # what was measured of this machine is no part of a test
    cache = getattr(config, "cache", None)
    if cache is not None:
        os.environ["KVSCOPE_CACHE"] = str(cache.mkdir("kvscope"))


ASSIGNMENT = Path(__file__).parents[2] / "shared" / "reference"


@pytest.fixture(scope="session")
def _own_reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    from tests.engine.reference import write_reference

    return write_reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(params=["own", "assignment"] if ASSIGNMENT.is_dir() else ["own"])
def reference(request: pytest.FixtureRequest, _own_reference: Reference) -> Reference:
    """The assignment's weight file and test cases: our equal of them, and the files themselves where they are."""
    from tests.engine.reference import Reference

    return _own_reference if request.param == "own" else Reference(ASSIGNMENT)
