"""How many examples a property is tried on."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

WHOLE = 100
"""Hypothesis's own number, and that of the whole suite; the profile of the fast one has fewer (`conftest`)."""


def examples(number: int, **options: Any) -> settings:
    """`number` examples in the whole suite, as many fewer in the fast one as of any property."""
    return settings(max_examples=max(1, number * settings.default.max_examples // WHOLE), deadline=None, **options)
