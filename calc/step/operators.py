"""Records of operators (how often they run, what they compute and move) and of passes.

An amount is a formula and its sizes. With integers the formula gives an exact number, with NumPy arrays a sweep, with
symbols the expression to display: one function gives the number, the array and the derivation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Any

from calc.explain.terms import Number, Term, derive
from calc.model.tensors import Tensor
from calc.units import whole


class Phase(StrEnum):
    """PREFILL processes all tokens of a prompt at once, DECODE one new token per sequence."""

    PREFILL = "prefill"
    DECODE = "decode"


class Kind(StrEnum):
    """The purpose of an operator."""

    EMBEDDING = "embedding"
    NORM = "norm"
    QKV = "qkv"
    ROTARY = "rotary"
    INDEX = "index"
    ATTENTION = "attention"
    RECURRENCE = "recurrence"
    OUTPUT = "output"
    ROUTER = "router"
    MLP = "mlp"
    EXPERTS = "experts"
    ACTIVATION = "activation"
    HEAD = "head"
    SAMPLING = "sampling"
    ALL_REDUCE = "all-reduce"
    EXCHANGE = "exchange"
    SEND = "send"
    COMBINE = "combine"


BETWEEN_RANKS = frozenset({Kind.ALL_REDUCE, Kind.EXCHANGE, Kind.SEND, Kind.COMBINE})
"""Operators that wait for other ranks."""


@dataclass(frozen=True)
class Amount:
    """FLOPs or bytes of one run: a formula and its sizes."""

    formula: Callable[..., Any]
    sizes: Mapping[str, Any]

    @cached_property
    def value(self) -> Any:
        """The exact number, or an array if a size is an array."""
        result = self.formula(**self.sizes)
        if getattr(getattr(result, "dtype", None), "kind", "") == "O":  # products of fractions and arrays
            return result.astype(float)
        return whole(result) if isinstance(result, Fraction) else result

    def term(self, name: str, unit: str) -> Term:
        """The number with its derivation."""
        return derive(name, self.formula, unit=unit, **self.sizes)


def nothing() -> Any:
    """The formula of an amount that is zero."""
    return 0


NONE = Amount(nothing, {})


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator that runs `count` times in a pass. Amounts (``_each``) are per run, properties are for all runs.

    Reads are weights, the cache or state of sequences, and activations. `link_each` is sent to other ranks.
    """

    name: str
    kind: Kind
    count: int
    flops_each: Amount = NONE
    weights_each: Amount = NONE
    cache_each: Amount = NONE
    reads_each: Amount = NONE
    writes_each: Amount = NONE
    link_each: Amount = NONE

    @cached_property
    def flops(self) -> Any:
        """FLOPs."""
        return self.count * self.flops_each.value

    @property
    def weight_bytes(self) -> Any:
        """Bytes of weights."""
        return self.count * self.weights_each.value

    @property
    def cache_bytes(self) -> Any:
        """Bytes read from caches or states."""
        return self.count * self.cache_each.value

    @property
    def read_bytes(self) -> Any:
        """All bytes read: weights, caches, activations."""
        return self.weight_bytes + self.cache_bytes + self.count * self.reads_each.value

    @property
    def write_bytes(self) -> Any:
        """Bytes written."""
        return self.count * self.writes_each.value

    @cached_property
    def bytes(self) -> Any:
        """Bytes read and written."""
        return self.read_bytes + self.write_bytes

    @property
    def link_bytes(self) -> Any:
        """Bytes sent to other ranks."""
        return self.count * self.link_each.value

    @property
    def terms(self) -> tuple[Term, ...]:
        """The derivations for one run: FLOPs, and the bytes of each kind."""
        amounts = (
            ("FLOPs", self.flops_each, "FLOP"),
            ("Weights read", self.weights_each, "B"),
            ("Cache read", self.cache_each, "B"),
            ("Activations read", self.reads_each, "B"),
            ("Written", self.writes_each, "B"),
            ("Sent to other GPUs", self.link_each, "B"),
        )
        return tuple(amount.term(name, unit) for name, amount, unit in amounts if amount is not NONE)


def total(operators: Iterable[Operator], what: str) -> Any:
    """Sum over `operators` of one of their properties: ``flops``, ``bytes``, ``weight_bytes`` …"""
    return sum(getattr(operator, what) for operator in operators)


def merged(operators: Iterable[Operator]) -> tuple[Operator, ...]:
    """Merge equal operators and add their counts. Operators of one pass differ only in plain numbers."""
    made: dict[tuple[Any, ...], Operator] = {}
    for operator in operators:
        known = made.get(key := _identity(operator))
        made[key] = operator if known is None else replace(known, count=known.count + operator.count)
    return tuple(made.values())


def _identity(operator: Operator) -> tuple[Any, ...]:
    amounts = (operator.flops_each, operator.weights_each, operator.cache_each, operator.reads_each)
    sizes = (
        (amount.formula, name, value)
        for amount in (*amounts, operator.writes_each)
        for name, value in amount.sizes.items()
        if isinstance(value, int | float | Fraction)
    )
    return operator.name, operator.kind, *sizes


def two_bytes(tensor: Tensor) -> Number:
    """Weights of 16 bits."""
    return 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass of a model on one of `tp` ranks: `batch` sequences, each with new tokens.

    `ep` of the `tp` ranks share whole experts. The ranks form `groups` that each attend to their own sequences; `batch`
    counts all groups. With `stages`, the ranks of each stage hold a part of the layers, and the pass covers all stages.
    In decode, `dcp` ranks split the tokens of KV heads that each would otherwise hold (decode context parallelism).

    `context`: tokens that the last new one attends to, itself included; `new_tokens`: per sequence (None: one in
    decode, the whole context in prefill). Sizes may be arrays or symbols. `causal`: a query sees only the tokens up to
    itself; otherwise each query counts as many tokens as the last one. `scores_in_memory`: attention writes its scores
    to device memory and reads them back. `weight_bytes` gives the bytes per element of a tensor.
    """

    phase: Phase
    batch: Any = 1
    context: Any = 1024
    new_tokens: Any = None
    tp: int = 1
    ep: int = 1
    groups: int = 1
    stages: int = 1
    dcp: int = 1
    causal: bool = True
    scores_in_memory: bool = False
    softmax_flops: Any = 5
    element_bytes: Number = 2
    kv_element_bytes: Number = 2
    weight_bytes: Callable[[Tensor], Number] = two_bytes

    @property
    def queries(self) -> Any:
        """New tokens of each sequence."""
        if self.new_tokens is not None:
            return self.new_tokens
        return self.context if self.phase is Phase.PREFILL else 1

    @property
    def tokens(self) -> Any:
        """New tokens of all sequences."""
        return self.batch * self.queries

    @property
    def shared(self) -> int:
        """Ranks that share the context of a sequence; in prefill, every rank attends to the whole context."""
        return self.dcp if self.phase is Phase.DECODE else 1

    @property
    def own(self) -> Pass:
        """The same pass for one attention group: its ranks, and the largest share of the sequences."""
        if self.groups == 1:
            return self
        return replace(self, batch=-(-self.batch // self.groups), tp=self.tp // self.groups, groups=1)
