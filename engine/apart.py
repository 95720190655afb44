"""Processes that the engine starts: Ctrl-C at the terminal does not reach them, and they find this package."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def apart() -> dict[str, Any]:
    """What `subprocess.Popen` takes for it: a session of its own, on Windows a group of its own."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def default_environment() -> Mapping[str, str] | None:
    """The environment in which the process finds this package in a checkout; None when it is installed."""
    if _PACKAGE_ROOT.name in ("site-packages", "dist-packages"):
        return None
    paths = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
