"""The assignment's reference model once more, in numpy float64, sharing no code or idea with the engine.

Position by position, one query at a time, sums written out: slow and plain on purpose.
"""

from collections.abc import Mapping

import numpy as np
import torch

Array = np.ndarray


def random_state_dict(
    *,
    n_layers: int = 2,
    d_model: int = 12,
    d_ff: int = 20,
    vocab: int = 31,
    positions: int = 24,
    deviation: float = 0.5,
    seed: int = 0,
) -> dict[str, Array]:
    """Weights by the assignment's names, normal; a deviation of 0.5 makes attention neither flat nor one-hot."""
    draw = np.random.default_rng(seed)
    shapes = {"token_embedding.weight": (vocab, d_model), "pos_embedding.weight": (positions, d_model)}
    for i in range(n_layers):
        for name in "qkvo":
            shapes[f"layers.{i}.attention.W_{name}.weight"] = (d_model, d_model)
        shapes |= {
            f"layers.{i}.feed_forward.fc1.weight": (d_ff, d_model),
            f"layers.{i}.feed_forward.fc1.bias": (d_ff,),
            f"layers.{i}.feed_forward.fc2.weight": (d_model, d_ff),
            f"layers.{i}.feed_forward.fc2.bias": (d_model,),
        }
        shapes |= {f"layers.{i}.norm{n}.{kind}": (d_model,) for n in (1, 2) for kind in ("weight", "bias")}
    shapes |= {"norm.weight": (d_model,), "norm.bias": (d_model,)}
    shapes |= {"output_projection.weight": (vocab, d_model), "output_projection.bias": (vocab,)}
    return {name: draw.normal(0, deviation, shape) for name, shape in shapes.items()}


def as_tensors(state: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values.copy()) for name, values in state.items()}


def logits(state: Mapping[str, Array], row: list[int]) -> Array:
    """Logits (T, V) of one row of ids."""
    x = [state["token_embedding.weight"][i] + state["pos_embedding.weight"][p] for p, i in enumerate(row)]
    n_layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers."))
    for layer in range(n_layers):
        w = {name.split(".", 2)[2]: v for name, v in state.items() if name.startswith(f"layers.{layer}.")}
        normed = [_layer_norm(t, w["norm1.weight"], w["norm1.bias"]) for t in x]
        x = [t + a for t, a in zip(x, _attention(normed, w), strict=True)]
        x = [t + _feed_forward(_layer_norm(t, w["norm2.weight"], w["norm2.bias"]), w) for t in x]
    x = [_layer_norm(t, state["norm.weight"], state["norm.bias"]) for t in x]
    return np.stack([state["output_projection.weight"] @ t + state["output_projection.bias"] for t in x])


def _layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    centred = x - x.sum() / x.size
    return weight * centred / np.sqrt((centred**2).sum() / x.size + 1e-5) + bias


def _attention(x: list[Array], w: Mapping[str, Array]) -> list[Array]:
    queries, keys, values = ([w[f"attention.W_{n}.weight"] @ t for t in x] for n in "qkv")
    mixed = []
    for position, query in enumerate(queries):
        scores = np.array([query @ key for key in keys[: position + 1]]) / np.sqrt(query.size)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        mixed.append(sum(p * v for p, v in zip(weights, values, strict=False)))
    return [w["attention.W_o.weight"] @ m for m in mixed]


def _feed_forward(x: Array, w: Mapping[str, Array]) -> Array:
    inner = np.maximum(w["feed_forward.fc1.weight"] @ x + w["feed_forward.fc1.bias"], 0)
    return w["feed_forward.fc2.weight"] @ inner + w["feed_forward.fc2.bias"]
