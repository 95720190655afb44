"""How long a test waits for what must happen, before it says that it never does."""

import time
from collections.abc import Callable

PATIENCE_S = 120.0
"""On a machine at any load: no test takes this long unless something hangs."""


def wait_until(reached: Callable[[], bool]) -> None:
    """Wait until `reached`, fail when that never comes."""
    end = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.002)
