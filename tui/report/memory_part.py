"""Problem 1 (a) and (b): the inputs, parameters and bytes step by step, and tensor parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from calc.commands import tables
from calc.commands.notes import memory_notes, other_memory, reading_notes
from calc.explain.terms import SYMBOLS, Expr, Number, Term, to_latex, to_text
from calc.fit.memory import MemoryReport, TpRow
from calc.model.cache import ONE_ROW
from calc.model.parts import Attention, mixers_of
from calc.model.spec import ModelSpec
from calc.model.study import Policy
from calc.sources.catalog import power_text
from calc.units import format_bytes, format_bytes_exact, format_count, format_rate
from tui.form.state import Analysis
from tui.report.model import (
    Block,
    Derivation,
    Grid,
    Heading,
    Inline,
    Math,
    Paragraph,
    Step,
    Text,
    cells,
    formula,
    grid_of,
    paragraph,
    plain_items,
    symbol_math,
)

GIVEN = (
    *("n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size"),
    *("n_learned_positions", "n_sliding_layers", "window", "memory_bytes", "context", "weight_element_bytes"),
    *("kv_element_bytes", "tp", "n_keys"),
)
"""Symbols in the table of inputs."""


def derived_step(term: Term) -> Step:
    """A step with the symbol for its result."""
    return Step(name=term.name, symbol=symbol_math(term.gives) if term.gives else None, term=term)


# Inputs


def inputs_part(analysis: Analysis) -> list[Block]:
    """The inputs, with the symbols that the formulas use."""
    study = analysis.memory.study
    return [
        Heading(1, "Inputs"),
        Grid(
            title="Inputs",
            columns=cells("Quantity", "Symbol", "Value"),
            rows=(*_model_rows(study.model), *_device_rows(analysis), *_workload_rows(analysis)),
        ),
        paragraph(
            "GB is 10⁹ bytes and GiB is 2³⁰ bytes throughout; the two are never mixed. "
            f"Device memory: {study.device.reading}."
        ),
    ]


def _given(quantity: str, name: str | None, value: str) -> tuple[Text, ...]:
    mark: Inline = symbol_math(name) if name else ""
    return cells(quantity, mark, value)


def _model_rows(model: ModelSpec) -> list[tuple[Text, ...]]:
    rows = [_given("Model", None, model.title), _given("Source of its sizes", None, model.provenance)]
    labels = {
        "n_layers": "Layers",
        "n_heads": "Query heads",
        "n_kv_heads": "Key/value heads",
        "head_dim": "Head dimension",
        "hidden_size": "Embedding dimension",
        "intermediate_size": "Inner dimension",
        "vocab_size": "Vocabulary",
    }
    rows += [_given(label, name, format_count(getattr(model, name))) for name, label in labels.items()]
    rows.append(_given("Blocks", None, _block_kinds(model)))
    if model.n_learned_positions:
        rows.append(_given("Learned positions", "n_learned_positions", format_count(model.n_learned_positions)))
    if model.n_sliding_layers:
        rows.append(_given("Layers with a window", "n_sliding_layers", format_count(model.n_sliding_layers)))
        rows.append(_given("Window, tokens", "window", format_count(model.window or 0)))
    return rows


def _block_kinds(model: ModelSpec) -> str:
    """The model's switches that affect a count, in words."""
    biases = {"QKV": model.qkv_bias, "output": model.o_bias, "MLP": model.mlp_bias, "head": model.head_bias}
    words = [
        f"{model.mlp} MLP",
        "RMSNorm" if model.norm == "rms" else "LayerNorm",
        "tied head" if model.tied else "separate head",
        "biases: " + (", ".join(name for name, has in biases.items() if has) or "none"),
    ]
    return "; ".join([*words, "norms of Q and K"] if model.qk_norm else words)


