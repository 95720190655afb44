"""How fast the state's load is served, if the device's times are known: the Estimate pane as a part of the report."""

from __future__ import annotations

from calc.commands.estimate_tables import answer_table, frontier_table
from tui.form.state import Analysis
from tui.report.model import Block, Heading, grid_of, paragraph, plain_items


def estimate_part(analysis: Analysis) -> list[Block]:
    """The sentence, the answer with its band, a row per batch size, and the assumptions."""
    if analysis.memory.study.device.ridge() is None:
        return []
    from tui.views.estimate import frontier_rows, headline, remarks

    answer = analysis.estimate
    if answer.row is None or answer.row.answer.decode is None:
        return [Heading(1, "Estimate"), paragraph(headline(answer))]
    rows = list(frontier_rows(answer))
    return [
        Heading(1, "Estimate"),
        paragraph(headline(answer)),
        grid_of(answer_table(answer.row), title="Times and rates, with the bound and the band"),
        *([grid_of(frontier_table(rows), title="By batch size or number of clients")] if rows else []),
        plain_items(remarks(answer)),
    ]
