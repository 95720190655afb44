"""ERNIE 4.5: use_bias decides over all biases; the VL forms have experts that only tokens of images go through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from calc.hf.architecture import Architecture
from calc.hf.feed_forward import N_EXPERTS, feed_forwards
from calc.hf.layers import Block, layers_by_fields
from calc.hf.reader import Reader
from calc.model.layers import Experts, LayerSpec

_USE_BIAS = ("use_bias", False)
_ERNIE = Architecture(qkv_bias=_USE_BIAS, o_bias=_USE_BIAS, mlp_bias=_USE_BIAS, tied=True)
_MOE = replace(_ERNIE, head_bias=_USE_BIAS, router_bias=True)
_PAIRS = ("moe_intermediate_size", "moe_layer_start_index", "moe_layer_end_index", *N_EXPERTS)
"""Keys whose value may be a pair: of text, and of images."""


def _vl_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Experts of text as the fields say, and beside them experts of images, with a router of their own."""
    if not isinstance(reader.get("moe_intermediate_size"), list):
        reader.put("moe_intermediate_size", [1536, 512], note="1536 of text and 512 of images")
    pairs = {key: value for key in _PAIRS if isinstance(value := reader.get(key), list)}
    if any(len(pair) != 2 for pair in pairs.values()):
        raise reader.fail(f"{', '.join(pairs)} must be one number, or two: of text and of images")
    images = feed_forwards(_side(reader, pairs, 1), arch, n_layers)
    layers = layers_by_fields(_side(reader, pairs, 0), arch, n_layers, hidden_size)
    reader.notes.append("experts of images are counted, and no token of text goes through them")
    pairs_of_blocks = zip(layers, images, strict=True)
    return [replace(layer, feed_forwards=layer.feed_forwards + _idle(block)) for layer, block in pairs_of_blocks]


def _side(reader: Reader, pairs: Mapping[str, list[object]], side: int) -> Reader:
    """The reader, with the numbers of text (0) or of images (1)."""
    for key, pair in pairs.items():
        reader.put(key, pair[side])
    return reader


def _idle(block: Block) -> Block:
    """The routed experts of a block, which text does not use."""
    return tuple(replace(part, top_k=0) for part in block if isinstance(part, Experts))


ARCHITECTURES = (
    replace(_ERNIE, names=("ernie4_5",)),
    replace(_MOE, names=("ernie4_5_moe",)),
    replace(
        _MOE,
        names=("ernie4_5_vl_moe_text", "ernie4_5_moe_vl"),
        unused=("pixel_hidden_size", "spatial_conv_size", "temporal_conv_size"),
        first_dense=True,
        layers=_vl_layers,
    ),
)
