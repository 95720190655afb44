"""Processes that Ctrl-C at the terminal does not reach: who started them decides when they end."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def apart() -> dict[str, Any]:
    """What `subprocess.Popen` takes for it: a session of its own, on Windows a group of its own."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}
