"""The operators of a pass: their order in tables, their letters in plots, and the derivation of their times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from calc.commands.tables import Column, Row, Table, share
from calc.intensity.words import figures
from calc.speed.derivation import time_terms
from calc.step.operators import Kind
from calc.units import Quantity, format_count, format_decimal, format_duration_s, format_flops

if TYPE_CHECKING:
    from calc.explain.terms import Term
    from calc.speed.kernels import Device, Timed
    from calc.speed.passes import PassTime

LETTERS = {
    Kind.QKV: "q",
    Kind.ATTENTION: "a",
    Kind.INDEX: "i",
    Kind.RECURRENCE: "c",
    Kind.OUTPUT: "o",
    Kind.MLP: "m",
    Kind.ROUTER: "r",
    Kind.EXPERTS: "e",
    Kind.HEAD: "h",
    Kind.NORM: "n",
    Kind.ROTARY: "p",
    Kind.ACTIVATION: "x",
    Kind.SAMPLING: "s",
}
"""Letters for the kinds that compute something; lookups and sums between GPUs have no point in a roofline."""
WORDS = {
    Kind.QKV: "QKV",
    Kind.RECURRENCE: "recurrence",
    Kind.MLP: "MLP",
    Kind.ROTARY: "positions",
    Kind.INDEX: "indexer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A number with its derivation: what `Derivation.show` takes."""

    title: str
    terms: Sequence[Term] = ()
    note: str = ""
    remark: str = ""


def ordered(time: PassTime) -> list[Timed]:
    """The operators in table order: slowest first."""
    return sorted(time.operators, key=lambda one: -one.time_s)


def explained(time: PassTime, device: Device, index: int) -> Explained:
    """The derivation of the time of the operator in line `index` of the table; the last line is the sum."""
    operators = ordered(time)
    if index >= len(operators):
        return Explained(title="Sum", note="The operators run one after another: their times add up.")
    one = operators[index]
    terms = time_terms(one.operator, time.work, device)
    return Explained(title=one.operator.name, terms=terms, note=f"Limited by {one.limited_by}.")


def letter_of(one: Timed, *, prefill: bool) -> str:
    """The operator's letter in the plot: small in decode, a capital in prefill; "" if it has no point."""
    letter = LETTERS.get(one.operator.kind, "") if one.operator.flops and one.operator.bytes else ""
    return letter.upper() if prefill else letter


def lettered_table(title: str, time: PassTime, *, prefill: bool) -> Table:
    """The operators with their letters in the plot."""
    columns = (
        Column(""),
        Column("Operator"),
        Column("Runs", numeric=True, priority=1),
        *(Column(name, numeric=True, priority=2) for name in ("FLOPs", "Bytes")),
        Column("FLOP/B", numeric=True, priority=3),
        Column("Limited by", priority=4),
        *(Column(name, numeric=True) for name in ("Time", "Share")),
    )
    operators, whole_s = ordered(time), sum(one.time_s for one in time.operators)
    rows = [_line(one, whole_s, letter_of(one, prefill=prefill)) for one in operators]
    amounts = (format_flops(time.flops), format_decimal(round(time.bytes)), intensity(time.flops, time.bytes))
    total = ("", "sum", "", *amounts, short_limit(time.limited_by), format_duration_s(whole_s), share(1, 1))
    return Table(title=title, columns=columns, rows=[*rows, Row(total, strong=True)])


def _line(one: Timed, whole_s: float, letter: str) -> Row:
    flops, moved = float(one.operator.flops), float(one.operator.bytes)
    return Row(
        (
            letter,
            one.operator.name,
            format_count(one.operator.count),
            format_flops(flops),
            format_decimal(round(moved)),
            intensity(flops, moved),
            short_limit(one.limited_by),
            format_duration_s(one.time_s),
            share(one.time_s, whole_s),
        ),
        title=one.operator.name,
    )


def intensity(flops: float, moved: float) -> str:
    """FLOPs per byte to three significant digits; "" if no byte is moved."""
    return Quantity(figures(flops / moved) if flops else "0", flops / moved, "FLOP/B") if moved else ""


def short_limit(limit: str) -> str:
    """``memory bandwidth`` in one word, if a table has no room for two."""
    return "memory" if limit == "memory bandwidth" else limit


def kind_words(kind: Kind) -> str:
    """The legend text of a kind."""
    return WORDS.get(kind, str(kind))
