r"""A report as LaTeX that compiles without changes with texlive-latex-base, -latex-extra and -pictures.

The file is pure ASCII; plots are pgfplots with the points of the charts, so there are no image files. Everything in a
table or figure that is not a formula goes through `latex_text.escape`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import singledispatch

from calc.commands.tables import term_value
from calc.explain.terms import Term
from tui.charts.chart import Axis, Chart, Level, Point, Series
from tui.report.latex_text import escape
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
    Step,
    Text,
    Verbatim,
)

PREAMBLE = r"""\documentclass[a4paper,11pt]{article}
\usepackage[a4paper,margin=2.3cm]{geometry}
\usepackage{amsmath,array,booktabs,longtable,adjustbox,caption,pgfplots}
\pgfplotsset{compat=1.16}
\captionsetup{font=small,labelfont=bf,justification=raggedright,singlelinecheck=false,skip=4pt}
\newcolumntype{P}[1]{>{\raggedright\arraybackslash\lineskiplimit3pt\lineskip5pt}p{#1}}
\setlength{\parindent}{0pt}\setlength{\parskip}{5pt plus 2pt}\setlength{\emergencystretch}{4em}
\renewcommand{\arraystretch}{1.12}\clubpenalty=10000\widowpenalty=10000
\renewcommand{\labelitemi}{$\bullet$}"""

LINE_CHARACTERS = 90.0
"""Characters per table line: the text width at \\small, in average characters."""
GAP_CHARACTERS = 2.6
"""Characters taken by the space between two columns."""
WIDE_CHARACTERS = 20.0
"""Text columns wider than this may be wrapped."""
HEADING_CHARACTERS = 9
"""Headings up to this length stay on one line, however narrow the cells below are."""
UNBROKEN_STEPS = 4
"""Calculations with more steps may break over pages."""
LONG_LINES = 34
"""Tables with more lines may break over pages."""
LONG_BRACKET = 70
"""Length of maths from which line breaks inside brackets are allowed."""

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
    r"""Inline maths. Long formulas lose \left and \right, which would prevent line breaks inside."""
    if len(latex) > LONG_BRACKET:
        latex = latex.replace(r"\left(", "(").replace(r"\right)", ")")
    return rf"$\displaystyle {latex}$" if r"\frac" in latex else f"${latex}$"


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
    return (
        rf"\begin{{{name}}}\setlength{{\itemsep}}{{0pt}}\setlength{{\parskip}}{{2pt}}"
        + f"\n{items}\n"
        + rf"\end{{{name}}}"
    )


@_block.register
def _verbatim(block: Verbatim) -> str:
    lines = [escape(line) or r"\strut" for line in block.text.splitlines()] or [r"\strut"]
    return r"\begin{quote}\small" + "\n" + "\\\\\n".join(lines) + "\n" + r"\end{quote}"


@_block.register
def _code(block: Code) -> str:
    plain = block.text.encode("ascii", "replace").decode()
    return r"{\scriptsize\begin{verbatim}" + f"\n{plain}\n" + r"\end{verbatim}}"


# Tables


@_block.register
def _grid(block: Grid) -> str:
    wrapped = sum(_widths(block, wrapped=False)) > _room(block.columns)
    spec = _column_spec(block, _widths(block, wrapped=wrapped))
    lines = [_header(block, wrapped=wrapped) + r"\midrule", *_body(block)]
    title = escape(block.title)
    if _lines(block) > LONG_LINES:
        return _long_table(spec, title, lines)
    table = "\n".join([rf"\begin{{tabular}}{{{spec}}}\toprule", *lines, r"\bottomrule\end{tabular}"])
    fitted = r"\begin{adjustbox}{max width=\linewidth}" + f"\n{table}\n" + r"\end{adjustbox}"
    return _boxed(rf"\small\captionof{{table}}{{{title}}}" + "\n" + fitted)


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
    shown = [rf"\textit{{{_cell(cell)}}}" if italic and cell else _cell(cell) for cell in row]
    return " & ".join(shown) + r" \\"


def _cell(text: Text) -> str:
    """A cell; one with a fraction keeps its distance from the rows above and below."""
    shown = _text(text)
    return r"\rule[-9pt]{0pt}{25pt}" + shown if r"\frac" in shown else shown


def _header(block: Grid, *, wrapped: bool) -> str:
    """The headings; `wrapped` breaks those wider than the cells of their columns."""
    return " & ".join(_column_heading(block, i, wrapped=wrapped) for i in range(len(block.columns))) + r" \\"


def _column_heading(block: Grid, column: int, *, wrapped: bool) -> str:
    lines = _heading_lines(block, column)
    if not wrapped or len(lines) == 1:
        return _text(block.columns[column])
    side = "r" if column in block.numeric else "l"
    return rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r"\\".join(map(escape, lines)) + r"\end{tabular}"


def _heading_lines(block: Grid, column: int) -> list[str]:
    """A heading broken at spaces so that it is little wider than the cells below; formulas are not broken."""
    heading = block.columns[column]
    if any(isinstance(piece, Math) for piece in heading):
        return ["x" * int(_length(heading))]
    body = max((_length(row[column]) for row in block.rows), default=0)
    words = "".join(piece for piece in heading if isinstance(piece, str))
    return textwrap.wrap(words, int(max(body, HEADING_CHARACTERS)), break_long_words=False) or [""]


def _length(text: Text) -> float:
    """Approximate characters of a cell."""
    return sum(_math_length(inline) if isinstance(inline, Math) else len(inline) for inline in text)


def _math_length(math: Math) -> float:
    """A fraction is as wide as its wider part; maths is set a little tighter than its text."""
    parts = math.text.split(" / ") if r"\frac" in math.latex else [math.text]
    return 0.9 * max(map(len, parts))


def _widths(block: Grid, *, wrapped: bool) -> list[float]:
    """Characters per column, with its heading on one line or broken."""
    widths = []
    for i, heading in enumerate(block.columns):
        lines = [float(len(line)) for line in _heading_lines(block, i)] if wrapped else [_length(heading)]
        widths.append(max([*lines, *(_length(row[i]) for row in block.rows)]))
    return widths


def _column_spec(block: Grid, widths: Sequence[float]) -> str:
    """Natural column widths; if a line is too short, the wide text columns share what is left."""
    room = _room(widths)
    columns = ["r" if i in block.numeric else "l" for i in range(len(widths))]
    wide = [i for i, width in enumerate(widths) if width > WIDE_CHARACTERS and i not in block.numeric]
    wide = [i for i in wide if not _has_maths(block, i)]
    if sum(widths) > room and wide:
        left = max(room - sum(w for i, w in enumerate(widths) if i not in wide), WIDE_CHARACTERS * len(wide))
        for i, share in zip(wide, _shares([widths[i] for i in wide], left), strict=True):
            columns[i] = rf"P{{{share / LINE_CHARACTERS:.3f}\linewidth}}"
    return "@{}" + "".join(columns) + "@{}"


def _room(widths: Sequence[object]) -> float:
    return LINE_CHARACTERS - GAP_CHARACTERS * len(widths)


def _has_maths(block: Grid, column: int) -> bool:
    return any(isinstance(piece, Math) for row in block.rows for piece in row[column])


def _lines(block: Grid) -> float:
    """Approximate lines of the body: every cell wider than half a line is wrapped."""
    return sum(max(1.0, *(_length(cell) / (LINE_CHARACTERS / 2) for cell in row)) for row in block.rows)


def _shares(widths: Sequence[float], room: float) -> list[float]:
    """Divides `room`: a column that needs less than an even share gets what it needs."""
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
    title, spec = escape(block.title), r"@{}P{0.23\linewidth}P{0.74\linewidth}@{}"
    if len(block.steps) > UNBROKEN_STEPS:
        return (
            rf"{{\small\begin{{longtable}}[l]{{{spec}}}\caption{{{title}}}\\\toprule\endfirsthead\endhead"
            rf"\bottomrule\endfoot" + f"\n{steps}\n" + r"\end{longtable}}"
        )
    table = rf"\begin{{tabular}}{{{spec}}}\toprule" + f"\n{steps}\n" + r"\bottomrule\end{tabular}"
    return _boxed(rf"\small\captionof{{table}}{{{title}}}" + "\n" + table)


def _boxed(inside: str) -> str:
    """Something that stays on one page."""
    return rf"\smallskip\begin{{minipage}}{{\linewidth}}{inside}\end{{minipage}}\par\bigskip"


def _step(step: Step) -> str:
    """Name; symbol = formula; = substituted numbers = result."""
    term = step.term
    left = f"{step.symbol.latex} = " if step.symbol else ""
    first = _maths(left + step.formula.latex)
    result = escape(term_value(term))
    same = term.latex_substituted in (term.latex, result.split(" ")[0].replace(",", "{,}"))
    numbers = "" if same else _numbers(term) + " "
    return rf"{escape(step.name)} & {first}\newline {numbers}${{}} = {{}}$ {result} \\\noalign{{\smallskip}}"


def _numbers(term: Term) -> str:
    """The formula with its numbers; a fraction cannot be broken, so it is made smaller if it is too wide."""
    shown = _maths("{} = " + term.latex_substituted)
    if r"\frac" in shown and max(map(len, term.substituted.split(" / "))) > LONG_BRACKET:
        return rf"\adjustbox{{max width=\linewidth}}{{{shown}}}"
    return shown


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
    picture = "\n".join(
        [
            r"\centering\begin{tikzpicture}",
            rf"\begin{{axis}}[{_options(chart, sorted(set(span)))}]",
            *plots,
            r"\end{axis}\end{tikzpicture}",
        ]
    )
    return _boxed(picture + "\n" + rf"\captionof{{figure}}{{{_text(block.caption)}}}")


def _drawable(chart: Chart, series: Series) -> tuple[tuple[float, float], ...]:
    """The points of a series within its axes."""
    return tuple((x, y) for x, y in series.points if (x > 0 or not chart.x.log) and (y > 0 or not chart.y.log))


def _options(chart: Chart, xs: Sequence[float]) -> str:
    options = [
        r"width=0.94\linewidth,height=6.4cm,grid=both,major grid style={gray!35},minor grid style={gray!15}",
        rf"xlabel={{{escape(chart.x.title)}}},ylabel={{{escape(chart.y.title)}}}",
        r"tick label style={font=\footnotesize},label style={font=\small}",
        r"legend style={at={(0.5,-0.2)},anchor=north,font=\footnotesize,draw=none,legend columns=3,"
        r"/tikz/column 2/.style={column sep=8pt},/tikz/column 4/.style={column sep=8pt}}",
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
    drawn = set(_drawable(chart, series))
    spread = series.spread or ((None, None),) * len(series.points)
    points = " ".join(_point(at, *bars) for at, bars in zip(series.points, spread, strict=True) if at in drawn)
    mark = "none" if series.symbol == "·" else _MARKS.get(series.symbol, "*")
    style = f"color={_COLOURS[series.colour % len(_COLOURS)]},mark={mark},mark size=1.8pt,thick"
    bars = ",error bars/.cd,y dir=both,y explicit" if series.spread else ""
    return rf"\addplot[{style}{bars}] coordinates {{{points}}};\addlegendentry{{{escape(series.label)}}}"


def _point(at: Point, low: float | None, high: float | None) -> str:
    """A coordinate, with its distance to the greatest and the least value if they are known."""
    x, y = at
    bars = "" if low is None or high is None else f" += (0,{high - y:.8g}) -= (0,{y - low:.8g})"
    return f"({x:.10g},{y:.8g}){bars}"


def _level(level: Level, *, low: float, high: float) -> str:
    points = f"({low:.10g},{level.value:.8g}) ({high:.10g},{level.value:.8g})"
    dash = "dotted" if level.label.startswith("ridge") else "dashed"
    return rf"\addplot[black,{dash},thick] coordinates {{{points}}};\addlegendentry{{{escape(level.label)}}}"
