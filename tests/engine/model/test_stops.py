"""Stop texts: nothing of one is ever shown, and all before it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.stops import StopTexts


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["one two", " END three"], ["END"], "one two "),
        (["one E", "N", "D"], ["END"], "one "),
        (["EN", "EN", "D x"], ["END"], "EN"),
        (["aaab"], ["aab", "ab"], "a"),
        (["no stop at E", "N"], ["END"], "no stop at EN"),
        (["all of it"], [], "all of it"),
    ],
)
def test_what_is_shown(pieces: list[str], stops: list[str], shown: str) -> None:
    texts = StopTexts(stops)
    assert "".join([*map(texts.push, pieces), texts.finish()]) == shown


@given(st.lists(st.text("ab", max_size=3), max_size=8), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2))
def test_any_pieces_show_what_the_whole_text_would(pieces: list[str], stops: list[str]) -> None:
    whole, texts = "".join(pieces), StopTexts(stops)
    ends = [whole.find(stop) + len(stop) for stop in stops if stop in whole]
    first = min(ends, default=None)  # the stop text that is complete first
    shown = "".join([*map(texts.push, pieces), texts.finish()])
    assert texts.found is bool(ends)
    assert whole.startswith(shown)
    if first is None:
        assert shown == whole
    else:
        assert not any(stop in shown for stop in stops)