def _device_rows(analysis: Analysis) -> list[tuple[Text, ...]]:
    device = analysis.memory.study.device
    peak, ridge = device.peak_flops_per_s.get("bf16"), device.ridge()
    bandwidth = device.bandwidth_bytes_per_s
    rows = [
        _given("Device", None, device.name),
        _given("Device memory", "memory_bytes", format_bytes_exact(device.memory_bytes)),
        _given("Device bandwidth", None, format_rate(bandwidth) if bandwidth else "not known"),
        _given("Device peak, bf16 dense", None, format_rate(peak, "FLOP/s") if peak else "not known"),
    ]
    if ridge is not None:
        rows.append(_given("Ridge (peak / bandwidth)", None, f"{ridge:.1f} FLOP/B"))
    return rows


def _workload_rows(analysis: Analysis) -> list[tuple[Text, ...]]:
    study, query = analysis.memory.study, analysis.intensity.query
    weight, kv = study.weight_format, study.kv_format
    return [
        _given("Context, tokens", "context", format_count(study.context)),
        _given("Bytes per weight", "weight_element_bytes", f"{_bytes_each(weight.bytes_per_element)} ({weight.name})"),
        _given("Bytes per cache element", "kv_element_bytes", f"{_bytes_each(kv.bytes_per_element)} ({kv.name})"),
        _given("Tensor-parallel GPUs", "tp", ", ".join(map(format_count, study.tps))),
        _given("Tokens attended to, in (c) and (d)", "n_keys", format_count(query.context)),
        _given("Head dimension, in (c) and (d)", "head_dim", format_count(query.head_dim)),
        _given("Softmax FLOPs per element", None, format_count(query.softmax_flops)),
    ]


def _bytes_each(value: object) -> str:
    from calc.explain.terms import number_text

    return number_text(value)  # type: ignore[arg-type]


# (a)


def part_a(report: MemoryReport) -> list[Block]:
    """The assignment's table, the components, and the calculation."""
    return [
        Heading(1, "Problem 1 (a): parameters, memory and the largest batch"),
        _answer(report),
        grid_of(tables.answer_table(report), title="The answer for one device"),
        grid_of(tables.component_table(report), title="Where the parameters are", summed=True),
        Derivation(title="Calculation, step by step", steps=tuple(map(derived_step, report.steps))),
        *_further_symbols(report),
        *_tied_note(report.study.model),
    ]


def _answer(report: MemoryReport) -> Paragraph:
    """The answer to (a) in a sentence, with the other reading of the memory if there is one."""
    study, other = report.study, other_memory(report)
    batch = f"the largest batch is {report.max_batch:,}" if report.fits else "no request fits"
    also = ""
    if other is not None:
        also = f" ({other.max_batch:,} if read as {power_text(other.study.device.memory_bytes)})"
    return paragraph(
        f"Answer: {format_count(report.parameters.total)} parameters take {format_bytes(report.weight_bytes)}; a "
        f"request of {study.context:,} tokens takes {format_bytes(report.request_bytes)}; {batch} in "
        f"{format_bytes_exact(study.device.memory_bytes)} of device memory{also}."
    )


def _further_symbols(report: MemoryReport) -> list[Block]:
    """The meaning of symbols that are neither inputs nor results of a step."""
    used = dict.fromkeys(name for term in report.steps for name in term.values)
    known = {*GIVEN, *(term.gives for term in report.steps)}
    names = [name for name in used if name not in known and name in SYMBOLS]
    if not names:
        return []
    rows = tuple(cells(symbol_math(name), SYMBOLS[name].meaning) for name in names)
    return [Grid(title="Other symbols", columns=cells("Symbol", "Meaning"), rows=rows)]


def _tied_note(model: ModelSpec) -> list[Block]:
    if not model.tied:
        return []
    return [paragraph("The head shares the weights of the embedding, so they are counted and stored once.")]


# (b)


def part_b(report: MemoryReport) -> list[Block]:
    """Tensor parallelism over X GPUs: formulas for both rules, the table, and what cannot be run."""
    return [
        Heading(1, "Problem 1 (b): tensor parallelism over X GPUs"),
        _group_answer(report),
        _two_rules(report),
        *_rule_derivations(report),
        _split_symbols(report),
        grid_of(
            tables.tp_table(report),
            title="By number of GPUs (TP): weights and cache per GPU, largest batch of the whole group",
        ),
        *_impossible(report),
        *_growth(report),
        *_readings(report),
        Heading(2, "Remarks"),
        plain_items(memory_notes(report)),
    ]


