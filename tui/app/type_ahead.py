"""One key at a time: keys typed in a burst reach what earlier keys opened, in the order they were typed.

Textual sends a key to the widget that has the focus at that moment. A key that runs a command first bubbles up to the
app, while later letters are already handled (Textual #6605): `Home 9` types before it moves, and keys after one that
opens a list go to the field below the list. So a key waits until the one before it has been handled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from textual import events
from textual.dom import DOMNode
from textual.message_pump import MessagePump
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget

LONGEST_S = 0.25
"""A key whose widget disappears before it answers delays the others no longer than this."""


class TypeAhead:
    """Keys and pastes of `app`, passed on with `forward` one at a time."""

    def __init__(self, app: MessagePump, forward: Callable[[events.Event], Awaitable[None]]) -> None:
        self._app, self._forward = app, forward
        self._held: deque[events.Event] = deque()
        self._turn = 0
        self._waiting = False
        self._limit: Timer | None = None

    async def take(self, event: events.Event) -> None:
        """Pass `event` on, at once unless the previous one is still being handled."""
        self._held.append(event)
        if not self._waiting:
            await self._next()

    async def _next(self) -> None:
        if not self._held:
            return
        event = self._held.popleft()
        self._waiting = True
        self._turn += 1
        turn = self._turn
        screen, target = self._screen(), self._focused()
        await self._forward(event)
        self._limit = self._app.set_timer(LONGEST_S, lambda: self._answered(turn))
        # Through all pumps that the key may bubble through, twice, because what it posts on the way follows it.
        typed = isinstance(event, events.Key) and event.is_printable
        _climb(target, lambda: _climb(self._focused(), lambda: self._when_shown(turn, same=typed and screen)))

    def _when_shown(self, turn: int, *, same: Screen[object] | bool) -> None:
        """A pane or list that a key opened gets the focus once it is laid out."""
        now = self._screen()
        if now is same:
            self._app.call_later(self._answered, turn)
        else:
            now.call_after_refresh(self._app.call_later, self._answered, turn)

    async def _answered(self, turn: int) -> None:
        if turn != self._turn or not self._waiting:
            return
        if self._limit is not None:
            self._limit.stop()
        self._waiting = False
        await self._next()

    def _screen(self) -> Screen[object]:
        return self._app.app.screen

    def _focused(self) -> Widget:
        return self._app.app.focused or self._screen()


def _climb(widget: DOMNode, then: Callable[[], None]) -> None:
    """Call `then` when `widget` and everything above it have processed their messages so far."""
    above = widget.parent
    if isinstance(above, DOMNode):
        widget.call_later(_climb, above, then)
    else:
        widget.call_later(then)
