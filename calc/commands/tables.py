"""Tables as data: built once from a report, then shown by the app, printed by a command or put into the write-up."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, overload

from calc.units import (
    Quantity,
    format_binary,
    format_bytes_exact,
    format_count,
    format_decimal,
    format_duration_s,
    format_rate,
)

if TYPE_CHECKING:
    from calc.explain.terms import Term
    from calc.fit.memory import MemoryReport, TpRow
    from calc.sources.catalog import DeviceEntry, ModelEntry


KEPT = 9
"""Priority of the columns that are drawn at any width."""


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and how its column is drawn.

    `numeric` columns are right-aligned. If a table is too wide, the columns with the lowest `priority` are left out
    first, those with priority KEPT never. Adjacent columns of one `group` are under its name. A column that `repeats`
    the one before it in other units is not in the CSV.
    """

    name: str
    _: KW_ONLY
    numeric: bool = False
    priority: int = KEPT
    group: str = ""
    repeats: bool = False

    @property
    def heading(self) -> str:
        """The name with its group: ``Whole heads: batch``."""
        return f"{self.group}: {self.name}" if self.group else self.name


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of a row (it reads like a tuple) and the calculation behind them.

    `terms` begin with the step that gives the row's own number, under `title`; `remark` is a warning, `note` gives the
    source of a number without a formula. `struck`: shown as impossible. `strong`: a total, or selected.
    """

    cells: tuple[str, ...]
    _: KW_ONLY
    terms: tuple[Term, ...] = ()
    title: str = ""
    remark: str = ""
    note: str = ""
    struck: bool = False
    strong: bool = False

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        return self.cells[index]


@dataclass(frozen=True, slots=True, init=False)
class Table:
    """Columns and rows under a title. In a `chain`, all cells after the first are equal to each other.

    A column may be given by its name, a row by its cells; `numeric` and `struck` are then indexes of columns and rows.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    chain: bool = False

    def __init__(
        self,
        *,
        title: str,
        columns: Iterable[Column | str],
        rows: Iterable[Row | tuple[str, ...]],
        numeric: Container[int] = (),
        struck: Container[int] = (),
        chain: bool = False,
    ) -> None:
        made = (c if isinstance(c, Column) else Column(c, numeric=i in numeric) for i, c in enumerate(columns))
        kept = (r if isinstance(r, Row) else Row(r, struck=i in struck) for i, r in enumerate(rows))
        for name, value in (("title", title), ("columns", tuple(made)), ("rows", tuple(kept)), ("chain", chain)):
            object.__setattr__(self, name, value)

    @property
    def headings(self) -> tuple[str, ...]:
        """The columns' names with their groups."""
        return tuple(column.heading for column in self.columns)

    @property
    def cells(self) -> tuple[tuple[str, ...], ...]:
        """The rows' cells."""
        return tuple(row.cells for row in self.rows)

    def with_columns(self, indexes: Sequence[int]) -> Table:
        """The table with only some of its columns."""
        rows = tuple(replace(row, cells=tuple(row[i] for i in indexes)) for row in self.rows)
        return replace(self, columns=tuple(self.columns[i] for i in indexes), rows=rows)


def numbers(*names: str, priority: int = KEPT) -> tuple[Column, ...]:
    """Columns of numbers."""
    return tuple(Column(name, numeric=True, priority=priority) for name in names)


def share(part: float, whole: float) -> Quantity:
    """A part of a whole as ``12.3%``; its value is a fraction of 1."""
    return Quantity(f"{part / whole:.1%}", part / whole)


def answer_table(report: MemoryReport) -> Table:
    """The assignment's table: parameters, parameter memory, KV cache per request, largest batch."""
    return Table(
        title="Memory",
        columns=(
            Column("Quantity"),
            Column("Value", numeric=True),
            Column("Binary units", numeric=True, priority=2, repeats=True),
            Column("Note", priority=1),
        ),
        rows=tuple(_answer_rows(report)),
    )


