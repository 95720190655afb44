"""Muse Spark: gates for attention and both residuals, experts with a smaller width; Muse Glimmer."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture
from calc.hf.layers import layers_by_fields
from calc.hf.reader import N_LAYERS, Reader
from calc.model.layers import Experts, FeedForward, LayerSpec


def _layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    width = reader.count("moe_hidden_size")

    def narrow(part: FeedForward) -> FeedForward:
        """Projections into and out of the width, each with a norm."""
        if not isinstance(part, Experts):
            return part
        around = 2 * hidden_size * width + 2 * width
        return replace(part, input_size=width, router_params=part.router_params + around)

    gated = replace(arch, extra_params=2 * hidden_size)  # a number per channel, on each residual
    layers = layers_by_fields(reader, gated, n_layers, hidden_size)
    return [replace(layer, feed_forwards=tuple(map(narrow, layer.feed_forwards))) for layer in layers]


def _glimmer(reader: Reader, arch: Architecture) -> Architecture:
    """Muse Glimmer: the last layer and every fourth one below it are full."""
    if not reader.has("layer_types"):
        n_layers = reader.count(*N_LAYERS)
        reader.assume("layer_types", "the last layer and every fourth one below it full")
        kinds = ["sliding_attention" if (n_layers - 1 - i) % 4 else "full_attention" for i in range(n_layers)]
        reader.put("layer_types", kinds)
    return arch


ARCHITECTURES = (
    replace(BIASED, names=("muse_spark_text",), norms=3, separate_gate=True, layers=_layers),
    replace(BIASED, names=("muse_glimmer_text",), norms=4, separate_gate=True, default_window=2048, adapt=_glimmer),
)
