"""Every kind of layer part, and layers as plain documents (JSON, TOML). The parts say what they are themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from calc.errors import SpecError
from calc.model.experts import Experts, expert_params, routed_params
from calc.model.latent import Latent, indexer_params, latent_attention_params
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
    GatedDelta,
    KimiDelta,
    Mamba1,
    Mamba2,
    ShortConv,
    Stated,
    gated_delta_params,
    kimi_delta_params,
    mamba1_params,
    mamba2_params,
    short_conv_params,
)

__all__ = [
    "Attention", "Dense", "Experts", "FeedForward", "GatedDelta", "KimiDelta", "Latent", "LayerSpec", "Mamba1",
    "Mamba2", "Mixer", "ShortConv", "Stated", "expert_params", "gated_delta_params", "grouped", "indexer_params",
    "kimi_delta_params", "latent_attention_params", "layers_document", "layers_from_document", "mamba1_params",
    "mamba2_params", "mixed_attention_params", "mixers_of", "routed_params", "shared_objects", "short_conv_params",
]  # fmt: skip

Mixer = Attention | Latent | Mamba1 | Mamba2 | GatedDelta | KimiDelta | ShortConv | Stated
FeedForward = Dense | Experts

KINDS: Mapping[str, type] = {
    part.kind: part
    for part in (Attention, Latent, Mamba1, Mamba2, GatedDelta, KimiDelta, ShortConv, Stated, Dense, Experts)
}


def _commonest(counts: Mapping[Any, int]) -> Any:
    return max(counts, key=lambda part: counts[part]) if counts else None


def _summary_heads(mixers: Mapping[Mixer, int], hidden_size: int) -> tuple[int, int, int]:
    """Query heads, KV heads and head dimension of the commonest attention; of the recurrence where there is none."""
    attention = _commonest({m: n for m, n in mixers.items() if isinstance(m, Attention)})
    if attention is not None:
        return attention.n_heads, attention.n_kv_heads, attention.head_dim
    latent = _commonest({m: n for m, n in mixers.items() if isinstance(m, Latent)})
    if latent is not None:
        return latent.n_heads, latent.n_heads, latent.nope_dim + latent.rope_dim
    other = _commonest(mixers)
    if isinstance(other, Mamba2):
        return other.n_heads, other.n_heads, max(1, other.inner // other.n_heads)
    if isinstance(other, KimiDelta):
        return other.n_heads, other.n_heads, other.head_dim
    if isinstance(other, GatedDelta):
        return other.value_heads, other.value_heads, other.value_dim
    return 1, 1, other.inner if isinstance(other, Mamba1) else hidden_size


def summary(layers: tuple[LayerSpec, ...]) -> dict[str, Any]:
    """The flat fields of ModelSpec that say what the layers are like: those of the commonest kind.

    A window is the commonest one; the inner dimension is a dense layer's, else an expert's.
    """
    mixers = mixers_of(layers)
    hidden_size = layers[0].hidden_size
    n_heads, n_kv_heads, head_dim = _summary_heads(mixers, hidden_size)
    windows: dict[int, int] = {}
    for mixer, n in mixers.items():
        if mixer.window is not None and mixer.cache_elements:
            windows[mixer.window] = windows.get(mixer.window, 0) + n
    dense: dict[Dense, int] = {}
    experts: dict[Experts, int] = {}
    for layer, n in grouped(layers).items():
        for part in layer.feed_forwards:
            counts: Any = dense if isinstance(part, Dense) else experts
            counts[part] = counts.get(part, 0) + n
    widest, expert = _commonest(dense), _commonest(experts)
    inner = widest.intermediate_size if widest else expert.expert_size if expert else hidden_size
    return {
        "n_layers": len(layers),
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "head_dim": head_dim,
        "hidden_size": hidden_size,
        "intermediate_size": inner,
        "mlp": (widest or expert).mlp if widest or expert else Mlp.GATED,
        "norm": layers[0].norm,
        "n_sliding_layers": min(sum(windows.values()), len(layers)),
        "window": _commonest(windows),
        **dict.fromkeys(("qkv_bias", "o_bias", "mlp_bias", "qk_norm"), False),
    }


def check_summary(model: Any) -> None:
    """Raise SpecError, naming the field, where a flat field of `model` contradicts its layers.

    That is an edit of one number of a model whose layers are given one by one: no single number says what it is to
    become, so it is refused rather than ignored.
    """
    layers: tuple[LayerSpec, ...] = model.layers
    if not all(isinstance(layer, LayerSpec) for layer in layers):
        raise SpecError("layers", "layers must be a tuple of LayerSpec")
    if any(layer.hidden_size != layers[0].hidden_size for layer in layers):
        raise SpecError("layers", "all layers must have the same hidden_size")
    if not any(mixer.cache_elements or mixer.state_elements for mixer in mixers_of(layers)):
        raise SpecError("layers", f"no layer of {model.name} keeps anything of the tokens before")
    for name, value in summary(layers).items():
        if getattr(model, name) != value:
            raise SpecError(
                name,
                f"{name} cannot be edited in {model.name}: its {len(layers)} layers are not all alike and are given "
                f"one by one (edit its config.json, or start from a plain model such as llama-3-8b)",
            )


def layers_document(layers: tuple[LayerSpec, ...]) -> dict[str, Any]:
    """`layers` as plain lists and mappings (JSON, TOML): the different layers, and their order as runs."""
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


MAX_LAYERS = 10_000


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
