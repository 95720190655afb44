"""A report as GitHub Markdown: tables, formulas as code, plots as fenced text."""

from __future__ import annotations

from functools import singledispatch

from tui.report.model import (
    Bullets,
    Code,
    Derivation,
    Figure,
    Grid,
    Heading,
    Inline,
    Math,
    Paragraph,
    Report,
    Text,
    Verbatim,
)

PLOT_WIDTH, PLOT_HEIGHT = 84, 22
_SPECIAL = frozenset("\\`*_[]<>|#~&")


def to_markdown(report: Report) -> str:
    """The whole document, with an empty line between blocks and a newline at the end."""
    head = f"# {_escape(report.title)}\n\n{_escape(report.subtitle)}"
    return "\n\n".join([head, *(_block(block) for block in report.blocks)]) + "\n"


def _escape(text: str) -> str:
    """`text` on one line, without anything that Markdown would read as markup."""
    return "".join("\\" + c if c in _SPECIAL else c for c in " ".join(text.split()))


def _inline(inline: Inline) -> str:
    return f"`{inline.text}`" if isinstance(inline, Math) else _escaped_piece(inline)


def _escaped_piece(text: str) -> str:
    """A piece of running text; spaces at its ends separate it from its neighbours."""
    if not text.strip():
        return " " if text else ""
    return " " * text[:1].isspace() + _escape(text) + " " * text[-1:].isspace()


def _text(text: Text) -> str:
    return "".join(map(_inline, text))


@singledispatch
def _block(block: object) -> str:
    raise TypeError(f"no Markdown for {type(block).__name__}")


@_block.register
def _heading(block: Heading) -> str:
    return f"{'#' * (block.level + 1)} {_escape(block.text)}"


@_block.register
def _paragraph(block: Paragraph) -> str:
    return _text(block.text)


@_block.register
def _bullets(block: Bullets) -> str:
    return "\n".join(
        f"{f'{number}.' if block.numbered else '-'} {_text(item)}" for number, item in enumerate(block.items, start=1)
    )


@_block.register
def _grid(block: Grid) -> str:
    def cell(text: Text, *, row: int) -> str:
        shown = _text(text)
        if not shown:
            return shown
        if row in block.struck:
            return f"~~{shown}~~"
        return f"**{shown}**" if block.summed and row == len(block.rows) - 1 else shown

    rows = [_row([cell(text, row=i) for text in row]) for i, row in enumerate(block.rows)]
    rule = _row(["---:" if i in block.numeric else "---" for i in range(len(block.columns))])
    return "\n".join([f"**{_escape(block.title)}**", "", _row([_text(c) for c in block.columns]), rule, *rows])


def _row(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


@_block.register
def _derivation(block: Derivation) -> str:
    from calc.commands.tables import term_value

    head = [
        f"**{_escape(block.title)}**",
        "",
        _row(["Step", "Formula", "Substituted numbers", "Result"]),
        _row(["---"] * 4),
    ]
    for step in block.steps:
        left = f"{step.symbol.text} = " if step.symbol else ""
        formula, numbers = f"`{left}{step.formula.text}`", f"`{step.term.substituted}`"
        head.append(_row([_escape(step.name), formula, numbers, _escape(term_value(step.term))]))
    return "\n".join(head)


@_block.register
def _figure(block: Figure) -> str:
    from tui.charts.chart_text import draw

    drawn = draw(block.chart, width=PLOT_WIDTH, height=PLOT_HEIGHT)
    return f"{fenced(drawn)}\n\n{_text(block.caption)}"


@_block.register
def _verbatim(block: Verbatim) -> str:
    return fenced(block.text)


@_block.register
def _code(block: Code) -> str:
    return fenced(block.text, language="python")


def fenced(text: str, language: str = "text") -> str:
    """`text` in a code fence longer than any run of backticks in it."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    body = "\n".join(line.rstrip() for line in text.splitlines())
    return f"{fence}{language}\n{body}\n{fence}"
