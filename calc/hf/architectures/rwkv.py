"""RWKV 4: a decay per channel instead of attention, and a feed-forward gated by its own input."""

from __future__ import annotations

from calc.hf.architecture import Architecture
from calc.hf.reader import Reader
from calc.model.layers import Dense, LayerSpec, Stated
from calc.model.parts import Mlp, Norm


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """The first layer has an additional norm: the embedding's."""
    width = reader.maybe("attention_hidden_size") or hidden_size
    inner = reader.maybe("intermediate_size") or 4 * hidden_size
    reader.ignore("rescale_every", "context_length")
    mixing = Stated(
        label="time mixing",
        params=4 * hidden_size * width + 2 * width + 3 * hidden_size,
        state_elements=2 * hidden_size + 3 * width,  # the last inputs of both halves; sum, weight and largest exponent
    )
    gate = hidden_size * hidden_size + 2 * hidden_size
    dense = Dense(intermediate_size=inner, mlp=Mlp.PLAIN, extra_params=gate)

    def layer(norms: int) -> LayerSpec:
        return LayerSpec(
            hidden_size=hidden_size,
            mixers=(mixing,),
            feed_forwards=(dense,),
            norm_params=norms * arch.norm_params(hidden_size),
            norm=Norm.LAYER,
        )

    first, others = layer(3), layer(2)
    return [first] + [others] * (n_layers - 1)


ARCHITECTURES = (Architecture(names=("rwkv",), norm="layer", needs_heads=False, needs_inner=False, layers=_layers),)