def _answer_rows(report: MemoryReport) -> Iterator[Row]:
    counts, context = report.parameters, report.study.context
    weights, token, request, *states, batch = report.steps[len(counts.steps) :]
    total = next(term for term in counts.steps if term.gives == "parameters")
    state = report.state_bytes_per_sequence

    def row(name: str, value: str, also: str = "", note: str = "", **more: Any) -> Row:
        return Row((name, value, also, note), title=name.partition(" (")[0], **more)

    rest = tuple(term for term in counts.steps if term is not total)
    yield row("Total parameters", format_count(counts.total), terms=(total, *rest))
    if counts.idle:
        active = f"{counts.active / counts.total:.1%} of all"
        yield row(
            "Active parameters per token", format_count(counts.active), note=active, terms=result_first(counts.steps)
        )
    yield row("Parameter memory", *_both_units(report.weight_bytes), terms=(weights, total))
    yield row("KV cache per token", format_bytes_exact(report.kv_bytes_per_token), terms=(token,))
    name = f"KV cache per request ({context:,} tokens)"
    yield row(name, *_both_units(report.kv_bytes_per_request), terms=(request, token))
    if state:
        remark = "In addition to the cache; the same at every length."
        yield row("State per sequence", *_both_units(state), terms=tuple(states), remark=remark)
    yield row(
        "Max batch size possible",
        format_count(report.max_batch),
        note="" if report.fits else "does not fit",
        terms=(batch, weights, request, *states, token),
        remark="" if report.fits else "Not even one request fits beside the weights.",
        strong=True,
    )


def _both_units(n_bytes: int) -> tuple[Quantity, Quantity]:
    return format_decimal(n_bytes), format_binary(n_bytes)


