"""FLOPs and bytes of a decode step: the linear layers, attention over the cache, and both together.

Linear layers read their weights once for the whole batch; attention reads each sequence's own cache. That difference is
why batching raises the intensity of one and not of the other (Pope et al. 2022, section 3). Norms, activations and the
embedding lookup are left out: together they are well under one percent of either sum. The sums are taken over the
operators of a pass (`calc.step`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from calc.explain.terms import Number
from calc.model.parts import mixers_of
from calc.model.spec import ModelSpec
from calc.step.formulas import experts_hit
from calc.step.model import feed_forwards, linear_operators
from calc.step.operators import Pass, Phase, total
from calc.step.weights import WeightBytes, one_format

if TYPE_CHECKING:
    from calc.model.experts import Experts


@dataclass(frozen=True, slots=True)
class Linear:
    """The linear layers of a decode step: FLOPs, weight bytes, bytes of inputs and outputs."""

    flops: Number
    weight_bytes: Number
    activation_bytes: Number

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return float(Fraction(self.flops) / Fraction(self.weight_bytes + self.activation_bytes))


def linear_step(model: ModelSpec, batch: int, *, weights: WeightBytes, element_bytes: Number = 2) -> Linear:
    """The linear layers of a step of `batch` tokens; only the routed experts expected to be used are read."""
    work = Pass(phase=Phase.DECODE, batch=batch, element_bytes=element_bytes, weight_bytes=weights)
    operators = linear_operators(model, work)
    read = total(operators, "weight_bytes")
    return Linear(total(operators, "flops"), read, total(operators, "bytes") - read)


def linear_params(model: ModelSpec) -> int:
    """Weights that a token is multiplied with: every projection and the head (tied or not), no lookup.

    Only the routed experts that the token uses: a batch that uses more experts reads more weights.
    """
    return int(linear_step(model, 1, weights=one_format(1)).flops) // 2


def read_params(model: ModelSpec, batch: int) -> Number:
    """Weights that a step of `batch` tokens reads: of the routed experts, only those expected to be used."""
    return linear_step(model, batch, weights=one_format(1)).weight_bytes


def commonest_experts(model: ModelSpec) -> Experts | None:
    """The experts that most layers have; None if a token uses all of them."""
    counts: dict[Any, int] = {}
    for feeds, n in feed_forwards(model).items():
        for part in feeds:
            if part.kind == "experts" and cast("Experts", part).top_k < cast("Experts", part).n_experts:
                counts[part] = counts.get(part, 0) + n
    return max(counts, key=lambda part: counts[part], default=None)


def expected_experts(part: Experts, batch: int) -> float:
    """Expected number of distinct experts per layer that a batch uses, if all choices are equally likely."""
    idle = 1 - part.top_k / part.n_experts
    return float(experts_hit(tokens=batch, n_experts=part.n_experts, top_k=part.top_k, idle_share=idle))


def linear_flops(*, batch: Any, parameters: Any) -> Any:
    """A multiply and an add per weight and token."""
    return 2 * batch * parameters


@dataclass(frozen=True, slots=True)
class DecodePoint:
    """Intensities (FLOP per byte) of a decode step at one batch size, and the bytes that they come from."""

    batch: int
    attention_intensity: float
    linear_intensity: float
    step_intensity: float
    weight_bytes: float
    activation_bytes: float
    attention_bytes: float

    @property
    def linear_bytes(self) -> float:
        """Bytes of the linear layers: weights and activations."""
        return self.weight_bytes + self.activation_bytes


def point_of(batch: int, linear: Linear, *, attention_flops: Any, attention_bytes: Any) -> DecodePoint:
    """A decode step of `batch` sequences, with the given total work of attention."""
    moved = linear.weight_bytes + linear.activation_bytes + attention_bytes
    return DecodePoint(
        batch=batch,
        attention_intensity=float(Fraction(attention_flops) / Fraction(attention_bytes)) if attention_bytes else 0.0,
        linear_intensity=linear.intensity,
        step_intensity=float((linear.flops + attention_flops) / moved),
        weight_bytes=float(linear.weight_bytes),
        activation_bytes=float(linear.activation_bytes),
        attention_bytes=float(attention_bytes),
    )


SOFTMAX_FLOPS = 5
"""Maximum, subtraction, exponential, sum, division: per score."""


def attention_flops(model: ModelSpec) -> int:
    """FLOPs of all attention layers, per query token and token attended to: scores, softmax, weighted values.

    Latent attention is counted absorbed, as servers decode and the local engine runs it: every head reads the latent.
    """
    total_flops = 0
    for mixer, n in mixers_of(model.layers).items():
        if (read := mixer.attended()) is not None:
            total_flops += n * read.n_heads * (2 * read.key_dim + 2 * read.value_dim + SOFTMAX_FLOPS)
    return total_flops


def attending_heads(model: ModelSpec) -> int:
    """Query heads of all layers that attend to a cache."""
    reads = ((mixer.attended(), n) for mixer, n in mixers_of(model.layers).items())
    return sum(n * read.n_heads for read, n in reads if read is not None)
