r"""A report as LaTeX that compiles as it is with texlive-latex-base, -latex-extra and -pictures.

The file is pure ASCII; plots are pgfplots over the very points of the charts, so there are no image files.
Everything a table or figure holds that is not a formula goes through `latex_text.escape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

from calc.tables import term_value
from tui.chart import Axis, Chart, Level, Series
from tui.report.latex_text import escape
from tui.report.model import (
    Bullets,
    Derivation,
    Figure,
    Grid,
    Heading,
    Inline,
    Math,
    Paragraph,
    Report,
    Step,
    Text,
    Verbatim,
)

PREAMBLE = r"""\documentclass[a4paper,11pt]{article}
\usepackage[a4paper,margin=2.3cm]{geometry}
\usepackage{amsmath,array,booktabs,longtable,adjustbox,caption,pgfplots}
\pgfplotsset{compat=1.16}
\captionsetup{font=small,labelfont=bf,justification=raggedright,singlelinecheck=false,skip=4pt}
\newcolumntype{P}[1]{>{\raggedright\arraybackslash}p{#1}}
\setlength{\parindent}{0pt}\setlength{\parskip}{5pt plus 2pt}\setlength{\emergencystretch}{4em}
\renewcommand{\arraystretch}{1.12}"""

LINE_CHARACTERS = 90.0
"""Characters of a table line: the text width at \\small, in average characters."""
GAP_CHARACTERS = 2.6
"""What the space between two columns takes."""
LONG_ROWS = 32
"""Tables with more rows may break over pages."""
LONG_BRACKET = 70
"""Characters of maths from which brackets may be broken inside."""

_COLOURS = ("blue!70!black", "red!75!black", "teal", "orange!85!black", "violet", "brown")
_MARKS = {"●": "*", "○": "o", "×": "x", "+": "+", "◆": "diamond*"}


def to_latex(report: Report) -> str:
    """The whole document."""
    head = [
        PREAMBLE,
        rf"\title{{{escape(report.title)}}}",
        rf"\author{{{escape(report.subtitle)}}}",
        r"\date{}",
        r"\begin{document}",
        r"\maketitle",
    ]
    return "\n".join([*head, *(_block(block) for block in report.blocks), r"\end{document}", ""])


def _maths(latex: str) -> str:
    r"""Inline maths. Long formulas lose \left and \right, which would forbid a line to end inside."""
    if len(latex) > LONG_BRACKET:
        latex = latex.replace(r"\left(", "(").replace(r"\right)", ")")
    return f"${latex}$"


def _inline(inline: Inline) -> str:
    if isinstance(inline, Math):
        return _maths(inline.latex)
    lead, trail = inline[:1].isspace(), inline[-1:].isspace()
    words = escape(inline)
    return (" " * lead + words + " " * trail) if words else " " * (lead or trail)


def _text(text: Text) -> str:
    return "".join(map(_inline, text))


@singledispatch
def _block(block: object) -> str:
    raise TypeError(f"no LaTeX for {type(block).__name__}")


@_block.register
def _heading(block: Heading) -> str:
    return rf"\{'section' if block.level == 1 else 'subsection'}*{{{escape(block.text)}}}"


@_block.register
def _paragraph(block: Paragraph) -> str:
    return _text(block.text) + r"\par"


@_block.register
def _bullets(block: Bullets) -> str:
    name = "enumerate" if block.numbered else "itemize"
    items = "\n".join(rf"\item {_text(item)}" for item in block.items)
    return rf"\begin{{{name}}}" + "\n" + items + "\n" + rf"\end{{{name}}}"


@_block.register
def _verbatim(block: Verbatim) -> str:
    lines = [escape(line) or r"\strut" for line in block.text.splitlines()] or [r"\strut"]
    return r"\begin{quote}\small" + "\n" + "\\\\\n".join(lines) + "\n" + r"\end{quote}"


# Tables


@_block.register
def _grid(block: Grid) -> str:
    widths = [_natural(block, i) for i in range(len(block.columns))]
    spec = _column_spec(block, widths)
    lines = [_row(block.columns) + r"\midrule", *_body(block)]
    title = escape(block.title)
    if len(block.rows) > LONG_ROWS:
        return _long_table(spec, title, lines)
    table = "\n".join([rf"\begin{{tabular}}{{{spec}}}\toprule", *lines, r"\bottomrule\end{tabular}"])
    return (
        rf"\begin{{minipage}}{{\linewidth}}\small\captionof{{table}}{{{title}}}" + "\n"
        r"\begin{adjustbox}{max width=\linewidth}" + f"\n{table}\n" + r"\end{adjustbox}\end{minipage}\par\bigskip"
    )


def _long_table(spec: str, title: str, lines: Sequence[str]) -> str:
    head, *rows = lines
    return "\n".join(
        [
            rf"{{\footnotesize\begin{{longtable}}[l]{{{spec}}}\caption{{{title}}}\\\toprule",
            head + r"\endfirsthead\toprule",
            head + r"\endhead\bottomrule\endfoot",
            *rows,
            r"\end{longtable}}",
        ]
    )


def _body(block: Grid) -> list[str]:
    rows = []
    for i, row in enumerate(block.rows):
        rule = r"\midrule " if block.summed and i == len(block.rows) - 1 and i else ""
        rows.append(rule + _row(row, italic=i in block.struck))
    return rows


def _row(row: tuple[Text, ...], *, italic: bool = False) -> str:
    shown = [rf"\textit{{{_text(cell)}}}" if italic and cell else _text(cell) for cell in row]
    return " & ".join(shown) + r" \\"


def _length(text: Text) -> int:
    return sum(len(inline.text if isinstance(inline, Math) else inline) for inline in text)


def _natural(block: Grid, column: int) -> float:
    """Characters the widest cell of a column takes."""
    return float(max(_length(row[column]) for row in (block.columns, *block.rows)))


def _column_spec(block: Grid, widths: Sequence[float]) -> str:
    """Columns as wide as they are; where a line is not enough, the wide text columns share what is left."""
    room = LINE_CHARACTERS - GAP_CHARACTERS * len(widths)
    wide = [i for i, width in enumerate(widths) if width > 20 and i not in block.numeric]
    if sum(widths) <= room or not wide:
        return "@{}" + "".join("r" if i in block.numeric else "l" for i in range(len(widths))) + "@{}"
    left = max(room - sum(w for i, w in enumerate(widths) if i not in wide), 22.0 * len(wide))
    shares = _shares([widths[i] for i in wide], left)
    columns = ["r" if i in block.numeric else "l" for i in range(len(widths))]
    for i, share in zip(wide, shares, strict=True):
        columns[i] = rf"P{{{share / LINE_CHARACTERS:.3f}\linewidth}}"
    return "@{}" + "".join(columns) + "@{}"


def _shares(widths: Sequence[float], room: float) -> list[float]:
    """`room` divided: a column that needs less than an even part gets what it needs."""
    given = dict.fromkeys(range(len(widths)), 0.0)
    open_columns, left = list(given), room
    while open_columns:
        part = left / len(open_columns)
        small = [i for i in open_columns if widths[i] + 1 <= part]
        for i in small or open_columns:
            given[i] = widths[i] + 1 if small else part
        if not small:
            break
        left -= sum(given[i] for i in small)
        open_columns = [i for i in open_columns if i not in small]
    return list(given.values())


# Calculations


@_block.register
def _derivation(block: Derivation) -> str:
    steps = "\n".join(_step(step) for step in block.steps)
    return (
        r"{\small\begin{longtable}[l]{@{}P{0.24\linewidth}P{0.72\linewidth}@{}}"
        + rf"\caption{{{escape(block.title)}}}\\\toprule\endfirsthead\endhead\bottomrule\endfoot"
        + f"\n{steps}\n"
        + r"\end{longtable}}"
    )


def _step(step: Step) -> str:
    """Name; symbol = formula; = numbers put in = result."""
    term = step.term
    left = f"{step.symbol.latex} = " if step.symbol else ""
    first = _display(left + step.formula.latex)
    result = escape(term_value(term))
    same = term.latex_substituted in (term.latex, result.split(" ")[0].replace(",", "{,}"))
    numbers = "" if same else _display("{} = " + term.latex_substituted) + " "
    return rf"{escape(step.name)} & {first}\newline {numbers}${{}} = {{}}$ {result} \\[4pt]"


def _display(latex: str) -> str:
    return r"$\displaystyle " + _maths(latex)[1:]


# Plots


@_block.register
def _figure(block: Figure) -> str:
    chart = block.chart
    drawn = [series for series in chart.series if _drawable(chart, series)]
    if not drawn:
        return escape(f"{chart.title}: {chart.empty}") + r"\par"
    span = [x for series in drawn for x, _ in _drawable(chart, series)]
    plots = [_series(chart, series) for series in drawn]
    plots += [_level(level, low=min(span), high=max(span)) for level in chart.levels]
    return "\n".join(
        [
            r"\begin{minipage}{\linewidth}\centering\begin{tikzpicture}",
            rf"\begin{{axis}}[{_options(chart, sorted(set(span)))}]",
            *plots,
            r"\end{axis}\end{tikzpicture}",
            rf"\captionof{{figure}}{{{_text(block.caption)}}}\end{{minipage}}\par\bigskip",
        ]
    )


def _drawable(chart: Chart, series: Series) -> tuple[tuple[float, float], ...]:
    """The points of a series that its axes can show."""
    return tuple((x, y) for x, y in series.points if (x > 0 or not chart.x.log) and (y > 0 or not chart.y.log))


def _options(chart: Chart, xs: Sequence[float]) -> str:
    options = [
        r"width=0.94\linewidth,height=7.4cm,grid=both,major grid style={gray!35},minor grid style={gray!15}",
        rf"xlabel={{{escape(chart.x.title)}}},ylabel={{{escape(chart.y.title)}}}",
        r"tick label style={font=\footnotesize},label style={font=\small}",
        r"legend style={at={(0.5,-0.2)},anchor=north,font=\footnotesize,draw=none,legend columns=3}",
        r"legend cell align=left,scaled ticks=false,enlarge x limits=0.03",
    ]
    for name, axis in (("x", chart.x), ("y", chart.y)):
        options += [f"{name}mode=log"] if axis.log else []
        options += [f"{name}min=0"] if axis.from_zero else []
    if chart.x.log:
        options.append(_ticks(chart.x, xs))
    return ",\n  ".join(options)


def _ticks(axis: Axis, xs: Sequence[float]) -> str:
    """A tick at each point, or at every second, third, …, so that labels do not touch."""
    shown = xs[:: -(-len(xs) // 10)]
    labels = ",".join(f"{{{escape(axis.tick(x))}}}" for x in shown)
    return f"xtick={{{','.join(f'{x:.10g}' for x in shown)}}},xticklabels={{{labels}}},xminorticks=false"


def _series(chart: Chart, series: Series) -> str:
    points = " ".join(f"({x:.10g},{y:.8g})" for x, y in _drawable(chart, series))
    style = f"color={_COLOURS[series.colour % len(_COLOURS)]},mark={_MARKS.get(series.symbol, '*')},mark size=1.8pt"
    return rf"\addplot[{style},thick] coordinates {{{points}}};\addlegendentry{{{escape(series.label)}}}"


def _level(level: Level, *, low: float, high: float) -> str:
    points = f"({low:.10g},{level.value:.8g}) ({high:.10g},{level.value:.8g})"
    dash = "dotted" if level.label.startswith("ridge") else "dashed"
    return rf"\addplot[black,{dash},thick] coordinates {{{points}}};\addlegendentry{{{escape(level.label)}}}"
