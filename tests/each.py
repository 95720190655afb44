"""Many values of one kind in one test: a millisecond each, where a test of its own takes several beside."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def each(name: str, values: Iterable[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Call the test with every value as its argument `name`; the failures are raised together, each names its value."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def tested(*args: Any, **fixtures: Any) -> None:
            failures = []
            for value in values:
                try:
                    test(*args, **fixtures, **{name: value})
                except Exception as failure:
                    failure.add_note(f"{name} is {getattr(value, 'id', value)}")
                    failures.append(failure)
            if failures:
                raise ExceptionGroup(f"values of {name} that fail", failures)

        signature = inspect.signature(test)
        others = [parameter for key, parameter in signature.parameters.items() if key != name]
        tested.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return tested

    return decorate
