"""The cache of models with recurrent layers: states of fixed size, and the keys and values of the other layers."""

from collections.abc import Callable

from torch import Tensor

from engine.model.cache import Cache, SeenText
from engine.model.config import ModelConfig


class StateCache:
    """Keys and values of the layers with attention in an ordinary cache, and the states of the rest.

    A state cannot be truncated to fewer tokens: `truncate` keeps all or nothing. The states that a pass writes take
    effect with `advance`, so that a cancelled pass leaves the states unchanged. In a pass whose tokens go one by one
    there is one state per token until the tokens are counted.
    """

    def __init__(
        self, config: ModelConfig, make: Callable[[ModelConfig], Cache], *, attention_only: ModelConfig
    ) -> None:
        """``make`` builds the cache for ``attention_only``, the config of just the layers with attention."""
        with_attention = [i for i, kind in enumerate(config.layers()) if not kind.recurrent]
        self._place = {layer: i for i, layer in enumerate(with_attention)}
        self._held = make(attention_only)
        self._states: dict[tuple[int, str], Tensor] = {}
        self._new: dict[int, dict[tuple[int, str], Tensor]] = {}  # keyed by the length before the pass or token

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
        """Bytes of keys and values, as calc counts a cache; `state_bytes` are not included."""
        return self._held.nbytes

    @property
    def used_bytes(self) -> int:
        return self._held.used_bytes

    @property
    def state_bytes(self) -> int:
        """Bytes of the states, which do not grow with the text."""
        return sum(state.nbytes for state in self._states.values())

    def state(self, layer: int, name: str) -> Tensor | None:
        """The state of a layer after the earlier tokens; None if there are none."""
        of_row_before = self._new.get(self.length - 1, {})
        return of_row_before.get((layer, name), self._states.get((layer, name)))

    def keep(self, layer: int, name: str, state: Tensor) -> None:
        """Store a copy of a state; it takes effect when the tokens before it are counted."""
        self._new.setdefault(self.length, {})[layer, name] = state.clone()

    def append(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        return self._held.append(self._place[layer], new)

    def key_positions(self, n_new: int, window: int | None) -> Tensor:
        return self._held.key_positions(n_new, window)

    def require(self, n_rows: int, n_new: int) -> None:
        self._new.clear()  # of a cancelled pass, or of tokens that were never counted
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
        self._states |= self._new.pop(self.length, {})  # empty if no layer has processed the counted tokens
        self._held.advance(n_new)

    def truncate(self, length: int) -> int:
        if length < self.length:
            self.reset()
        return self.length

    def reset(self) -> None:
        self._states.clear()
        self._new.clear()
        self._held.reset()
