"""Which steps of a report stand behind a row of its tables: pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calc.commands.tables import answer_table
from calc.explain.terms import Term
from calc.fit.memory import MemoryReport
from calc.model.spec import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A row's calculation: title, the step that gives its number first, then those it rests on.

    `remark` warns of something; `note` says where a number comes from that has no formula.
    """

    title: str
    terms: tuple[Term, ...]
    remark: str = ""
    note: str = ""


def behind_answer(report: MemoryReport, row: int) -> Behind:
    """Rows of the answer table, by their names: totals, weights, cache, state, largest batch."""
    rows = answer_table(report).rows
    name = rows[max(0, min(row, len(rows) - 1))][0]
    counts = report.parameters.steps
    total = next(term for term in counts if term.name == "Total parameters")
    weights, token, request, *states, batch = report.steps[len(counts) :]
    if name == "Total parameters":
        return Behind(title=name, terms=(total, *(term for term in counts if term is not total)))
    if name.startswith("Active"):
        return Behind(title=name, terms=_last_first(counts))
    if name == "Parameter memory":
        return Behind(title=name, terms=(weights, total))
    if name == "KV cache per token":
        return Behind(title=name, terms=(token,))
    if name.startswith("KV cache per request"):
        return Behind(title="KV cache per request", terms=(request, token))
    if name.startswith("State"):
        return Behind(title=name, terms=tuple(states), remark="The same for every length, beside the cache.")
    return Behind(title=name, terms=(batch, weights, request, *states, token), remark=_memory_remark(report))


def _last_first(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return (terms[-1], *terms[:-1])


def _memory_remark(report: MemoryReport) -> str:
    return "" if report.fits else "Not even one request fits beside the weights."


_STEPS_OF = {
    "embedding": ("Embedding",),
    "attention": ("Attention (per layer)",),
    "mlp": ("Feed-forward (per layer)",),
    "norms": ("Norms (per layer)", "Final norm"),
    "head": ("Head",),
    "other": ("Learned positions",),
}


def behind_component(report: MemoryReport, row: int) -> Behind:
    """Rows of the component table, in its order; the last is the total."""
    names = [name for name, count in report.parameters.components.items() if count]
    steps = report.parameters.steps
    if row >= len(names):
        return behind_answer(report, 0)
    name = names[max(0, row)]
    if not report.study.model.uniform and name in ("attention", "mlp", "experts", "norms", "other"):
        return _behind_layered(report, name)
    wanted = _STEPS_OF.get(name, ())
    terms = tuple(term for term in steps if term.name.startswith(wanted))
    layers = report.study.model.n_layers
    remark = f"Once a layer, {layers:,} layers." if any(term.name.endswith("(per layer)") for term in terms) else ""
    return Behind(title=name.capitalize() if name != "mlp" else "Feed-forward (MLP)", terms=terms, remark=remark)


def _behind_layered(report: MemoryReport, name: str) -> Behind:
    """A component of a model whose layers are given one by one: its parts, then the kinds of layers they are in."""
    from calc.model.layers import Dense, Experts, mixers_of

    layers = report.study.model.layers
    hidden = layers[0].hidden_size
    if name == "attention":
        own = [mixer.term(hidden) for mixer in mixers_of(layers)]
    else:
        wanted = Dense if name == "mlp" else Experts
        parts = {
            part: None
            for layer in report.study.model.groups
            for part in layer.feed_forwards
            if isinstance(part, wanted)
        }
        own = [part.term(hidden) for part in parts] if name in ("mlp", "experts") else []
    kinds = [term for term in report.parameters.steps if term.name.split(" ")[0].replace(",", "").isdigit()]
    kinds = [term for term in kinds if "layer" in term.name.partition(":")[0]]
    title = {"mlp": "Feed-forward (MLP)", "attention": "Attention and recurrence"}.get(name, name.capitalize())
    return Behind(title=title, terms=(*own, *kinds))


def behind_tp(report: MemoryReport, row: int) -> Behind:
    """Rows of the tensor-parallel table: both rules, step by step."""
    row = max(0, row)
    equal, whole = report.tp_tables[Policy.EQUAL_SPLIT][row], report.tp_tables[Policy.REPLICATED][row]
    title = f"TP {equal.tp}: equal split, then whole heads"
    named = [
        *(replace(term, name=f"{term.name}, equal split") for term in _last_first(equal.steps)),
        *(replace(term, name=f"{term.name}, whole heads") for term in _last_first(whole.steps)),
    ]
    remark = f"No server could run this: {equal.problem}." if equal.problem else ""
    return Behind(title=title, terms=tuple(named), remark=remark)
