"""tests.each: every value is tried, and every failing one is named."""

from __future__ import annotations

import inspect

import pytest

from tests.each import each


def test_every_failing_value_is_named_and_the_others_are_tried() -> None:
    seen = []

    @each("number", [1, 2, 3, 4])
    def odd(tmp_path: str, number: int) -> None:
        seen.append((tmp_path, number))
        assert number % 2

    assert list(inspect.signature(odd).parameters) == ["tmp_path"]
    with pytest.raises(ExceptionGroup) as caught:
        odd(tmp_path="here")
    assert seen == [("here", 1), ("here", 2), ("here", 3), ("here", 4)]
    assert [failure.__notes__[-1] for failure in caught.value.exceptions] == ["number is 2", "number is 4"]
