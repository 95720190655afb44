"""Every kind of layer part, and layers as plain documents (JSON, TOML). The parts describe themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from calc.errors import SpecError
from calc.model.compressed import Compressor, WindowRow
from calc.model.delta import GatedDelta, KimiDelta, gated_delta_params, kimi_delta_params
from calc.model.experts import Experts, expert_params, routed_params
from calc.model.latent import ExpandedLatent, Latent, indexer_params, latent_attention_params
from calc.model.parts import (
    Attention,
    Dense,
    LayerSpec,
    Mlp,
    Norm,
    grouped,
    mixed_attention_params,
    mixers_of,
    shared_objects,
)
from calc.model.recurrent import (
    Mamba1,
    Mamba2,
    ShortConv,
    Stated,
    mamba1_params,
    mamba2_params,
    short_conv_params,
)
from calc.model.spec import MAX_LAYERS

__all__ = [
    "Attention", "Compressor", "Dense", "ExpandedLatent", "Experts", "FeedForward", "GatedDelta", "KimiDelta", "Latent",
    "LayerSpec", "Mamba1", "Mamba2", "Mixer", "ShortConv", "Stated", "WindowRow", "expert_params", "gated_delta_params",
    "grouped", "indexer_params", "kimi_delta_params", "latent_attention_params", "layers_document",
    "layers_from_document", "mamba1_params", "mamba2_params", "mixed_attention_params", "mixers_of", "routed_params",
    "shared_objects", "short_conv_params",
]  # fmt: skip

Mixer = (
    Attention
    | Latent
    | ExpandedLatent
    | WindowRow
    | Compressor
    | Mamba1
    | Mamba2
    | GatedDelta
    | KimiDelta
    | ShortConv
    | Stated
)
FeedForward = Dense | Experts

KINDS: Mapping[str, type] = {
    part.kind: part
    for part in (
        Attention,
        Latent,
        ExpandedLatent,
        WindowRow,
        Compressor,
        Mamba1,
        Mamba2,
        GatedDelta,
        KimiDelta,
        ShortConv,
        Stated,
        Dense,
        Experts,
    )
}


def layers_document(layers: tuple[LayerSpec, ...]) -> dict[str, Any]:
    """`layers` as plain lists and mappings (JSON, TOML): the distinct layers, and their order as runs."""
    different = list(grouped(layers))
    order: list[list[int]] = []
    for layer in layers:
        index = different.index(layer)
        if order and order[-1][1] == index:
            order[-1][0] += 1
        else:
            order.append([1, index])
    return {"kinds": [_layer_document(layer) for layer in different], "order": order}


def _layer_document(layer: LayerSpec) -> dict[str, Any]:
    return {
        "hidden_size": layer.hidden_size,
        "norm_params": layer.norm_params,
        "norm": str(layer.norm),
        "mixers": [_part_document(part) for part in layer.mixers],
        "feed_forwards": [_part_document(part) for part in layer.feed_forwards],
    }


def _part_document(part: Mixer | FeedForward) -> dict[str, Any]:
    values = {f.name: getattr(part, f.name) for f in fields(part) if getattr(part, f.name) != f.default}
    return {"kind": part.kind, **{n: str(v) if isinstance(v, Mlp) else v for n, v in values.items()}}


def layers_from_document(document: Mapping[str, Any]) -> tuple[LayerSpec, ...]:
    """The layers of a document made by `layers_document`. Raises SpecError for anything else."""
    try:
        different = [_layer_from(kind) for kind in document["kinds"]]
        runs = [(int(n), int(index)) for n, index in document["order"]]
        if any(n < 1 or not 0 <= index < len(different) for n, index in runs) or sum(n for n, _ in runs) > MAX_LAYERS:
            raise ValueError("order")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError("layers", f"layers must be as kvscope writes them ({error})") from None
    return tuple(different[index] for n, index in runs for _ in range(n))


def _layer_from(kind: Mapping[str, Any]) -> LayerSpec:
    return LayerSpec(
        hidden_size=kind["hidden_size"],
        norm_params=kind["norm_params"],
        norm=Norm(kind.get("norm", "rms")),
        mixers=tuple(_part_from(part) for part in kind["mixers"]),
        feed_forwards=tuple(_part_from(part) for part in kind["feed_forwards"]),
    )


def _part_from(document: Mapping[str, Any]) -> Any:
    values = dict(document)
    part = KINDS[values.pop("kind")]
    if "mlp" in values:
        values["mlp"] = Mlp(values["mlp"])
    return part(**values)
