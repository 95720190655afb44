"""The cache of a model some of whose layers keep a state of fixed size: beside the keys and values of the others."""

from collections.abc import Callable

from torch import Tensor

from engine.model.cache import Cache, SeenText
from engine.model.config import ModelConfig


class StateCache:
    """Keys and values of the layers with attention in an ordinary cache, and the states of the rest.

    A state cannot be cut back to fewer tokens: `truncate` keeps all or nothing. What a pass writes counts from
    `advance` on, so that one which is stopped leaves the states as they were; of a pass whose tokens go one by one
    there is a state after each, until they are counted.
    """

    def __init__(
        self, config: ModelConfig, make: Callable[[ModelConfig], Cache], *, attention_only: ModelConfig
    ) -> None:
        """``make`` makes the cache of ``attention_only``, the model's config with the layers that have attention."""
        with_attention = [i for i, kind in enumerate(config.layers()) if not kind.recurrent]
        self._place = {layer: i for i, layer in enumerate(with_attention)}
        self._held = make(attention_only)
        self._states: dict[tuple[int, str], Tensor] = {}
        self._new: dict[int, dict[tuple[int, str], Tensor]] = {}  # by the length that a token or a pass came after

    @property
    def seen(self) -> SeenText:
        return self._held.seen

    @property
    def batch_size(self) -> int:
        return self._held.batch_size

    @property
    def capacity(self) -> int:
        return self._held.capacity

    @property
    def length(self) -> int:
        return self._held.length

    @property
    def padding(self) -> Tensor | None:
        return self._held.padding

    @property
    def nbytes(self) -> int:
        """Of keys and values, as calc counts a cache; `state_bytes` come besides."""
        return self._held.nbytes

    @property
    def used_bytes(self) -> int:
        return self._held.used_bytes

    @property
    def state_bytes(self) -> int:
        """Of the states, which do not grow with the text."""
        return sum(state.nbytes for state in self._states.values())

    def state(self, layer: int, name: str) -> Tensor | None:
        """What a layer kept of the tokens before; None where there are none."""
        of_row_before = self._new.get(self.length - 1, {})
        return of_row_before.get((layer, name), self._states.get((layer, name)))

    def keep(self, layer: int, name: str, state: Tensor) -> None:
        """Remember a state, a copy of its own, for when the tokens that it comes after are counted."""
        self._new.setdefault(self.length, {})[layer, name] = state.clone()

    def append(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        return self._held.append(self._place[layer], new)

    def key_positions(self, n_new: int, window: int | None) -> Tensor:
        return self._held.key_positions(n_new, window)

    def require(self, n_rows: int, n_new: int) -> None:
        self._new.clear()  # of a pass that was stopped, or of tokens that nobody counted
        self._held.require(n_rows, n_new)

    @property
    def rows_at_once(self) -> int:
        return self._held.rows_at_once

    def begin_rows(self, n_new: int) -> None:
        self._new.clear()
        self._held.begin_rows(n_new)

    def turn_to(self, length: int) -> None:
        self._held.turn_to(length)

    def advance(self, n_new: int) -> None:
        self._states |= self._new.pop(self.length, {})  # none where tokens are counted that no layer has seen
        self._held.advance(n_new)

    def truncate(self, length: int) -> int:
        if length < self.length:
            self.reset()
        return self.length

    def reset(self) -> None:
        self._states.clear()
        self._new.clear()
        self._held.reset()
