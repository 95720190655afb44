"""Work beside the messages of the app, as Textual's `run_worker` takes it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec

P = ParamSpec("P")


def work(do: Callable[P, Coroutine[Any, Any, None]], *args: P.args, **named: P.kwargs) -> Callable[[], Any]:
    """`do` with its arguments, not yet started: a coroutine would never be awaited if its worker is cancelled first."""
    return partial(do, *args, **named)
