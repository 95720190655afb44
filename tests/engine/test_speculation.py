"""The words of speculation, as they are typed."""

import pytest

from engine.errors import OptionError
from engine.speculation import Speculate, parse_speculate


@pytest.mark.parametrize(
    ("text", "choice", "most"),
    [
        ("lookup", Speculate(), 7),
        ("lookup,4", Speculate(tokens=4), 4),
        ("lookup,10,2", Speculate(tokens=10, ngram=2), 10),
        ("small.gguf", Speculate(draft="small.gguf"), 3),
        ("a/b,5", Speculate(draft="a/b", tokens=5), 5),
        ("a,b", Speculate(draft="a,b"), 3),
        ("a,b,6", Speculate(draft="a,b", tokens=6), 6),
        ("a,b,c,6", Speculate(draft="a,b,c", tokens=6), 6),
    ],
)
def test_words(text: str, choice: Speculate, most: int) -> None:
    assert parse_speculate(text) == choice
    assert parse_speculate(text).most == most
    assert parse_speculate(text).text == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4", "'4' names no draft method"),
        ("4,3", "'4,3' names no draft method"),
        ("", "'' names no draft method"),
        (",4", "',4' names no draft method"),
        ("small.gguf,4,2", "a draft model takes one"),
        ("lookup,0", "0 drafted tokens per step; expected 1 to 31"),
        ("lookup,32", "32 drafted tokens per step"),
        ("lookup,4,1", "1 tokens to look up; it must be at least 2"),
    ],
)
def test_refusals(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        parse_speculate(text)