def _two_rules(report: MemoryReport) -> Paragraph:
    """What the equal split and whole heads mean; a latent has no heads to divide."""
    mixers = mixers_of(report.study.model.layers)
    latent = any(mixer.kind in ONE_ROW for mixer in mixers)
    if latent and not any(isinstance(mixer, Attention) for mixer in mixers):
        rule: Text = (": a latent serves all heads, so every GPU has a full copy, as for norms.",)
    else:
        repeated = (" exceeds ", symbol_math("n_kv_heads"), " they repeat, and norms are on every GPU.")
        also = " A latent serves all heads, so every GPU has a full copy." if latent else ""
        rule = (", which keeps whole KV heads: once ", symbol_math("tp"), *repeated, also)
    return paragraph(
        "Equal split, the assignment's rule: weights and cache are divided by ",
        symbol_math("tp"),
        ". For comparison, the rule of a real server",
        *rule,
    )


def _group_answer(report: MemoryReport) -> Paragraph:
    """The answer to (b) by the assignment's rule: the formulas in X, and the batch for every X."""
    rows = report.tp_tables[Policy.EQUAL_SPLIT]
    shown = next((row for row in rows if row.fits), rows[-1])
    weights, cache, *_ = shown.steps
    batches = [f"{row.max_batch:,} for X = {row.tp:,}" if row.fits else f"none for X = {row.tp:,}" for row in rows]
    batch: Text = (", so that the largest batch of all X GPUs is ", formula(_composed(report, shown).expression))
    return paragraph(
        "Answer: if everything divides evenly, one of X GPUs holds ",
        formula(weights.expression),
        " bytes of weights and ",
        formula(cache.expression),
        " bytes of cache per request",
        *(batch if shown.fits else (". The largest batch of all X GPUs",)),
        f": {', '.join(batches)}.",
    )


RULES = {Policy.EQUAL_SPLIT: "Equal split", Policy.REPLICATED: "Whole KV heads"}


def _rule_derivations(report: MemoryReport) -> list[Block]:
    """Both rules computed for one X: the first above 1 that a server could run and that holds a request.

    If no X does both: the first that holds one with the equal split, then the first that could be run, else the last.
    """
    rows, equal = report.tp_tables[Policy.REPLICATED], report.tp_tables[Policy.EQUAL_SPLIT]
    able = [i for i, row in enumerate(rows) if row.tp > 1 and not row.problem]
    fitting = (i for table in (rows, equal) for i in able if table[i].fits)
    index = next(fitting, able[0] if able else len(rows) - 1)
    blocks: list[Block] = []
    for policy, name in RULES.items():
        row = report.tp_tables[policy][index]
        title = f"{name}: the formulas, and the numbers for X = {row.tp:,}"
        blocks.append(Derivation(title=title, steps=rule_steps(report, policy, row)))
    return blocks


def rule_steps(report: MemoryReport, policy: Policy, row: TpRow) -> tuple[Step, ...]:
    """Weights, cache, state and batch of one GPU; for the equal split, all shares are substituted into the batch
    formula."""
    *held, batch = row.steps
    steps = [
        Step(name=term.name, symbol=SHARES[name], term=term) for name, term in zip(_held_names(row), held, strict=True)
    ]
    counted = Math("B_X", "B_X") if batch.unit == "requests" else None
    if policy is Policy.EQUAL_SPLIT:
        return *steps, Step(name=batch.name, symbol=counted, term=_composed(report, row))
    return *steps, Step(name=batch.name, symbol=counted, term=batch, shown=_per_gpu(batch.expression))


SHARES = {
    "weight_bytes": Math("W_X", "W_X"),
    "kv_request_bytes": Math("KV_X", r"\mathit{KV}_X"),
    "state_bytes": Math("St_X", r"\mathit{St}_X"),
}
"""Names of one GPU's bytes for those of the whole model."""


def _held_names(row: TpRow) -> tuple[str, ...]:
    """Names of what a GPU holds, in the order of its derivation; with the state if layers have one."""
    return tuple(SHARES)[: len(row.steps) - 1]


