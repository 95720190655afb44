"""The layers of a GGUF file: the parts that its tensors make, each with exactly the elements that the file has."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from calc.model.parts import Dense, LayerSpec, Norm
from calc.sources.gguf.attention import attention
from calc.sources.gguf.facts import Block, Facts, Undetermined, check_number, trunk
from calc.sources.gguf.feed_forward import feed_forwards
from calc.sources.gguf.latents import compressed, is_compressed, is_latent, latent
from calc.sources.gguf.recurrences import recurrence
from calc.sources.gguf.roles import Role, layer_role
from calc.sources.gguf.windows import is_chunked, windows

if TYPE_CHECKING:
    from calc.model.layers import FeedForward, Mixer

STATES = ("ssm_", "shortconv.", "time_mix_")


def layers_of(facts: Facts, hidden_size: int) -> tuple[tuple[LayerSpec, ...], int]:
    """(All layers, the parameters in them that belong to none of their parts). Raises Undetermined."""
    blocks = trunk(facts)
    kept = windows(facts, len(blocks))
    reading = [_Layer(facts, block, hidden_size) for block in blocks]
    layers = [layer.read(window, len(blocks)) for layer, window in zip(reading, kept, strict=True)]
    if (loops := facts.maybe("num_loops") or 1) > 1:
        check_number(len(layers) * loops)
        layers += _again(layers) * (loops - 1)
    return tuple(layers), sum(layer.rest for layer in reading)


class _Layer:
    """One layer on its way: `rest` are the elements that no part took."""

    def __init__(self, facts: Facts, block: Block, hidden_size: int) -> None:
        self.facts = facts
        self.block = block
        self.hidden_size = hidden_size
        self.rest = 0
        self.elements: dict[Role, int] = dict.fromkeys(Role, 0)
        for name, tensor in block.tensors.items():
            self.elements[layer_role(name)] += facts.params(tensor)

    def read(self, window: int | None, n_layers: int) -> LayerSpec:
        """The layer. Raises Undetermined."""
        mixers = self._mixers(window, n_layers)
        blocks = self._feed_forwards()
        self.rest += self.elements[Role.OTHER]
        return LayerSpec(
            hidden_size=self.hidden_size,
            mixers=mixers,
            feed_forwards=blocks,
            norm_params=self.elements[Role.NORM],
            norm=Norm.LAYER if "attn_norm.bias" in self.block.tensors else Norm.RMS,
        )

    def _mixers(self, window: int | None, n_layers: int) -> tuple[Mixer, ...]:
        elements = self.elements[Role.MIXER]
        state = recurrence(self.facts, self.block, elements)
        if state is not None and state[1]:
            return (self._fitted(state[0], elements),)
        own = self._attention(window, n_layers)
        if not own:
            self.rest += elements  # DeciLM's layers whose attention is one matrix
            return ()
        if state is None:
            return self._together(own, elements)
        of_state = self._params(Role.MIXER, STATES)
        return self._fitted(state[0], of_state), *self._together(own, elements - of_state)

    def _attention(self, window: int | None, n_layers: int) -> tuple[Mixer, ...]:
        if is_latent(self.block):
            return (latent(self.facts, self.block, window=window),)
        if is_compressed(self.block):
            return compressed(self.facts, self.block)
        if not self.block.has("attn_q", "attn_qkv"):
            return ()
        chunked = is_chunked(self.facts)
        return (attention(self.facts, self.block, window=window, chunked=chunked, n_layers=n_layers),)

    def _together(self, parts: tuple[Mixer, ...], elements: int) -> tuple[Mixer, ...]:
        """Parts that share `elements`: the last takes what the others leave."""
        *others, last = parts
        for part in others:
            elements = self._beyond(part, elements)
        return *others, self._fitted(last, elements)

    def _feed_forwards(self) -> tuple[FeedForward, ...]:
        shared = self._params(Role.FEED, tuple(n for n in self.block.tensors if "_shexp." in n))
        left = {"dense": self.elements[Role.FEED] - shared, "shared": shared}
        experts = self.elements[Role.EXPERTS] + self.elements[Role.ROUTER]
        found: list[FeedForward] = []
        for part in feed_forwards(self.facts, self.block, self.hidden_size):
            if isinstance(part, Dense):
                kind = "shared" if left["shared"] and (found or not left["dense"]) else "dense"
                found.append(self._fitted(part, left[kind]))
                left[kind] = 0
            else:
                found.append(replace(part, router_params=self._beyond(part, experts)))
                experts = 0
        self.rest += sum(left.values()) + experts
        return tuple(found)

    def _params(self, role: Role, prefixes: tuple[str, ...]) -> int:
        own = self.block.tensors.items()
        return sum(self.facts.params(t) for name, t in own if layer_role(name) is role and name.startswith(prefixes))

    def _beyond(self, part: Any, elements: int) -> int:
        """The elements that `part` does not account for."""
        beyond: int = elements - sum(tensor.params for tensor in part.tensors(self.hidden_size))
        if beyond < 0:
            raise Undetermined(f"{part.label} of layer {self.block.index} needs {-beyond:,} elements that it has not")
        return beyond

    def _fitted(self, part: Any, elements: int) -> Any:
        """`part` with the file's number of elements; what it has no room for stays in `rest`."""
        beyond = self._beyond(part, elements)
        if beyond and any(f.name == "extra_params" for f in fields(part)):
            return replace(part, extra_params=beyond)
        self.rest += beyond
        return part


def _again(layers: list[LayerSpec]) -> list[LayerSpec]:
    """The same layers gone through once more: caches of their own, no weights (Nanbeige)."""
    return [
        replace(
            layer,
            mixers=tuple(_shared(part) for part in layer.mixers),
            feed_forwards=tuple(_shared(part) for part in layer.feed_forwards),
            norm_params=0,
        )
        for layer in layers
    ]


def _shared(part: Any) -> Any:
    if not hasattr(part, "shared"):
        raise Undetermined(f"layers with {part.label} that are gone through several times are not known to kvscope")
    return replace(part, shared=True, extra_params=0)
