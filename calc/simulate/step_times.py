"""How long does a step take? One step mixes chunks of prompts with decoding sequences.

The operators are those of calc/step with the times of calc/speed. Their formulas are called with the sizes of every
step: the tokens of all sequences pass through a matrix together, each sequence attends to its own cache.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from calc.speed.kernels import Device, Timed, timed
from calc.speed.steps import Steps
from calc.step.model import pass_operators
from calc.step.operators import Amount, Kind, Operator, Pass, Phase

Chunk = tuple[int, int]
"""New prompt tokens in a step, and the context of the last of them."""
MIXING = frozenset({Kind.ATTENTION, Kind.INDEX, Kind.RECURRENCE})
"""Operators that read the caches of the sequences themselves."""
PER_SEQUENCE = frozenset({Kind.HEAD, Kind.SAMPLING})
"""Operators that process only the last token of each sequence."""
AMOUNTS = ("flops_each", "weights_each", "cache_each", "reads_each", "writes_each", "link_each")
CONTEXT, FAR = 1024, 2**20
"""Sizes of the passes from which operators are taken; any sizes would do."""
STRAIGHT = 1e-9
"""Below this curvature, an operator's time counts as linear in its tokens."""


class Times(Protocol):
    """The interface of step times for a simulation."""

    def step_s(self, decoding: int, context: float, chunks: Sequence[Chunk]) -> float:
        """Seconds of a step of `decoding` sequences, whose mean context is `context`, and of `chunks` of prompts."""
        ...

    def straight_until(self, context: float) -> float:
        """The context up to which the step time grows linearly."""
        ...


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds by size: the start overhead plus the longer of arithmetic and bytes, each linear."""

    start: tuple[float, float]
    compute: tuple[float, float]
    memory: tuple[float, float]

    def at(self, size: float) -> float:
        """All of it."""
        return self.start[0] + self.start[1] * size + self.work(size)

    def work(self, size: float) -> float:
        """Without what starting takes."""
        return max(self.compute[0] + self.compute[1] * size, self.memory[0] + self.memory[1] * size)


class StepTimes:
    """The step times of a model on a device. Decoding sequences are counted with their mean context."""

    def __init__(self, steps: Steps) -> None:
        self._device = steps.device
        self._decode = replace(steps.base, batch=1, context=CONTEXT, new_tokens=1)
        self._prefill = replace(self._decode, phase=Phase.PREFILL, new_tokens=CONTEXT)
        self._host_s = steps.host_s
        one, prompt = pass_operators(steps.model, self._decode), pass_operators(steps.model, self._prefill)
        both = {_identity(operator) for operator in one} & {_identity(operator) for operator in prompt}
        joint = [operator for operator in one if _identity(operator) in both]
        self._per_token = _Sized(_rest(joint), self._decode, self._device)
        self._per_sequence = _Sized([op for op in joint if op.kind in PER_SEQUENCE], self._decode, self._device)
        apart = [[op for op in _rest(each) if _identity(op) not in both] for each in (one, prompt)]
        self._decode_alone = _Sized(apart[0], self._decode, self._device)
        self._prefill_alone = _Sized(apart[1], self._prefill, self._device)
        self._attend_one = _DecodeMixing([op for op in one if op.kind in MIXING], self._decode, self._device)
        self._attend_prompt = _PromptMixing([op for op in prompt if op.kind in MIXING], self._prefill, self._device)

    def step_s(self, decoding: int, context: float, chunks: Sequence[Chunk]) -> float:
        """Seconds of a step, the host's included."""
        prompt_tokens = sum(new for new, _ in chunks)
        spent = self._host_s + self._per_token.at(decoding + prompt_tokens)
        spent += self._per_sequence.at(decoding + len(chunks)) + self._decode_alone.at(decoding)
        if not chunks:
            return spent + self._attend_one.start_s + decoding * self._attend_one.each_s(context)
        spent += self._prefill_alone.at(prompt_tokens) + sum(map(self._attend_prompt.each_s, chunks))
        if not decoding:
            return spent + self._attend_prompt.start_s
        start_s = max(self._attend_one.start_s, self._attend_prompt.start_s)  # one kernel for all sequences
        return spent + start_s + decoding * self._attend_one.each_s(context)

    def straight_until(self, context: float) -> float:
        """The context at which the next window is full."""
        turns = self._attend_one.turns
        at = bisect_right(turns, context)
        return turns[at] if at < len(turns) else float("inf")


def _rest(operators: Iterable[Operator]) -> list[Operator]:
    """Those that see every token."""
    return [op for op in operators if op.kind not in MIXING and op.kind not in PER_SEQUENCE]


def _identity(operator: Operator) -> tuple[object, ...]:
    """What an operator is, whatever goes through it."""
    amounts = (getattr(operator, name) for name in AMOUNTS)
    sizes = ((a.formula, n, a.sizes[n]) for a in amounts for n in sorted(a.sizes) if n not in ("tokens", "batch"))
    return (operator.name, operator.kind, operator.count, *sizes)