def _per_gpu(expression: Expr) -> Math:
    """A formula of weights, cache and state with the symbols of one GPU's shares."""

    def leaf(node: Expr, *, latex: bool) -> str:
        share = SHARES.get(node.args[0]) if node.op == "sym" else None
        if share is not None:
            return share.latex if latex else share.text
        return to_latex(node) if latex else to_text(node)

    return Math(to_text(expression, partial(leaf, latex=False)), to_latex(expression, partial(leaf, latex=True)))


def _composed(report: MemoryReport, row: TpRow) -> Term:
    """The batch (or what is missing) as one formula of the whole model's bytes, with each share's formula
    substituted."""
    *held, batch = row.steps
    shares = {name: term.expression for name, term in zip(_held_names(row), held, strict=True)}
    values: dict[str, Number] = {"memory_bytes": report.study.device.memory_bytes}
    for term in held:
        values |= term.values
    return replace(batch, expression=_put_in(batch.expression, shares), values=values)


def _put_in(node: Expr, parts: Mapping[str, Expr]) -> Expr:
    """`node` with the expressions of `parts` substituted for their symbols."""
    if node.op == "sym":
        return parts.get(node.args[0], node)
    return node if node.op == "num" else Expr(node.op, tuple(_put_in(arg, parts) for arg in node.args))


def _growth(report: MemoryReport) -> list[Block]:
    """Why the batch grows faster than the number of GPUs, with the numbers of the table."""
    rows = [row for row in report.tp_tables[Policy.EQUAL_SPLIT] if row.fits]
    first, last = (rows[0], rows[-1]) if rows else (None, None)
    if first is None or last is None or last.max_batch * first.tp <= first.max_batch * last.tp:
        return []
    return [
        paragraph(
            f"From {first.tp:,} to {last.tp:,} GPUs the batch grows {last.max_batch / first.max_batch:.2f} times, more "
            f"than the GPUs ({last.tp / first.tp:g} times): the group has ",
            symbol_math("tp"),
            " times the memory but still holds the weights only once, so what is left for caches, ",
            Math("X · mem − W", r"X \cdot \mathit{mem} - W"),
            ", grows faster than ",
            symbol_math("tp"),
            ".",
        )
    ]


def _readings(report: MemoryReport) -> list[Block]:
    """The largest batch of the group for both readings of the device's memory, if there are two."""
    other = other_memory(report)
    if other is None:
        return []
    both = (report, other)
    tables_by_reading = [each.tp_tables[Policy.EQUAL_SPLIT] for each in both]
    return [
        Grid(
            title="Both readings of the device's memory: largest batch, equal split",
            columns=cells("TP", *(power_text(each.study.device.memory_bytes) for each in both)),
            rows=tuple(
                cells(format_count(row[0].tp), *(format_count(one.max_batch) if one.fits else "–" for one in row))
                for row in zip(*tables_by_reading, strict=True)
            ),
            numeric=frozenset(range(3)),
        ),
        *map(paragraph, reading_notes(report)),
    ]


def _impossible(report: MemoryReport) -> list[Block]:
    """A sentence on the rows that no server could run; the remarks below give the reasons."""
    bad = [f"{row.tp:,}" for row in report.tp if row.problem]
    if not bad:
        return []
    return [
        paragraph(
            "No server could run ",
            symbol_math("tp"),
            f" = {', '.join(bad)}: there, the equal split only exists on paper, and its row is struck through or "
            "in italics.",
        )
    ]


def _split_symbols(report: MemoryReport) -> Paragraph:
    """The meaning of the symbols of the whole-head rule, with their values."""
    term = report.tp_tables[Policy.REPLICATED][0].steps[0]
    wanted = ("split_params", "kv_head_params", "rank_kv_params", "whole_params")
    names = [name for name in wanted if name in term.values]
    pieces: list[Inline] = ["With whole heads, "]
    for i, name in enumerate(names):
        value, meaning = format_count(term.values[name]), SYMBOLS[name].meaning
        pieces += ["; " if i else "", symbol_math(name), f" = {value}: {meaning}"]
    return Paragraph((*pieces, "."))
