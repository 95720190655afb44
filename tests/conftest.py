"""Hypothesis draws the same examples on every CI run; at home it goes on searching. Ctrl-C is heard everywhere."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")

# A job that a shell started in the background ignores SIGINT, and so would the tests of it and their processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
