"""What all tests share: how many examples are tried, what is compiled once, and that no process is left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.engine.reference import Reference

# Health checks time the drawing of examples, which says more of the machine than of the tests.
SLOW_MACHINE = [HealthCheck.too_slow]
# Hypothesis draws the same examples on every CI run; at home it goes on searching.
settings.register_profile("default", deadline=None, suppress_health_check=SLOW_MACHINE)
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True)
settings.load_profile("default")
if os.environ.get("CI"):
    settings.load_profile("ci")

# Processes that share the cores do not each start a thread for every one of them: they would wait for each other.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))

# The tests start the program some hundred times: each of them would compile it anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Looking for cycles after every 700 new objects took a fifth of the time in which the tests are collected.
gc.set_threshold(50_000)

# A job that a shell started in the background ignores SIGINT, and so would the tests of it and their processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


FAST_EXAMPLES = 25
"""How many examples a property is tried on in the fast suite, where it does not say; in the whole one 100."""


def pytest_configure(config: pytest.Config) -> None:
    """Compiled steps are kept from run to run, and shared by the processes of one, beside pytest's own cache.

    Without that (``-p no:cacheprovider``) they are kept where the program keeps them.
    """
    if config.getoption("markexpr") == "not slow":
        settings.register_profile("fast", parent=settings.default, max_examples=FAST_EXAMPLES)
        settings.load_profile("fast")
    os.environ["KVSCOPE_MACHINE"] = os.devnull + ".none"  # what was measured of this machine is no part of a test
    cache = getattr(config, "cache", None)
    if cache is not None:
        os.environ["KVSCOPE_CACHE"] = str(cache.mkdir("kvscope"))


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: the collector need not look at these millions of objects again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _processes() -> Iterator[list[int]]:
    """How many processes have been started, as the one number of a list."""
    started = [0]
    begin = subprocess.Popen.__init__

    def counted(process: subprocess.Popen[Any], *args: Any, **options: Any) -> None:
        started[0] += 1
        begin(process, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", counted)
        yield started


@pytest.fixture(autouse=True)
def _leaves_no_process_behind(_processes: list[int]) -> Iterator[None]:
    """A process or pipe left open is the failure of its own test, not of the one that runs when it is collected."""
    before = _processes[0]
    yield
    if _processes[0] != before:
        gc.collect()


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
