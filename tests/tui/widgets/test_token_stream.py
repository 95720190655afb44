"""Text that streams in: wrapping in pieces equals wrapping at once, nothing is lost, kinds keep their text."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.app import App, ComposeResult

from tests.examples import examples
from tui.widgets.token_stream import TokenStream, _break


class StreamApp(App[None]):
    def compose(self) -> ComposeResult:
        yield TokenStream()


def wrapped(pieces: list[str], width: int) -> list[str]:
    """The lines of a stream of `width` after the pieces, without an app."""
    stream = TokenStream()
    stream._wrap_width = width
    for piece in pieces:
        stream._add(piece, "text")
    return list(stream.lines)


TEXT = st.text(st.sampled_from("ab  \n日é—"), max_size=60)


@examples(150)
@given(text=TEXT, width=st.integers(2, 20), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_pieces_wrap_like_the_whole(text: str, width: int, cuts: list[int]) -> None:
    edges = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert wrapped(pieces, width) == wrapped([text], width)


@examples(150)
@given(text=TEXT, width=st.integers(2, 20))
def test_every_character_is_kept_and_lines_fit(text: str, width: int) -> None:
    lines = wrapped([text], width)
    assert "".join(lines) == text.replace("\n", "")
    for line in lines:
        assert cell_len(line.rstrip(" ")) <= width


@pytest.mark.parametrize(
    ("text", "width", "at"),
    [("hello world", 11, None), ("hello world", 10, 6), ("hello world", 5, 6), ("helloworld", 5, 5), ("日本語", 4, 2)],
)
def test_where_a_line_breaks(text: str, width: int, at: int | None) -> None:
    assert _break(text, width) == at


async def test_prompt_and_text_keep_their_looks_across_lines() -> None:
    app = StreamApp()
    async with app.run_test(size=(22, 10)) as pilot:
        stream = app.query_one(TokenStream)
        stream.write("to be or not to be ", "prompt")
        stream.write("that is the question", "text")
        await pilot.pause()
        joined = dict.fromkeys(("prompt", "text"), "")
        for line in range(len(stream.lines)):
            for text, kind in stream._runs(line):
                joined[kind] += text
        assert joined == {"prompt": "to be or not to be ", "text": "that is the question"}
        assert stream.text == "to be or not to be that is the question"


async def test_it_follows_the_end_unless_scrolled_up() -> None:
    app = StreamApp()
    async with app.run_test(size=(40, 6)) as pilot:
        stream = app.query_one(TokenStream)
        stream.write("line\n" * 50)
        await pilot.pause()
        assert stream.scroll_offset.y == stream.max_scroll_y > 0
        stream.scroll_home(animate=False)
        await pilot.pause()
        stream.write("more\n" * 10)
        await pilot.pause()
        assert stream.scroll_offset.y == 0
        assert stream.virtual_size.height == 61  # known though nothing was laid out anew
        assert stream.vertical_scrollbar.window_virtual_size == 61
        stream.scroll_end(animate=False)
        await pilot.pause()
        assert stream.scroll_offset.y == 61 - 6


async def test_a_scrollbar_comes_with_the_first_line_that_does_not_fit() -> None:
    app = StreamApp()
    async with app.run_test(size=(40, 6)) as pilot:
        stream = app.query_one(TokenStream)
        for n in range(1, 9):
            stream.write("line\n")
            await pilot.pause()
            assert stream.show_vertical_scrollbar == (n + 1 > 6)


async def test_a_narrower_screen_wraps_again_and_loses_nothing() -> None:
    app = StreamApp()
    async with app.run_test(size=(80, 10)) as pilot:
        stream = app.query_one(TokenStream)
        stream.write("the cache keeps what was read before " * 6)
        await pilot.pause()
        wide = len(stream.lines)
        await pilot.resize_terminal(30, 10)
        await pilot.pause()
        assert len(stream.lines) > wide
        assert "".join(stream.lines) == "the cache keeps what was read before " * 6


async def test_control_characters_cannot_reach_the_terminal() -> None:
    app = StreamApp()
    async with app.run_test(size=(40, 6)) as pilot:
        stream = app.query_one(TokenStream)
        for piece in ("a\x1b", "[31mb\x07\tc\r\nd", "\u202ee\x9b"):
            stream.write(piece)
        await pilot.pause()
        assert stream.lines == ("a\\u001b[31mb\\u0007 c", "d\\u202ee\\u009b")


async def test_who_is_at_the_end_stays_there_when_the_screen_shrinks_and_who_is_not_is_left_alone() -> None:
    app = StreamApp()
    async with app.run_test(size=(40, 12)) as pilot:
        stream = app.query_one(TokenStream)
        stream.write("\n".join(f"line {n}" for n in range(30)))
        await pilot.resize_terminal(40, 8)
        await pilot.pause()
        assert stream.scroll_offset.y == 30 - 8
        stream.scroll_to(y=5, animate=False)
        await pilot.resize_terminal(40, 6)
        await pilot.pause()
        assert stream.scroll_offset.y == 5


async def test_the_bar_stands_at_the_end_after_one_burst() -> None:
    """It comes with the text that no longer fits, and must know where that text was scrolled to."""
    async with StreamApp().run_test(size=(30, 6)) as pilot:
        stream = pilot.app.query_one(TokenStream)
        stream.write("\n".join(f"line {i}" for i in range(30)))
        await pilot.pause()
        assert stream.show_vertical_scrollbar
        assert stream.vertical_scrollbar.position == stream.scroll_y == stream.max_scroll_y > 0
