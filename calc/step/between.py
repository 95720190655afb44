"""Communication between ranks in a pass: all-reduce, expert exchange, context parallelism, pipeline sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from calc.explain.terms import Number
from calc.step.formulas import all_reduce_bytes, exchanged_bytes, moved_bytes, sent_bytes
from calc.step.operators import Amount, Kind, Operator, Pass
from calc.units import whole

if TYPE_CHECKING:
    from calc.model.layers import FeedForward
    from calc.model.tensors import Attended

    Feeds = Mapping[tuple[FeedForward, ...], int]


def between_ranks(work: Pass, hidden_size: int, n_mixers: int, feeds: Feeds) -> Iterator[Operator]:
    """All-reduces after mixers and feed-forwards, or the exchange around feed-forwards; sends between stages."""
    own = work.own
    n_sums = n_mixers + (sum(feeds.values()) if work.groups == 1 else 0)
    if own.tp > 1 and n_sums:
        yield _all_reduce(own, hidden_size, n_sums)
    if work.groups > 1:
        for parts, n in feeds.items():
            yield _exchange(work, hidden_size, parts, n)
    if work.stages > 1:
        yield _send(own, hidden_size)


def combining(read: Attended, count: int, work: Pass) -> Operator:
    """Context parallelism: send queries to the ranks with other tokens of the sequence; sum their partial results."""
    heads = whole(Fraction(read.n_heads, work.tp))
    sent = {
        "tokens": work.tokens,
        "elements": heads * (read.key_dim + read.value_dim) * (work.shared - 1),
        "element_bytes": work.element_bytes,
    }
    return Operator(
        name="gather queries, sum results",
        kind=Kind.COMBINE,
        count=count,
        link_each=Amount(sent_bytes, sent),
    )


def _moved(work: Pass, hidden_size: int) -> dict[str, Any]:
    return {"tokens": work.tokens, "elements": hidden_size, "element_bytes": work.element_bytes}


def _ring_share(ranks: int) -> Number:
    """The share of the data that a rank sends in a ring of X: 2 (X - 1) steps, each with 1/X of it."""
    return whole(Fraction(2 * (ranks - 1), ranks))


def _all_reduce(own: Pass, hidden_size: int, count: int) -> Operator:
    """The all-reduce over the ranks of a group."""
    moved = _moved(own, hidden_size)
    return Operator(
        name="all-reduce",
        kind=Kind.ALL_REDUCE,
        count=count,
        reads_each=Amount(moved_bytes, moved),
        writes_each=Amount(moved_bytes, moved),
        link_each=Amount(all_reduce_bytes, moved | {"ring_share": _ring_share(own.tp)}),
    )


def _exchange(work: Pass, hidden_size: int, feeds: tuple[FeedForward, ...], count: int) -> Operator:
    """Send tokens to the ranks that hold their feed-forwards, and the results back.

    A dense feed-forward is on all ranks; the experts of a token are on at most k ranks.
    """
    dense = any(part.kind == "dense" for part in feeds)
    copies = work.groups if dense else min(work.groups, max(getattr(part, "top_k", 1) for part in feeds))
    moved = _moved(work.own, hidden_size)
    return Operator(
        name="gather, scatter" if dense else "all-to-all",
        kind=Kind.EXCHANGE,
        count=count,
        reads_each=Amount(moved_bytes, moved),
        writes_each=Amount(moved_bytes, moved),
        link_each=Amount(exchanged_bytes, moved | {"copies": copies, "ring_share": _ring_share(work.tp)}),
    )


def _send(own: Pass, hidden_size: int) -> Operator:
    """Send the output of a pipeline stage to the next one."""
    moved = _moved(own, hidden_size)
    return Operator(
        name="send to the next stage",
        kind=Kind.SEND,
        count=own.stages - 1,
        link_each=Amount(sent_bytes, moved),
    )
