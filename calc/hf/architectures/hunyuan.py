"""Hunyuan: norms of Q and K; in Hunyuan 4, sparse latent attention and several residual streams."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, MLP_BIAS, Architecture
from calc.hf.architectures.deepseek_v4 import streams_outer
from calc.hf.feed_forward import feed_forwards
from calc.hf.latent import latent_mixer, share_indexers
from calc.hf.layers import stack
from calc.hf.reader import Reader
from calc.model.layers import LayerSpec, Mixer


def _hunyuan4_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Sparse latent attention with sinks and an output gate, `hc_mult` residual streams mixed twice per layer."""
    latent = latent_mixer(reader, arch)
    latent = replace(latent, gated=True, extra_params=latent.extra_params + latent.n_heads)
    streams = reader.count("hc_mult")
    mixing = 2 * (2 * streams * streams * hidden_size + 2 * streams + 2)
    mixers: list[tuple[Mixer, ...]] = share_indexers(reader, [(latent,)] * n_layers)
    mixed = replace(arch, extra_params=mixing)
    return stack(reader, mixed, hidden_size, mixers, feed_forwards(reader, arch, n_layers))


ARCHITECTURES = (
    replace(BIASED, names=("hunyuan_v1_dense",), qk_norm="head"),
    replace(BIASED, names=("hunyuan_v1_moe",), qk_norm="head", always_experts=True, shared_is_dense=True),
    replace(BIASED, names=("hy_v3",), mlp_bias=MLP_BIAS, qk_norm="head", first_dense=True),
    replace(
        BIASED,
        names=("hy_v4",),
        first_dense=True,
        required=("indexer_types",),
        layers=_hunyuan4_layers,
        outer=streams_outer,
    ),
)
