"""ERNIE 4.5: use_bias sets all biases; the VL models have experts that only image tokens use."""

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
"""Keys whose value may be a pair: for text and for images."""


def _vl_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Text experts as the fields say, and image experts beside them with their own router."""
    if not isinstance(reader.get("moe_intermediate_size"), list):
        reader.put("moe_intermediate_size", [1536, 512], note="1536 for text and 512 for images")
    pairs = {key: value for key in _PAIRS if isinstance(value := reader.get(key), list)}
    if any(len(pair) != 2 for pair in pairs.values()):
        raise reader.fail(f"{', '.join(pairs)} must be one number, or two: for text and for images")
    images = feed_forwards(_side(reader, pairs, 1), arch, n_layers)
    layers = layers_by_fields(_side(reader, pairs, 0), arch, n_layers, hidden_size)
    reader.notes.append("image experts are counted, but text tokens do not use them")
    pairs_of_blocks = zip(layers, images, strict=True)
    return [replace(layer, feed_forwards=layer.feed_forwards + _idle(block)) for layer, block in pairs_of_blocks]


def _side(reader: Reader, pairs: Mapping[str, list[object]], side: int) -> Reader:
    """The reader, with the numbers for text (0) or images (1)."""
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
