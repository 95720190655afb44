"""The operators of a whole pass, collected over the parts of a model: equal layers share one operator with a count.

Not counted: gathering logits and embeddings across ranks, the weighted sum of a token's experts, and norms inside a
mixer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from calc.model.count import EMBED_TOKENS
from calc.model.parts import Mlp, Norm, counted
from calc.model.tensors import EMBEDDING, WHOLE, Tensor
from calc.step.between import between_ranks
from calc.step.formulas import elementwise_flops, matrix_bytes, moved_bytes
from calc.step.matrices import feed_matrices, head_matrices, mixer_matrices, product
from calc.step.mixers import mixing, positions
from calc.step.operators import Amount, Kind, Operator, Pass, merged
from calc.units import whole

if TYPE_CHECKING:
    from calc.model.layers import FeedForward, Mixer
    from calc.model.parts import LayerSpec
    from calc.model.spec import ModelSpec

NORM_FLOPS = {Norm.RMS: 5, Norm.LAYER: 8}
"""Per element: square and sum, scale, weight (LayerNorm: mean and bias too), and the residual sum."""
GATED_FLOPS, PLAIN_FLOPS = 5, 4
"""Per inner element: exponential, sum, division, product, and the product with the gate."""
SAMPLING_FLOPS = 5
"""Per logit: maximum, subtraction, exponential, sum, division."""


def pass_operators(model: ModelSpec, work: Pass) -> tuple[Operator, ...]:
    """Every operator of a pass of `model`, in the order of a layer. In prefill the head runs only on the last token."""
    return merged(_operators(model, work))


def mixing_operators(model: ModelSpec, work: Pass) -> tuple[Operator, ...]:
    """The operators of a pass that read the caches and states of sequences."""
    return merged(operator for mixer, count in mixers(model).items() for operator in mixing(mixer, count, work.own))


def linear_operators(model: ModelSpec, work: Pass) -> tuple[Operator, ...]:
    """The operators of a pass that multiply by weights."""
    return merged(_linear(model, work))


def _linear(model: ModelSpec, work: Pass) -> Iterator[Operator]:
    own = work.own
    for mixer, count in mixers(model).items():
        for matrix in mixer_matrices(mixer, model.hidden_size, own):
            yield product(matrix, count, own, own.tokens)
    for feeds, count in feed_forwards(model).items():
        for matrix in feed_matrices(feeds, model.hidden_size, work):
            yield product(matrix, count, work, work.tokens)
    for matrix in head_matrices(model, work):
        yield product(matrix, 1, work, work.batch)


def _operators(model: ModelSpec, work: Pass) -> Iterator[Operator]:
    own = work.own
    yield _embedding(model, own)
    yield from _norms(model, own)
    rotary = model.n_learned_positions == 0
    for mixer, count in mixers(model).items():
        for matrix in mixer_matrices(mixer, model.hidden_size, own):
            yield product(matrix, count, own, own.tokens)
        yield from positions(mixer, count, own, rotary=rotary)
        yield from mixing(mixer, count, own)
    for feeds, count in feed_forwards(model).items():
        for matrix in feed_matrices(feeds, model.hidden_size, work):
            yield product(matrix, count, work, work.tokens)
        yield from _activations(feeds, count, work)
    yield from between_ranks(work, model.hidden_size, sum(mixers(model).values()), feed_forwards(model))
    for matrix in head_matrices(model, work):
        yield product(matrix, 1, work, work.batch)
        yield _sampling(model, own)


def mixers(model: ModelSpec) -> Mapping[Mixer, int]:
    """The distinct mixers and their counts; a shared mixer counts with its own matrices."""
    return counted(model.groups, lambda layer: unshared(layer).mixers)


def feed_forwards(model: ModelSpec) -> Mapping[tuple[FeedForward, ...], int]:
    """The distinct sets of feed-forwards per layer, and the number of layers with each."""
    return counted(model.groups, lambda layer: filter(None, [unshared(layer).feed_forwards]))


def _embedding(model: ModelSpec, work: Pass) -> Operator:
    """Look up one row of the table per token."""
    table = Tensor(EMBED_TOKENS, model.vocab_size, model.embedding_width, role=EMBEDDING)
    row = {"tokens": work.tokens, "elements": model.embedding_width}
    written = {"tokens": work.tokens, "elements": model.hidden_size, "element_bytes": work.element_bytes}
    return Operator(
        name=EMBED_TOKENS,
        kind=Kind.EMBEDDING,
        count=1,
        weights_each=Amount(moved_bytes, row | {"element_bytes": work.weight_bytes(table)}),
        writes_each=Amount(moved_bytes, written),
    )


def _norms(model: ModelSpec, work: Pass) -> Iterator[Operator]:
    """Norms over the hidden size, each with the residual sum before it: those of the layers and the final norm."""
    counts: dict[Norm, int] = {}
    for layer, n in model.groups.items():
        counts[layer.norm] = counts.get(layer.norm, 0) + n * (layer.norm_params // _norm_size(model, layer.norm))
    if model.final_norm_size:
        counts[model.norm] = counts.get(model.norm, 0) + 1
    for norm, count in counts.items():
        if count:
            yield _norm(model, norm, count, work)


def _norm_size(model: ModelSpec, norm: Norm) -> int:
    return model.hidden_size * (1 if norm is Norm.RMS else 2)


def _norm(model: ModelSpec, norm: Norm, count: int, work: Pass) -> Operator:
    width: dict[str, Any] = {"tokens": work.tokens, "elements": model.hidden_size}
    weights = Tensor("norm", _norm_size(model, norm), share=WHOLE, role="norm")
    moved = {"tokens": work.tokens, "elements": 2 * model.hidden_size, "element_bytes": work.element_bytes}
    held = {"matrix_params": weights.params, "weight_element_bytes": work.weight_bytes(weights)}
    return Operator(
        name="norm, residual",
        kind=Kind.NORM,
        count=count,
        flops_each=Amount(elementwise_flops, width | {"element_flops": NORM_FLOPS[norm]}),
        weights_each=Amount(matrix_bytes, held),
        reads_each=Amount(moved_bytes, moved),
        writes_each=Amount(moved_bytes, moved),
    )


def _activations(feeds: tuple[FeedForward, ...], count: int, work: Pass) -> Iterator[Operator]:
    """The activation function between the matrices of each feed-forward."""
    for part in feeds:
        gated = part.mlp is Mlp.GATED
        inner = whole(Fraction(part.inner * getattr(part, "top_k", 1), work.tp))
        sizes: dict[str, Any] = {"tokens": work.tokens, "elements": inner}
        moved = sizes | {"element_bytes": work.element_bytes}
        yield Operator(
            name=f"activation of {part.label}",
            kind=Kind.ACTIVATION,
            count=count,
            flops_each=Amount(elementwise_flops, sizes | {"element_flops": GATED_FLOPS if gated else PLAIN_FLOPS}),
            reads_each=Amount(moved_bytes, moved | {"elements": inner * (2 if gated else 1)}),
            writes_each=Amount(moved_bytes, moved),
        )


def _sampling(model: ModelSpec, work: Pass) -> Operator:
    """Probabilities of one token per sequence."""
    logits: dict[str, Any] = {"tokens": work.batch, "elements": model.head_size}
    return Operator(
        name="sampling",
        kind=Kind.SAMPLING,
        count=1,
        flops_each=Amount(elementwise_flops, logits | {"element_flops": SAMPLING_FLOPS}),
        reads_each=Amount(moved_bytes, logits | {"element_bytes": work.element_bytes}),
    )


def unshared(layer: LayerSpec) -> LayerSpec:
    """`layer` with its own matrices instead of an earlier layer's."""
    parts = (*layer.mixers, *layer.feed_forwards)
    if not any(getattr(part, "shared", False) for part in parts):
        return layer

    def own(part: Any) -> Any:
        return replace(part, shared=False) if getattr(part, "shared", False) else part

    return replace(layer, mixers=tuple(map(own, layer.mixers)), feed_forwards=tuple(map(own, layer.feed_forwards)))