def result_first(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    """The last step, then those that led to it."""
    return (terms[-1], *terms[:-1])


def component_table(report: MemoryReport) -> Table:
    """Parameters by component with their share and bytes; the last row is the total."""
    counts = report.parameters
    held = report.component_bytes
    rows = [
        Row(
            (name, format_count(n), share(n, counts.total), format_decimal(held[name])),
            **_counted(report, name),
        )
        for name, n in counts.components.items()
        if n or held[name]
    ]
    cells = ("total", format_count(counts.total), share(1, 1), format_decimal(report.weight_bytes))
    first = next(_answer_rows(report))
    rows.append(Row(cells, terms=first.terms, title=first.title, strong=True))
    return Table(title="Parameters", columns=("Component", *numbers("Parameters", "Share", "Bytes")), rows=rows)


_STEPS_OF = {
    "embedding": ("embedding",),
    "attention": ("attention",),
    "mlp": ("feed_forward",),
    "norms": ("layer_norms", "final_norm"),
    "head": ("head",),
    "other": ("positions",),
}


def _counted(report: MemoryReport, name: str) -> dict[str, Any]:
    """Title, steps and note of a component."""
    model, terms = report.study.model, _component_terms(report, name)
    titles = {"mlp": "Feed-forward (MLP)"} | ({} if model.uniform else {"attention": "Attention and recurrence"})
    each = model.uniform and any(term.name.endswith("(per layer)") for term in terms)
    note = f"Counted for one layer; the model has {model.n_layers:,}." if each else ""
    return {"title": titles.get(name, name.capitalize()), "terms": terms, "note": note}


def _component_terms(report: MemoryReport, name: str) -> tuple[Term, ...]:
    """The steps that count a component: its own, then (where layers differ) the kinds of layers it is in."""
    model, steps = report.study.model, report.parameters.steps
    if model.uniform or name in ("embedding", "head"):
        return tuple(term for term in steps if term.gives in _STEPS_OF[name])
    from calc.model.layers import Dense, Experts, mixers_of

    hidden, own = model.layers[0].hidden_size, []
    if name == "attention":
        own = [mixer.term(hidden) for mixer in mixers_of(model.layers)]
    elif name in ("mlp", "experts"):
        wanted = Dense if name == "mlp" else Experts
        parts = (part for layer in model.groups for part in layer.feed_forwards)
        own = [part.term(hidden) for part in dict.fromkeys(part for part in parts if isinstance(part, wanted))]
    kinds = (term for term in steps if term.name.split(" ")[0].replace(",", "").isdigit())
    return (*own, *(term for term in kinds if "layer" in term.name.partition(":")[0]))


def tp_table(report: MemoryReport) -> Table:
    """Tensor parallelism: equal split and whole KV heads; rows that no server could run are struck through."""
    from calc.model.study import Policy

    equal, whole = report.tp_tables[Policy.EQUAL_SPLIT], report.tp_tables[Policy.REPLICATED]

    def rule(group: str) -> Iterator[Column]:
        for name, priority in (("weights/GPU", 3), ("KV/GPU per request", 4), ("batch", KEPT)):
            yield Column(name, numeric=True, group=group, priority=priority)

    return Table(
        title="Tensor parallelism",
        columns=(*numbers("TP"), *rule("Equal split"), *rule("Whole heads"), Column("Remark", priority=1)),
        rows=[_tp_row(a, b) for a, b in zip(equal, whole, strict=True)],
    )


def _tp_row(equal: TpRow, whole: TpRow) -> Row:
    def cells(row: TpRow) -> tuple[str, str, str]:
        batch = format_count(row.max_batch) if row.fits else "–"
        return format_decimal(row.weight_bytes_per_gpu), format_decimal(row.kv_bytes_per_request_per_gpu), batch

    def steps(row: TpRow, rule: str) -> Iterator[Term]:
        return (replace(term, name=f"{term.name}, {rule}") for term in result_first(row.steps))

    served = ("–", "–", "–") if equal.problem else cells(whole)
    return Row(
        (format_count(equal.tp), *cells(equal), *served, equal.problem or ("" if whole.fits else "does not fit")),
        terms=(*steps(equal, "equal split"), *steps(whole, "whole heads")),
        title=f"TP {equal.tp}: equal split, then whole heads",
        remark=f"No server could run this: {equal.problem}." if equal.problem else "",
        struck=bool(equal.problem),
    )


def term_value(term: Term) -> str:
    """``131,072 B``, followed by larger units if that helps."""
    if term.unit == "s":
        return format_duration_s(term.value)
    if term.unit in ("B/s", "FLOP/s"):
        return format_rate(term.value, term.unit)
    if term.unit == "B" and term.value >= 10**6:
        return f"{format_bytes_exact(term.value)} = {format_decimal(term.value)} ({format_binary(term.value)})"
    return format_bytes_exact(term.value) if term.unit == "B" else f"{format_count(term.value)} {term.unit}"


def derivation_table(terms: tuple[Term, ...], title: str = "Calculation") -> Table:
    """One row per step: what, formula, substituted numbers, result with unit."""
    rows = tuple((t.name, t.formula, t.substituted, Quantity(term_value(t), t.value, t.unit)) for t in terms)
    return Table(title=title, columns=("Step", "Formula", "Numbers", "Result"), rows=rows, chain=True)


def model_catalog_table(entries: Iterable[ModelEntry]) -> Table:
    """Names, parameters and shape of catalog models."""
    rows = []
    for entry in entries:
        m = entry.sizes
        shape = f"{m.n_layers} x ({m.n_heads} q, {m.n_kv_heads} kv, {m.head_dim})"
        rows.append((entry.id, entry.hf_id, format_count(entry.parameters), shape, format_count(m.hidden_size)))
    columns = (
        Column("Name"),
        Column("Hugging Face id", priority=3),
        Column("Parameters", numeric=True),
        Column("Layers x heads", priority=2),
        Column("Hidden size", numeric=True, priority=1),
    )
    return Table(title="Models", columns=columns, rows=rows)


def device_catalog_table(entries: Iterable[DeviceEntry]) -> Table:
    """Names, memory, bandwidth and dense 16-bit peak of catalog devices; unknown values stay empty."""
    rows = []
    for entry in entries:
        d = entry.spec
        peak, ridge = d.peak_flops_per_s.get("bf16"), d.ridge()
        rows.append(
            (
                entry.id,
                d.name,
                format_binary(d.memory_bytes),
                format_rate(d.bandwidth_bytes_per_s) if d.bandwidth_bytes_per_s else "",
                format_rate(peak, "FLOP/s") if peak else "",
                Quantity(f"{ridge:.0f}", ridge) if ridge else "",
            )
        )
    columns = (
        Column("Name"),
        Column("Device", priority=2),
        *numbers("Memory", "Bandwidth", "bf16 dense"),
        *numbers("Ridge, FLOP/B", priority=1),
    )
    return Table(title="Devices", columns=columns, rows=rows)
