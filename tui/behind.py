"""Which steps of a report stand behind a row of its tables: pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

from calc.explain import Term
from calc.memory import MemoryReport
from calc.specs import Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A row's calculation: title, the step that gives its number first, then those it rests on, and a remark."""

    title: str
    terms: tuple[Term, ...]
    remark: str = ""


def _after_parameters(report: MemoryReport) -> tuple[Term, ...]:
    return report.steps[len(report.parameters.steps) :]


def behind_answer(report: MemoryReport, row: int) -> Behind:
    """Rows of the answer table: total, weights, KV a token, KV a request, largest batch."""
    weights, token, request, batch = _after_parameters(report)
    counts = report.parameters.steps
    if row <= 0:
        return Behind(title="Total parameters", terms=_last_first(counts))
    if row == 1:
        return Behind(title="Parameter memory", terms=(weights, counts[-1]))
    if row == 2:
        return Behind(title="KV cache per token", terms=(token,))
    if row == 3:
        return Behind(title="KV cache per request", terms=(request, token))
    terms = (batch, weights, request, token)
    return Behind(title="Max batch size possible", terms=terms, remark=_memory_remark(report))


def _last_first(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return (terms[-1], *terms[:-1])


def _memory_remark(report: MemoryReport) -> str:
    return "" if report.fits else "Not even one request fits beside the weights."


_STEPS_OF = {
    "embedding": ("Embedding",),
    "attention": ("Attention, a layer",),
    "mlp": ("Feed-forward, a layer",),
    "norms": ("Norms, a layer", "Final norm"),
    "head": ("Head",),
    "other": ("Learned positions",),
}


def behind_component(report: MemoryReport, row: int) -> Behind:
    """Rows of the component table, in its order; the last is the total."""
    names = [name for name, count in report.parameters.components.items() if count]
    steps = report.parameters.steps
    if row >= len(names):
        return Behind(title="Total parameters", terms=_last_first(steps))
    name = names[max(0, row)]
    wanted = _STEPS_OF.get(name, ())
    terms = tuple(term for term in steps if term.name.startswith(wanted))
    layers = report.study.model.n_layers
    remark = f"Once a layer, {layers:,} layers." if any(term.name.endswith("a layer") for term in terms) else ""
    return Behind(title=name.capitalize() if name != "mlp" else "Feed-forward (MLP)", terms=terms, remark=remark)


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
