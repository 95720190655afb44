"""The linear layers of a pass: the tensors of a model as matrices; tensors with the same input are fused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

from calc.explain.terms import Number
from calc.model.count import LM_HEAD
from calc.model.tensors import KV, LINEAR, ROUTER, WHOLE, Tensor, kv_heads_per_rank
from calc.step.formulas import expert_bytes, matrix_bytes, moved_bytes, product_flops
from calc.step.operators import Amount, Kind, Operator, Pass, Phase
from calc.units import whole

if TYPE_CHECKING:
    from calc.model.latent import Latent
    from calc.model.layers import FeedForward, Mixer
    from calc.model.spec import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """A matrix of one product on a rank: its parameters, inputs (`columns`) and outputs (`rows`), and its copies.

    A token uses `top_k` of the `copies` (None: all), which may be a fraction if ranks share experts. `params` and
    `weight_bytes` are per copy.
    """

    name: str
    kind: Kind
    params: Number
    columns: Number
    rows: Number
    copies: Number = 1
    top_k: Number | None = None
    weight_bytes: Number = 0

    @property
    def active(self) -> Number:
        """Copies that a token uses."""
        return self.copies if self.top_k is None else self.top_k


def mixer_matrices(mixer: Mixer, hidden_size: int, work: Pass) -> list[Matrix]:
    """The projections of a mixer; for latent attention, in the form of the phase (absorbed or expanded)."""
    tensors: Iterable[Tensor] = mixer.tensors(hidden_size)
    if mixer.kind == "latent":
        latent = cast("Latent", mixer)
        if latent.attended(absorbed=work.phase is Phase.DECODE).kv_heads == 1:
            tensors = latent.absorbed_tensors(hidden_size)
    return fused((t._replace(name=mixer.prefix + t.name) for t in tensors if t.multiplied), work, Kind.QKV)


def feed_matrices(feeds: tuple[FeedForward, ...], hidden_size: int, work: Pass) -> list[Matrix]:
    """The matrices of a layer's feed-forwards: a dense one in addition to experts is their shared expert."""
    tensors = (t for t in feed_tensors(feeds, hidden_size) if t.multiplied)
    return fused(tensors, work, Kind.MLP)


def feed_tensors(feeds: tuple[FeedForward, ...], hidden_size: int) -> Iterator[Tensor]:
    """Tensors of the feed-forwards of a layer, with their paths."""
    experts = any(part.kind == "experts" for part in feeds)
    for part in feeds:
        prefix = "mlp.shared_experts." if experts and part.kind == "dense" else "mlp."
        for tensor in part.tensors(hidden_size):
            yield tensor._replace(name=prefix + tensor.name)


def head_matrices(model: ModelSpec, work: Pass) -> list[Matrix]:
    """The output head, tied or not; empty if the model has none."""
    rows = model.head_size
    return fused([Tensor(LM_HEAD, rows, model.embedding_width)] if rows else [], work, Kind.HEAD)


def fused(tensors: Iterable[Tensor], work: Pass, kind: Kind) -> list[Matrix]:
    """Fuse matrices with the same input. Smaller tensors (convolutions, sinks) become a matrix without activations."""
    made: dict[str, Matrix] = {}
    for tensor in tensors:
        matrix = _on_a_rank(tensor, work, kind)
        known = made.get(matrix.name)
        made[matrix.name] = matrix if known is None else _with(known, matrix)
    return list(made.values())


def _on_a_rank(tensor: Tensor, work: Pass, kind: Kind) -> Matrix:
    """The shard of `tensor` on one of `work.tp` ranks: some of its copies (one per head), its rows or its columns.

    Experts: each of `work.ep` ranks holds the same number of whole experts, and a token may need any of them.
    """
    share, small = _share(tensor, work.tp), tensor.role not in (LINEAR, ROUTER)
    copies, columns, rows = Fraction(tensor.copies), Fraction(tensor.columns), Fraction(tensor.rows)
    top_k: Number | None = tensor.active
    if tensor.expert and work.ep > 1:
        copies, share = copies / work.ep, min(Fraction(1), share * work.ep)
        top_k = None if top_k is None else top_k / work.ep
    if tensor.copies > 1 and not tensor.expert:
        copies *= share
    elif tensor.summed:
        columns *= share
    else:
        rows *= share
    return Matrix(
        name=f"{tensor.name.rpartition('.')[0]}.rest" if small else tensor.fused_name,
        kind=_kind(tensor, kind),
        params=whole(rows * columns),
        columns=0 if small else whole(columns),
        rows=0 if small else whole(rows),
        copies=whole(copies),
        top_k=top_k,
        weight_bytes=whole(rows * columns * Fraction(work.weight_bytes(tensor))),
    )


def _share(tensor: Tensor, tp: int) -> Fraction:
    """The share of a tensor on a rank."""
    if tensor.share == WHOLE or tp == 1:
        return Fraction(1)
    if tensor.share == KV:
        return Fraction(kv_heads_per_rank(n_kv_heads=tensor.kv_heads, tp=tp), tensor.kv_heads)
    return Fraction(1, tp)


def _kind(tensor: Tensor, kind: Kind) -> Kind:
    if tensor.role == ROUTER:
        return Kind.ROUTER
    if tensor.expert:
        return Kind.EXPERTS
    return Kind.OUTPUT if kind is Kind.QKV and tensor.summed else kind


def _with(a: Matrix, b: Matrix) -> Matrix:
    """Join two matrices with the same input (`columns`) and number of copies."""
    return replace(a, rows=a.rows + b.rows, params=a.params + b.params, weight_bytes=a.weight_bytes + b.weight_bytes)


def product(matrix: Matrix, count: int, work: Pass, tokens: Any) -> Operator:
    """The operator that multiplies `tokens` by `matrix`."""
    each = whole(Fraction(matrix.weight_bytes) / Fraction(matrix.params))
    sizes: dict[str, Any] = {"tokens": tokens}
    weights = {"matrix_params": matrix.params * matrix.copies, "weight_element_bytes": each}
    read = Amount(matrix_bytes, weights)
    if matrix.top_k is not None and matrix.top_k < matrix.copies:
        idle = 1 - float(matrix.top_k / matrix.copies)
        hit = {"n_experts": matrix.copies, "top_k": matrix.top_k, "idle_share": idle, "matrix_params": matrix.params}
        read = Amount(expert_bytes, {**sizes, **hit, "weight_element_bytes": each})
    moved = {**sizes, "element_bytes": work.element_bytes}
    return Operator(
        name=matrix.name,
        kind=matrix.kind,
        count=count,
        flops_each=Amount(product_flops, {**sizes, "matrix_params": matrix.active * matrix.params}),
        weights_each=read,
        reads_each=Amount(moved_bytes, {**moved, "elements": matrix.active * matrix.columns}),
        writes_each=Amount(moved_bytes, {**moved, "elements": matrix.active * matrix.rows}),
    )
