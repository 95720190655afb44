"""The layers of a model whose fields describe each of them: mixers by kind, feed-forwards, norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from calc.hf.architecture import Architecture
from calc.hf.attention import attention_mixer, qk_norm_params
from calc.hf.feed_forward import feed_forwards
from calc.hf.latent import is_latent, latent_mixer, share_indexers, shares_indexers
from calc.hf.layer_kinds import CHUNKED, FULL, NONE, SLIDING, Kind, layer_kinds
from calc.hf.reader import HEAD_DIM, N_HEADS, N_KV_HEADS, Reader
from calc.hf.recurrences import recurrent_mixer
from calc.model.layers import Attention, Experts, FeedForward, LayerSpec, Mixer
from calc.model.parts import Norm

QK_NORM_FLAGS = ("use_qk_norm", "qk_norm", "use_qk_layernorm", "qk_layernorm", "normalize_qk_projections")
Block = tuple[FeedForward, ...]


def layers_of(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """All layers, bottom first, by the architecture's own rules or by the fields. Raises SourceError."""
    if arch.layers is not None:
        return arch.layers(reader, arch, n_layers, hidden_size)
    return layers_by_fields(reader, arch, n_layers, hidden_size)


def layers_by_fields(reader: Reader, arch: Architecture, n_layers: int, hidden_size: int) -> list[LayerSpec]:
    """Each layer's kind determines its mixers, and the expert keys its feed-forwards. Raises SourceError."""
    kinds = layer_kinds(reader, arch, n_layers)
    mixers = {kind: _mixers(reader, arch, kind, hidden_size) for kind in dict.fromkeys(kinds)}
    each = [mixers[kind] for kind in kinds]
    if reader.has("num_key_value_heads_per_layer", "num_attention_heads_per_layer"):
        each = _heads_per_layer(reader, each)
    if shares_indexers(reader):
        each = share_indexers(reader, each)
    if not {kind.name for kind in kinds} & {FULL, SLIDING, CHUNKED}:
        reader.ignore(*N_HEADS, *N_KV_HEADS, *HEAD_DIM)
    return stack(reader, arch, hidden_size, each, feed_forwards(reader, arch, n_layers))


def stack(
    reader: Reader,
    arch: Architecture,
    hidden_size: int,
    mixers: Sequence[tuple[Mixer, ...]],
    blocks: Sequence[Block],
) -> list[LayerSpec]:
    """One layer per element of `mixers` and `blocks`, with the architecture's norms; equal layers are one object."""
    made: dict[tuple[tuple[Mixer, ...], Block], LayerSpec] = {}
    for own, block in dict.fromkeys(zip(mixers, blocks, strict=True)):
        made[own, block] = LayerSpec(
            hidden_size=hidden_size,
            mixers=own,
            feed_forwards=block,
            norm_params=norm_params(reader, arch, hidden_size, own, block),
            norm=Norm.LAYER if arch.norm == "layer" else Norm.RMS,
        )
    return [made[key] for key in zip(mixers, blocks, strict=True)]


def norm_params(reader: Reader, arch: Architecture, hidden_size: int, mixers: tuple[Mixer, ...], block: Block) -> int:
    """Norms of a layer, and its other small parameters."""
    if arch.qk_norm and arch.qk_key is None:
        reader.ignore(*QK_NORM_FLAGS)  # the class has these norms, whatever the config says
    params = arch.norms * arch.norm_params(hidden_size) + arch.extra_params
    params += sum(qk_norm_params(reader, arch, mixer) for mixer in mixers if isinstance(mixer, Attention))
    if any(isinstance(part, Experts) for part in block):
        params += arch.sparse_norms * hidden_size
    return params


def _heads_per_layer(reader: Reader, mixers: list[tuple[Mixer, ...]]) -> list[tuple[Mixer, ...]]:
    """Layers with their own head counts (DeciLM's KV heads, Laguna's query heads)."""
    fields = {"n_heads": "num_attention_heads_per_layer", "n_kv_heads": "num_key_value_heads_per_layer"}
    for field, key in fields.items():
        listed = reader.per_layer(key, len(mixers))
        if listed is not None:
            numbers = [reader.checked(key, n) for n in listed]
            mixers = [tuple(_with(mixer, field, n) for mixer in own) for own, n in zip(mixers, numbers, strict=True)]
    return mixers


def _with(mixer: Mixer, field: str, n: int) -> Mixer:
    changed: dict[str, Any] = {field: n}
    return replace(mixer, **changed) if isinstance(mixer, Attention) else mixer


def _mixers(reader: Reader, arch: Architecture, kind: Kind, hidden_size: int) -> tuple[Mixer, ...]:
    if kind.name == NONE:
        return ()
    if kind.name == FULL and is_latent(reader):
        return (latent_mixer(reader, arch),)
    if kind.name in (FULL, SLIDING, CHUNKED):
        return (attention_mixer(reader, arch, kind),)
    return (recurrent_mixer(reader, arch, kind.name, hidden_size),)
