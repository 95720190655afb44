"""FLOPs and bytes of a decode step: the linear layers, attention over the cache, and both together.

Linear layers read their weights once for the whole batch; attention reads each sequence's own cache. That
difference is why batching raises the intensity of one and not of the other (Pope et al. 2022, section 3).
Norms, activations and the embedding look-up are left out: together well under a percent of either sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from calc.explain.terms import Number
from calc.intensity.attention import Attention, Phase, attention_work
from calc.model.count import worked_tensors
from calc.model.parts import LINEAR, ROUTER, mixers_of
from calc.model.spec import ModelSpec


def linear_params(model: ModelSpec) -> int:
    """Weights that a token is multiplied with: every projection and the head (tied or not), no look-up.

    Of routed experts those that the token goes through: a batch that hits more of them reads more weights.
    """
    return sum(n * tensor.active_params for tensor, n in worked_tensors(model))


def read_params(model: ModelSpec, batch: int) -> Number:
    """Weights that a step of `batch` tokens reads: of routed experts those that are expected to be hit."""
    idle: dict[Fraction, int] = {}
    for tensor, n in worked_tensors(model):
        if (active := tensor.active) is not None and active < tensor.copies:
            share = Fraction(tensor.copies - active, tensor.copies)
            idle[share] = idle.get(share, 0) + n * (tensor.params - tensor.active_params)
    if not idle:
        return linear_params(model)
    return linear_params(model) + sum(params * share_of_others(float(share), batch) for share, params in idle.items())


def share_of_others(idle_share: float, batch: int) -> float:
    """1 - i^(B-1): of the experts that one token leaves idle, the share that B - 1 further tokens are expected to hit.

    With i = 1 - k/E that makes E (1 - (1 - k/E)^B) experts in all, each token's k as likely as any others.

    >>> share_of_others(6 / 8, 1), 2 + 6 * share_of_others(6 / 8, 4)
    (0.0, 5.46875)
    """
    return 1 - idle_share ** (batch - 1)


def linear_activations(model: ModelSpec) -> int:
    """Elements that a token moves in and out of the linear layers, fused ones (Q, K and V; gate and up) reading once.

    Each of a token's experts reads and writes for itself.
    """
    total, fused_input = 0, ""
    for tensor, n in worked_tensors(model):
        if tensor.role not in (LINEAR, ROUTER):
            continue
        group = tensor.fused_name
        copies = n * (tensor.copies if tensor.active is None else tensor.active)
        total += copies * tensor.rows
        if group != fused_input or group == tensor.name:
            total += copies * tensor.columns
        fused_input = group
    return total


def linear_flops(*, batch: Any, parameters: Any) -> Any:
    """A multiply and an add a weight and token."""
    return 2 * batch * parameters


def linear_bytes(
    *, batch: Any, parameters: Any, weight_element_bytes: Any, activations: Any, element_bytes: Any
) -> Any:
    """Weights once for the batch, activations for each token."""
    return parameters * weight_element_bytes + batch * activations * element_bytes


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Intensities (FLOP per byte) of a decode step at one batch size."""

    batch: int
    attention_intensity: float
    linear_intensity: float
    step_intensity: float


def decode_point(
    model: ModelSpec,
    batch: int,
    *,
    context: int,
    group_size: int,
    head_dim: int | None = None,
    kind: Attention = Attention.STANDARD,
    weight_element_bytes: Number = 2,
    element_bytes: Number = 2,
    softmax_flops: int = 5,
) -> DecodePoint:
    """Intensity of attention alone, of the linear layers, and of the whole step at `batch`.

    `group_size` query heads share a KV head: 1 for multi-head attention, whatever the model has; `head_dim` may
    likewise differ from the model's. Of a model with layers of several kinds, all that attend are taken as standard
    attention over the whole context.
    """
    per_kv_head = attention_work(
        kind,
        Phase.DECODE,
        n_keys=context,
        head_dim=head_dim or model.head_dim,
        group_size=group_size,
        softmax_flops=softmax_flops,
        element_bytes=element_bytes,
    )
    heads = Fraction(attending_heads(model), group_size)
    attention_flops, attention_bytes = (batch * heads * work for work in per_kv_head)
    flops = linear_flops(batch=batch, parameters=linear_params(model))
    moved = linear_bytes(
        batch=batch,
        parameters=read_params(model, batch),
        weight_element_bytes=weight_element_bytes,
        activations=linear_activations(model),
        element_bytes=element_bytes,
    )
    return DecodePoint(
        batch=batch,
        attention_intensity=float(attention_flops / attention_bytes) if heads else 0.0,
        linear_intensity=float(Fraction(flops) / Fraction(moved)),
        step_intensity=float((flops + attention_flops) / (moved + attention_bytes)),
    )


SOFTMAX_FLOPS = 5
"""Maximum, subtraction, exponential, sum, division: per score."""


def attention_flops(model: ModelSpec) -> int:
    """FLOPs of all layers that attend, per query token and token attended to: scores, softmax, weighted values.

    Latent attention is counted absorbed, as servers decode and the local engine runs it: every head reads the latent.
    """
    total = 0
    for mixer, n in mixers_of(model.layers).items():
        if (read := mixer.attended()) is not None:
            total += n * read.n_heads * (2 * read.key_dim + 2 * read.value_dim + SOFTMAX_FLOPS)
    return total


def attending_heads(model: ModelSpec) -> int:
    """Query heads of all layers that attend over a cache."""
    reads = ((mixer.attended(), n) for mixer, n in mixers_of(model.layers).items())
    return sum(n * read.n_heads for read, n in reads if read is not None)


def decode_series(model: ModelSpec, batches: Iterable[int], **options: Any) -> tuple[DecodePoint, ...]:
    """`decode_point` at every batch size."""
    return tuple(decode_point(model, batch, **options) for batch in batches)