def _resized(operator: Operator, **sizes: float) -> Operator:
    """The operator with other numbers of tokens, sequences, queries or keys."""

    def other(amount: Amount) -> Amount:
        return Amount(amount.formula, {**amount.sizes, **{n: v for n, v in sizes.items() if n in amount.sizes}})

    others: dict[str, Any] = {name: other(getattr(operator, name)) for name in AMOUNTS}
    return replace(operator, **others)


class _Sized:
    """Operators by the number of tokens that go through them: straight lines, and what is none (experts)."""

    def __init__(self, operators: Sequence[Operator], work: Pass, device: Device) -> None:
        self._work, self._device = work, device
        lines = [(operator, self._line(operator)) for operator in operators]
        self._lines = [line for _, line in lines if line is not None]
        self._bent = [operator for operator, line in lines if line is None]
        self._known: dict[int, float] = {0: 0.0}

    def at(self, tokens: int) -> float:
        """Seconds for so many tokens; none for none."""
        known = self._known.get(tokens)
        if known is None:
            known = sum(line.at(tokens) for line in self._lines)
            known += sum(self._timed(operator, tokens).time_s for operator in self._bent)
            self._known[tokens] = known
        return known

    def _timed(self, operator: Operator, tokens: int) -> Timed:
        work = replace(self._work, batch=tokens, new_tokens=1)
        return timed(_resized(operator, tokens=tokens), work, self._device)

    def _line(self, operator: Operator) -> Line | None:
        if operator.kind is Kind.EXPERTS:  # whose number of tokens decides which of them are read
            return None
        line = _through(1, self._timed(operator, 1), 2, self._timed(operator, 2))
        far = self._timed(operator, FAR).time_s
        return line if abs(line.at(FAR) - far) <= STRAIGHT * far else None


def _through(a: float, at_a: Timed, b: float, at_b: Timed) -> Line:
    """The lines through two points."""

    def line(y_a: float, y_b: float) -> tuple[float, float]:
        slope = (y_b - y_a) / (b - a)
        return y_a - slope * a, slope

    return Line(
        start=line(_start_s(at_a), _start_s(at_b)),
        compute=line(at_a.compute_s, at_b.compute_s),
        memory=line(at_a.memory_s, at_b.memory_s),
    )


def _start_s(one: Timed) -> float:
    return float(one.time_s - max(one.compute_s, one.memory_s))


class _DecodeMixing:
    """Attention of one token of a sequence by its context: straight lines between the contexts that fill a window."""

    def __init__(self, operators: Sequence[Operator], work: Pass, device: Device) -> None:
        self.turns = sorted({turn for operator in operators for turn in _turns(operator)})
        self.start_s = sum(_start_s(timed(operator, work, device)) for operator in operators)
        ends = [1, *self.turns, (self.turns[-1] if self.turns else 0) + FAR]
        self._pieces = [
            [_through(a, _at(op, a, work, device), b, _at(op, b, work, device)) for op in operators]
            for a, b in pairwise(ends)
        ]

    def each_s(self, context: float) -> float:
        """Seconds for one sequence."""
        return sum(line.work(context) for line in self._pieces[bisect_right(self.turns, context)])


def _at(operator: Operator, context: int, work: Pass, device: Device) -> Timed:
    return timed(_resized(operator, n_keys=context), work, device)


def _turns(operator: Operator) -> list[int]:
    """Contexts from which on a window, or the number of chosen tokens, limits what is read."""
    found = []
    for name in AMOUNTS:
        sizes = getattr(operator, name).sizes
        if "window" in sizes or "chosen" in sizes:
            limits = [sizes[limit] for limit in ("window", "chosen") if limit in sizes]
            found += [limit * sizes.get("ratio", 1) for limit in limits]
    return [turn for turn in found if turn > 1]


class _PromptMixing:
    """Attention of a chunk of a prompt."""

    def __init__(self, operators: Sequence[Operator], work: Pass, device: Device) -> None:
        at_template = [timed(operator, work, device) for operator in operators]
        self.start_s = sum(map(_start_s, at_template))
        self._rates = [(one.operator, _per(one.compute_s, one.operator.flops), _per(one.memory_s, one.operator.bytes))
                       for one in at_template]  # fmt: skip
        self._known: dict[Chunk, float] = {}

    def each_s(self, chunk: Chunk) -> float:
        """Seconds for one chunk."""
        known = self._known.get(chunk)
        if known is None:
            new, context = chunk
            known = 0.0
            for operator, per_flop_s, per_byte_s in self._rates:
                sized = _resized(operator, tokens=new, n_queries=new, n_keys=context)
                known += max(float(sized.flops) * per_flop_s, float(sized.bytes) * per_byte_s)
            self._known[chunk] = known
        return known


def _per(time_s: float, amount: float) -> float:
    return time_s / float(amount) if amount else 0.0
