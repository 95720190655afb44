"""Mistral, Ministral and Mixtral; Mistral Large 4 with sparse latent attention, in some layers without positions."""

from __future__ import annotations

from dataclasses import replace

from calc.hf.architecture import BIASED, Architecture
from calc.hf.feed_forward import feed_forwards
from calc.hf.latent import latent_mixer, share_indexers
from calc.hf.layers import stack
from calc.hf.reader import HIDDEN_SIZE, Reader
from calc.model.layers import Latent, LayerSpec, Mixer

NOPE_INTERVAL = 4
"""Every layer whose number is a multiple of this has no rotary positions, unless a list says which."""


def _large4_layers(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """A softmax scale per head, an indexer with a norm of its input, latents without a rotary key."""
    reader.put("q_lora_rank", None)  # the class projects queries directly
    reader.ignore("index_topk", "layer_types", "head_dim")
    sources = reader.per_layer("kv_source_layers", n_layers)
    if sources is not None and sources != list(range(n_layers)):
        raise reader.fail("kv_source_layers lists layers that share a latent, which kvscope does not support")
    latent = latent_mixer(reader, arch)
    rotary = reader.per_layer("no_rope_layers", n_layers)
    if rotary is None:
        interval = reader.maybe("no_rope_layer_interval") or NOPE_INTERVAL
        rotary = [int((i + 1) % interval != 0) for i in range(n_layers)]
    mixers: list[tuple[Mixer, ...]] = [(latent if turned else _without_positions(latent),) for turned in rotary]
    scaled = [tuple(_scaled(mixer, hidden_size) for mixer in own) for own in share_indexers(reader, mixers)]
    return stack(reader, arch, hidden_size, scaled, feed_forwards(reader, arch, n_layers))


def _without_positions(latent: Latent) -> Latent:
    """The rotary part of keys and queries is treated as a part without positions from the latent."""
    return replace(latent, nope_dim=latent.nope_dim + latent.rope_dim, rope_dim=0)


def _scaled(mixer: Mixer, hidden_size: int) -> Mixer:
    """Two numbers per head (also in the indexer), and the LayerNorm of its input."""
    if not isinstance(mixer, Latent):
        return mixer
    indexer = 2 * hidden_size + 2 * mixer.index_heads if mixer.index_heads else 0
    return replace(mixer, extra_params=mixer.extra_params + 2 * mixer.n_heads + indexer)


def _voxtral(reader: Reader, arch: Architecture) -> Architecture:
    """Voxtral Realtime: the delay scales each layer's norm through two matrices of rank 32."""
    return replace(arch, extra_params=2 * 32 * reader.count(*HIDDEN_SIZE))


ARCHITECTURES = (
    Architecture(names=("mistral", "mistral3", "llava_mistral"), window="all", default_window=4096),
    Architecture(names=("ministral",), default_window=4096, layer_types=("sliding_attention",)),
    Architecture(names=("ministral3",), window="all"),
    Architecture(names=("voxtral_realtime_text",), window="all", default_window=4096, adapt=_voxtral),
    Architecture(names=("mixtral",), window="all"),
    replace(BIASED, names=("mistral_large4_text", "mistral_large4"), first_dense=True, layers=_large4_layers),
)
