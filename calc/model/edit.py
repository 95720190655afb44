"""What changing a size of a model means."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from calc.errors import SpecError
from calc.model.checks import check_count
from calc.model.spec import DIMENSIONS, SIZES, ModelSpec, edit_refusal, uniform
from calc.model.stored import EDITED_NOTE, without_stored


def edit(model: ModelSpec, **changes: Any) -> ModelSpec:
    """`model` with other sizes, marked as edited; `model` itself if nothing changes. Raises SpecError.

    The only definition of an edit: a head dimension that was hidden_size / n_heads stays so unless it is given; the
    same share of layers keeps a window; stored bytes no longer apply to an edited model. If the layers are not all
    alike, a size of theirs is refused by name.
    """
    sizes = {name: getattr(model, name) for name in SIZES}
    for name in DIMENSIONS:
        check_count(name, changes.get(name, getattr(model, name)))
    refused = next((n for n in SIZES if n in changes and changes[n] != sizes[n] and not model.uniform), None)
    if refused is not None:
        raise SpecError(refused, edit_refusal(model, refused))
    wanted = dict(changes)
    resized = "hidden_size" in wanted or "n_heads" in wanted
    if resized and "head_dim" not in wanted and follows_hidden_size(model):
        wanted["head_dim"] = derived_head_dim(*(wanted.get(name, sizes[name]) for name in ("hidden_size", "n_heads")))
    if "n_layers" in wanted and "n_sliding_layers" not in wanted:
        wanted["n_sliding_layers"] = scaled_windows(model, wanted["n_layers"])
    wanted = {name: value for name, value in wanted.items() if value != getattr(model, name)}
    if not wanted:
        return model
    if model.stored is not None:
        model = without_stored(model, EDITED_NOTE)
    of_layers = {name: wanted.pop(name) for name in SIZES if name in wanted}
    if not of_layers:
        return replace(model, edited=True, **wanted)
    outer = (
        "name", "vocab_size", "tied", "head_bias", "head_rows", "embeds", "encoder_params", "n_learned_positions",
        "max_context", "source", "notes", "model_type",
    )  # fmt: skip
    kept = {name: getattr(model, name) for name in outer}
    return uniform(**{**sizes, **of_layers, **kept, **wanted, "edited": True})


def edit_unnamed(model: ModelSpec, **changes: Any) -> ModelSpec:
    """`edit` of a default model that was not requested: with other sizes, its context has no known limit."""
    edited = edit(model, **changes)
    resized = any(getattr(edited, name) != getattr(model, name) for name in DIMENSIONS)
    return replace(edited, max_context=None) if resized else edited


def follows_hidden_size(model: ModelSpec) -> bool:
    """Whether the head dimension is hidden_size / n_heads."""
    return model.head_dim * model.n_heads == model.hidden_size


def derived_head_dim(hidden_size: int, n_heads: int) -> int:
    """hidden_size / n_heads. Raises SpecError if that is not a whole number."""
    if hidden_size % n_heads:
        raise SpecError(
            "head_dim", f"hidden_size {hidden_size:,} is not divisible by n_heads {n_heads:,}: set --head-dim"
        )
    return hidden_size // n_heads


def scaled_windows(model: ModelSpec, n_layers: int) -> int:
    """Number of window layers of `model` with another number of layers: the same share."""
    return -(-model.n_sliding_layers * n_layers // model.n_layers)
