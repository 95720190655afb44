"""Muse Spark: gates of attention and of both residuals, experts that work in a smaller width."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture
from calc.hf.layers import layers_by_fields
from calc.hf.reader import Reader
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


ARCHITECTURES = (replace(BIASED, names=("muse_spark_text",), norms=3, separate_gate=True, layers=_layers),)
