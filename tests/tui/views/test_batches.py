"""The largest batch by context and format: the panes say what calc.fit.solve says, whatever the rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from calc.errors import SpecError
from calc.fit.rules import costs_of
from calc.fit.solve import largest_batch
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.servers.names import ENGINES
from calc.sources.catalog import find_device, find_model
from tui.form.fields import POLICIES
from tui.form.state import default_state, with_policy, with_study
from tui.views.batches import batch_by_context, batch_by_format, batch_chart
from tui.views.questions import grid_table
from tui.views.rule import Rule, rule_of

DEEPSEEK = Study(
    model=find_model("deepseek-v3"),
    device=find_device("h200-sxm"),
    tps=(8, 16, 32),
    weight_format=FORMATS["bf16"],
)
MODELS = ("llama-3-8b", "gemma-2-9b", "gpt-oss-20b", "qwen3.5-35b-a3b")


def rule_for(policy: str, model: str = "llama-3-8b") -> Rule:
    """The rule of the app's own state under `policy`."""
    study = Study(model=find_model(model), device=find_device("h200-sxm"), tps=(1, 2, 3))
    return rule_of(with_policy(with_study(default_state(), study), policy))


def test_replicated_latent_caches_are_not_divided() -> None:
    """DeepSeek-V3 at 2 bytes per weight: 16 H200 hold 111 requests of 8,192 tokens, not 1,841 (the equal split)."""
    whole = Rule(study=replace(DEEPSEEK, policy=Policy.REPLICATED))
    cells = {row[0]: row for row in batch_by_context(whole).rows}
    assert batch_by_context(whole).title == "Largest batch by context (whole heads)"
    assert cells["8,192 ◂"][2] == "111"
    assert {row[0]: row for row in grid_table(whole).rows}["8,192 ◂"][-2] == "111"
    assert largest_batch(costs_of(whole.study, 16)).batch == 111
    equal = Rule(study=DEEPSEEK)
    assert batch_by_context(equal).title == "Largest batch by context (equal split)"
    assert {row[0]: row for row in batch_by_context(equal).rows}["8,192 ◂"][2] == "1,841"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("policy", POLICIES)
def test_the_table_says_what_solve_says(policy: str, model: str) -> None:
    rule = rule_for(policy, model)
    table, more = batch_by_context(rule), grid_table(rule)
    by_context = {row[0]: row for row in more.rows}
    for row in table.rows:
        context = int(row[0].split()[0].replace(",", ""))
        for name, cell in zip(table.headings[1:], row[1:], strict=True):
            study = replace(rule.study, context=context)
            at = costs_of(study, int(name.split()[1]), rule.server).admission()
            assert cell == ("✗" if not at.runnable else f"{at.batch:,}" if at.batch else "–")
            assert by_context[row[0]][more.headings.index(name)] == cell


@pytest.mark.parametrize("policy", POLICIES)
def test_formats_are_counted_by_the_same_rule(policy: str) -> None:
    rule = rule_for(policy)
    table = batch_by_format(rule)
    weights = [FORMATS[row[0].split()[1]] for row in table.rows]
    caches = [FORMATS[heading.split()[1]] for heading in table.headings[1:]]
    for weight, row in zip(weights, table.rows, strict=True):
        for cache, cell in zip(caches, row[1:], strict=True):
            stored = replace(rule.study, weight_format=weight, kv_format=cache)
            at = costs_of(stored, rule.tp, rule.server).admission()
            assert cell == (f"{at.batch:,}" if at.batch else "–")
    assert sum(row[0].endswith("◂") for row in table.rows) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_the_chart_is_the_table(policy: str) -> None:
    rule = rule_for(policy)
    table, chart = batch_by_context(rule), batch_chart(rule)
    assert table.title.partition("(")[2] == chart.title.partition("(")[2]
    for series in chart.series:
        column = table.headings.index(series.label)
        shown = [row[column].replace(",", "") for row in table.rows]
        assert [str(int(point[1])) for point in series.points] == [cell for cell in shown if cell.isdigit()]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_number_has_its_calculation(policy: str) -> None:
    """The last step of a cell is the cell; transformers and llama.cpp report no steps."""
    rule = rule_for(policy)
    for table in (batch_by_context(rule), batch_by_format(rule)):
        for row in table.rows:
            named = [term for term in row.terms if term.name.startswith(("Largest batch", "Full-length requests"))]
            numbers = [cell.replace(",", "") for cell in row[1:] if cell.replace(",", "").isdigit()]
            if named:
                assert [str(int(term.value)) for term in named] == numbers
            else:
                assert policy in ("transformers", "llamacpp")


def test_a_rule_that_cannot_split_says_why() -> None:
    whole = rule_for("replicated")
    row = batch_by_context(whole).rows[0]
    assert row[3] == "✗"
    assert row.remark == "TP 3: 32 query heads are not divisible by 3."
    assert "✗" not in batch_by_context(rule_for("equal-split")).rows[0].cells


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_shows_its_own_tp(engine: str) -> None:
    rule = rule_for(engine)
    assert rule.server is not None
    four = replace(rule, server=replace(rule.server, tp=4))
    assert batch_by_context(four).headings == ("Context", "TP 4")
    assert batch_by_format(four).headings[0] == "TP 4"


def test_options_that_go_with_no_such_tp_are_crossed_out() -> None:
    rule = rule_for("sglang")
    assert rule.server is not None
    shared = replace(rule, server=replace(rule.server, tp=4, dp_attention=4))
    with pytest.raises(SpecError):
        shared.costs(2)
    row = batch_by_context(shared, (2, 4)).rows[0]
    assert row[1] == "✗"
    assert row[2] != "✗"
    assert "dp_attention 4" in row.remark


def test_formats_are_compared_at_the_tp_that_is_asked_for() -> None:
    """Llama-3-8B on four H100 SXM, 8,192 tokens: 301 requests, not the 64 of one."""
    study = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"), tps=(4,))
    table = batch_by_format(Rule(study=study))
    assert (table.headings[0], table.rows[0][1]) == ("TP 4", "301")
    one = batch_by_format(Rule(study=replace(study, tps=(1, 4))))
    assert (one.headings[0], one.rows[0][1]) == ("One device", "64")
