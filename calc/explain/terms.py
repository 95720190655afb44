"""Formulas that display themselves.

A formula is one plain function over plain operators. Called with ints it gives the exact value, with arrays
a sweep, and with `Expr` symbols the very expression that was computed. `derive` does the first and the last
and keeps both in a `Term`, so what is shown cannot differ from what was calculated.

A tracer of some 150 lines is used instead of sympy, because every ``memory --json`` prints its steps and importing
sympy alone takes longer than the whole command may take. The tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from calc.units import format_duration_s, format_rate, whole

Number = int | float | Fraction


@dataclass(frozen=True, slots=True)
class Symbol:
    """How an argument name is written in text and in LaTeX, and what it means."""

    text: str
    latex: str
    meaning: str


SYMBOLS: dict[str, Symbol] = {
    "n_layers": Symbol("L", "L", "layers"),
    "n_full_layers": Symbol("L_full", r"L_\mathrm{full}", "layers that cache every token"),
    "n_sliding_layers": Symbol("L_win", r"L_\mathrm{win}", "layers that cache a window"),
    "window": Symbol("w", "w", "window of the sliding layers, tokens"),
    "n_heads": Symbol("n_q", r"n_\mathrm{q}", "query heads"),
    "n_kv_heads": Symbol("n_kv", r"n_\mathrm{kv}", "key/value heads"),
    "head_dim": Symbol("d", "d", "head dimension"),
    "hidden_size": Symbol("h1", "h_1", "embedding dimension"),
    "intermediate_size": Symbol("h2", "h_2", "inner dimension"),
    "vocab_size": Symbol("V", "V", "vocabulary"),
    "n_learned_positions": Symbol("T_max", r"T_\mathrm{max}", "learned positions"),
    "embedding": Symbol("E", "E", "embedding parameters"),
    "positions": Symbol("E_pos", r"E_\mathrm{pos}", "position parameters"),
    "attention": Symbol("A", "A", "attention parameters per layer"),
    "feed_forward": Symbol("M", "M", "feed-forward parameters per layer"),
    "layer_norms": Symbol("R", "R", "norm parameters per layer"),
    "final_norm": Symbol("R_f", r"R_\mathrm{f}", "parameters of the final norm"),
    "head": Symbol("H", "H", "head parameters"),
    "parameters": Symbol("P", "P", "parameters"),
    "weight_element_bytes": Symbol("b_w", r"b_\mathrm{w}", "bytes per weight"),
    "kv_element_bytes": Symbol("b", "b", "bytes per cache element"),
    "element_bytes": Symbol("b", "b", "bytes per element"),
    "key_elements": Symbol("e_k", r"e_\mathrm{k}", "elements of K per token"),
    "value_elements": Symbol("e_v", r"e_\mathrm{v}", "elements of V per token"),
    "key_element_bytes": Symbol("b_k", r"b_\mathrm{k}", "bytes per element of K"),
    "value_element_bytes": Symbol("b_v", r"b_\mathrm{v}", "bytes per element of V"),
    "kv_token_bytes": Symbol("kv", r"\mathit{kv}", "cache bytes per token"),
    "kv_request_bytes": Symbol("KV", r"\mathit{KV}", "cache bytes per request"),
    "context": Symbol("T", "T", "tokens of context"),
    "memory_bytes": Symbol("mem", r"\mathit{mem}", "device memory, bytes"),
    "weight_bytes": Symbol("W", "W", "weight bytes"),
    "tp": Symbol("X", "X", "tensor-parallel GPUs"),
    "n_keys": Symbol("N", "N", "tokens attended to"),
    "n_queries": Symbol("N_q", r"N_\mathrm{q}", "query tokens"),
    "group_size": Symbol("g", "g", "query heads per KV head"),
    "batch": Symbol("B", "B", "sequences in the batch"),
    "split_params": Symbol("P_s", r"P_\mathrm{s}", "parameters that are divided"),
    "kv_head_params": Symbol("P_kv", r"P_\mathrm{kv}", "K and V projection parameters per KV head, all layers"),
    "whole_params": Symbol("P_r", r"P_\mathrm{r}", "parameters that every rank holds"),
    # Models whose layers are not all alike (the parts of calc.model).
    "value_dim": Symbol("d_v", r"d_\mathrm{v}", "value head dimension"),
    "extra_params": Symbol("x", "x", "smaller parts: gates, sinks, inner norms"),
    "kv_lora_rank": Symbol("r_kv", r"r_\mathrm{kv}", "rank of the KV latent"),
    "q_lora_rank": Symbol("r_q", r"r_\mathrm{q}", "rank of the query latent"),
    "nope_dim": Symbol("d_n", r"d_\mathrm{n}", "head dimension without rotation"),
    "rope_dim": Symbol("d_r", r"d_\mathrm{r}", "head dimension with rotation"),
    "inner": Symbol("D", "D", "inner width of the recurrence"),
    "state": Symbol("s", "s", "state dimension"),
    "kernel": Symbol("c", "c", "convolution length"),
    "gate_rank": Symbol("r_g", r"r_\mathrm{g}", "rank of the gates"),
    "dt_rank": Symbol("r_t", r"r_\mathrm{t}", "rank of the time step"),
    "groups": Symbol("n_g", r"n_\mathrm{g}", "groups of the recurrence"),
    "key_heads": Symbol("n_kl", r"n_\mathrm{kl}", "key heads of the recurrence"),
    "key_dim": Symbol("d_k", r"d_\mathrm{k}", "key dimension of the recurrence"),
    "value_heads": Symbol("n_vl", r"n_\mathrm{vl}", "value heads of the recurrence"),
    "params": Symbol("p", "p", "parameters of the part"),
    "expert_size": Symbol("h_e", r"h_\mathrm{e}", "inner dimension of an expert"),
    "n_experts": Symbol("n_e", r"n_\mathrm{e}", "routed experts"),
    "expert": Symbol("P_e", r"P_\mathrm{e}", "parameters of an expert"),
    "group_layers": Symbol("L_i", "L_i", "layers of this kind"),
    "mixer": Symbol("A_i", "A_i", "attention or recurrence parameters per layer"),
    "routed": Symbol("M_e", r"M_\mathrm{e}", "routed expert parameters per layer"),
    "router": Symbol("R_e", r"R_\mathrm{e}", "router parameters per layer"),
    "stack": Symbol("S", "S", "parameters of all layers"),
    "other": Symbol("O", "O", "parameters of other parts"),
    "idle": Symbol("P_i", r"P_\mathrm{i}", "parameters of the experts that a token does not use"),
    "full_elements": Symbol("e_full", r"e_\mathrm{full}", "cache elements per token of layers that cache all tokens"),
    "latent_elements": Symbol("e_lat", r"e_\mathrm{lat}", "cache elements per token of latent layers"),
    "window_elements": Symbol("e_win", r"e_\mathrm{win}", "cache elements per token of layers that cache a window"),
    "state_elements": Symbol("e_s", r"e_\mathrm{s}", "state elements per sequence"),
    "o_groups": Symbol("g_o", r"g_\mathrm{o}", "groups of the output projection"),
    "o_lora_rank": Symbol("r_o", r"r_\mathrm{o}", "rank of the output projection"),
    "index_heads": Symbol("n_I", r"n_\mathrm{I}", "heads of the indexer"),
    "index_dim": Symbol("d_I", r"d_\mathrm{I}", "head dimension of the indexer"),
    "ratio": Symbol("m_c", r"m_\mathrm{c}", "tokens per compressed row"),
    "width": Symbol("w_c", r"w_\mathrm{c}", "values per token that a row is made from"),
    "fp32_elements": Symbol("e_32", r"e_\mathrm{32}", "elements per sequence kept in fp32"),
    "state_element_bytes": Symbol("b_s", r"b_\mathrm{s}", "bytes per state element"),
    "state_bytes": Symbol("St", r"\mathit{St}", "state bytes per sequence"),
    "split_weight_bytes": Symbol("W_s", r"W_\mathrm{s}", "stored bytes of weights that are divided"),
    "kv_weight_bytes": Symbol("W_kv", r"W_\mathrm{kv}", "stored bytes of the K and V projections"),
    "whole_weight_bytes": Symbol("W_r", r"W_\mathrm{r}", "stored bytes of weights that every rank holds"),
    "split_element_bytes": Symbol("b_ws", r"b_{\mathrm{w},\mathrm{s}}", "stored bytes per divided parameter"),
    "kv_weight_element_bytes": Symbol("b_wkv", r"b_{\mathrm{w},\mathrm{kv}}", "stored bytes per K or V weight"),
    "whole_element_bytes": Symbol("b_wr", r"b_{\mathrm{w},\mathrm{r}}", "stored bytes per parameter on every rank"),
    "rank_kv_share": Symbol("s_kv", r"s_\mathrm{kv}", "share of the K and V projections on a rank"),
    "rank_kv_params": Symbol("P_kvX", r"P_{\mathrm{kv},X}", "K and V projection parameters of a rank"),
    "utilization": Symbol("u", "u", "share of the device a server may use"),
    "activation_bytes": Symbol("A_ct", r"A_\mathrm{ct}", "activation bytes"),
    "non_torch_bytes": Symbol("N_t", r"N_\mathrm{t}", "bytes outside the framework"),
    "cuda_graph_bytes": Symbol("G", "G", "CUDA graph bytes"),
    "pool_bytes": Symbol("pool", r"\mathit{pool}", "bytes of the cache pool"),
    "block_bytes": Symbol("blk", r"\mathit{blk}", "bytes of a block of the pool"),
    "blocks": Symbol("n_blk", r"n_\mathrm{blk}", "blocks of the pool"),
    "request_blocks": Symbol("r_blk", r"r_\mathrm{blk}", "blocks per request"),
    "free_bytes": Symbol("free", r"\mathit{free}", "free bytes before the weights"),
    "multiple": Symbol("m", "m", "vocabulary size is padded to a multiple of this"),
    "attention_params": Symbol("P_a", r"P_\mathrm{a}", "attention parameters that are divided"),
    "attention_tp": Symbol("X_a", r"X_\mathrm{a}", "GPUs that share the attention of a request"),
    "rank_experts": Symbol("P_eX", r"P_{\mathrm{e},X}", "routed expert parameters of a rank"),
    "ep": Symbol("X_e", r"X_\mathrm{e}", "expert-parallel GPUs"),
    "dcp": Symbol("X_c", r"X_\mathrm{c}", "GPUs that share the tokens of a request"),
    "rank_elements": Symbol("e_X", "e_X", "cache elements per request on a rank"),
    # Operators of a pass (calc.step).
    "tokens": Symbol("t", "t", "tokens of the pass"),
    "matrix_params": Symbol("P_m", r"P_\mathrm{m}", "weights of a matrix"),
    "elements": Symbol("e_t", r"e_\mathrm{t}", "elements per token"),
    "top_k": Symbol("k", "k", "experts per token"),
    "idle_share": Symbol("i", "i", "share of the experts that a token does not use"),
    "token_elements": Symbol("e", "e", "elements of K and V per token and KV head"),
    "softmax_flops": Symbol("f", "f", "FLOPs of the softmax per score"),
    "chosen": Symbol("n_c", r"n_\mathrm{c}", "tokens that an indexer selects"),
    "index_element_bytes": Symbol("b_x", r"b_\mathrm{x}", "bytes per element of an indexer's key"),
    "state_flops": Symbol("f_s", r"f_\mathrm{s}", "FLOPs of a recurrence per token"),
    "element_flops": Symbol("f_e", r"f_\mathrm{e}", "FLOPs per element"),
    "rotated": Symbol("e_r", r"e_\mathrm{r}", "rotated elements per token"),
    "cached": Symbol("e_c", r"e_\mathrm{c}", "elements per token written to the cache"),
    # The time of an operator (calc.speed).
    "count": Symbol("n", "n", "runs of the operator in the pass"),
    "run_s": Symbol("t_1", "t_1", "seconds per run"),
    "start_s": Symbol("t_0", "t_0", "seconds that even an empty run takes"),
    "run_flops": Symbol("F", "F", "FLOPs per run"),
    "run_bytes": Symbol("Q", "Q", "bytes moved per run"),
    "filling": Symbol("c_f", r"c_\mathrm{f}", "rows of whole tiles per needed row"),
    "fullest_flops": Symbol("c_g", r"c_\mathrm{g}", "FLOPs of the busiest rank over those of the mean rank"),
    "fullest_bytes": Symbol("c_h", r"c_\mathrm{h}", "bytes read by the busiest rank over those of the mean rank"),
    "peak_flops_per_s": Symbol("π", r"\pi", "peak of the device, FLOP/s"),
    "peak_share": Symbol("u_π", r"u_\pi", "share of the peak that this operator reaches"),
    "flops_per_s": Symbol("π_r", r"\pi_\mathrm{r}", "achieved FLOP/s"),
    "bandwidth_bytes_per_s": Symbol("β", r"\beta", "bandwidth of the device, B/s"),
    "bandwidth_share": Symbol("u_β", r"u_\beta", "share of the bandwidth that this operator reaches"),
    "bytes_per_s": Symbol("β_r", r"\beta_\mathrm{r}", "achieved B/s"),
    "link_bytes": Symbol("Q_l", r"Q_\mathrm{l}", "bytes sent to other GPUs per run"),
    "copies": Symbol("c_x", r"c_\mathrm{x}", "ranks that a token is sent to"),
    "step_s": Symbol("t_s", "t_s", "seconds per decode step"),
    "host_s": Symbol("t_h", "t_h", "host seconds per step"),
    "step_tokens": Symbol("k_t", r"k_\mathrm{t}", "expected tokens per step"),
    "between_s": Symbol("t_b", r"t_\mathrm{b}", "seconds of other requests' prompts, per token"),
    "others": Symbol("C_o", r"C_\mathrm{o}", "requests whose prompts run in between"),
    "prompt_s": Symbol("t_p", r"t_\mathrm{p}", "seconds per additional prompt"),
    "new_tokens": Symbol("N_new", r"N_\mathrm{new}", "new tokens per request"),
    "token_s": Symbol("TPOT", r"\mathit{TPOT}", "seconds per token"),
    "ring_share": Symbol("c_r", r"c_\mathrm{r}", "times that a ring all-reduce sends a vector: 2 (X - 1) / X"),
}


@dataclass(frozen=True, slots=True)
class Expr:
    """An expression tree. `op` is "sym", "num" or an operator; `args` its name, number or operands."""

    op: str
    args: tuple[Any, ...]

    def __add__(self, other: Any) -> Expr:
        return self if _is(other, 0) else Expr("+", (self, as_expr(other)))

    def __radd__(self, other: Any) -> Expr:
        return self if _is(other, 0) else Expr("+", (as_expr(other), self))

    def __sub__(self, other: Any) -> Expr:
        return self if _is(other, 0) else Expr("-", (self, as_expr(other)))

    def __rsub__(self, other: Any) -> Expr:
        return Expr("-", (as_expr(other), self))

    def __mul__(self, other: Any) -> Any:
        return 0 if _is(other, 0) else self if _is(other, 1) else Expr("*", (self, as_expr(other)))

    def __rmul__(self, other: Any) -> Any:
        return 0 if _is(other, 0) else self if _is(other, 1) else Expr("*", (as_expr(other), self))

    def __truediv__(self, other: Any) -> Expr:
        return self if _is(other, 1) else Expr("/", (self, as_expr(other)))

    def __rtruediv__(self, other: Any) -> Expr:
        return Expr("/", (as_expr(other), self))

    def __floordiv__(self, other: Any) -> Expr:
        return Expr("//", (self, as_expr(other)))

    def __pow__(self, power: Any) -> Expr:
        return Expr("**", (self, as_expr(power)))

    def __rpow__(self, base: Any) -> Expr:
        return Expr("**", (as_expr(base), self))

    def clip(self, *, max: Any = None, min: Any = None) -> Expr:  # noqa: A002 - numpy's own names
        """``minimum`` and ``maximum`` as expressions (numpy arrays have the same method)."""
        low = self if max is None else Expr("min", (self, as_expr(max)))
        return low if min is None else Expr("max", (low, as_expr(min)))


def _is(value: Any, number: int) -> bool:
    return isinstance(value, int | float | Fraction) and value == number


def as_expr(value: Any) -> Expr:
    """`value` itself when it is an expression, else a number node."""
    return value if isinstance(value, Expr) else Expr("num", (value,))


def symbol(name: str) -> Expr:
    """The symbol of an argument name in SYMBOLS."""
    return Expr("sym", (name,))


def minimum(a: Any, b: Any) -> Any:
    """The smaller: of numbers, of arrays element by element, or as an expression."""
    if hasattr(a, "clip"):
        return a.clip(max=b)
    return b.clip(max=a) if hasattr(b, "clip") else min(a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger: of numbers, of arrays element by element, or as an expression."""
    if hasattr(a, "clip"):
        return a.clip(min=b)
    return b.clip(min=a) if hasattr(b, "clip") else max(a, b)


def half(a: Any) -> Any:
    """Half of an even number: of a number, of an array element by element, or as an expression."""
    return a * Fraction(1, 2) if isinstance(a, Expr) else a // 2


_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "**": 3}
_TEXT_SIGN = {"+": "+", "-": "−", "*": "·", "/": "/"}
_LATEX_SIGN = {"+": "+", "-": "-", "*": r"\cdot"}
SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


LONG_DENOMINATOR, LEAST_SHORTENED = 10_000, Fraction(1, 100)
"""From this size on, a fraction is shown by its first digits: an average over a checkpoint's tensors."""


def number_text(value: Number) -> str:
    """A number as a person writes it: grouped digits, decimals if they are finite, else a fraction such as 1/3.

    >>> number_text(Fraction(17, 32)), number_text(Fraction(1, 3)), number_text(Fraction(9_057_967, 14_908_263))
    ('0.53125', '1/3', '0.607580…')
    """
    if isinstance(value, Fraction) and value.denominator != 1:
        decimal = f"{float(value):,.12g}"
        exact = "e" not in decimal and Fraction(decimal.replace(",", "")) == value
        if exact:
            return decimal
        if value.denominator < LONG_DENOMINATOR or abs(value) < LEAST_SHORTENED:
            return f"{value.numerator:,}/{value.denominator:,}"
        return f"{float(int(value * 10**6)) / 10**6:,.6f}…"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.6g}" if abs(value) < 1000 else f"{value:,.2f}"
    return f"{int(value):,}"


def quantity_text(name: str, value: Number) -> str:
    """A number substituted for a symbol: a time or a rate with the unit in its name, any other number as it is.

    >>> quantity_text("start_s", 1.3e-5), quantity_text("peak_flops_per_s", 989e12), quantity_text("batch", 4096)
    ('13.0 µs', '989.0 TFLOP/s', '4,096')
    """
    if name.endswith("flops_per_s"):
        return format_rate(value, "FLOP/s")
    if name.endswith("bytes_per_s"):
        return format_rate(value)
    return format_duration_s(value) if name.endswith("_s") else number_text(value)


Leaf = Callable[[Expr], str]


def _text_leaf(node: Expr) -> str:
    return SYMBOLS[node.args[0]].text if node.op == "sym" else number_text(node.args[0])


def _latex_leaf(node: Expr) -> str:
    if node.op == "sym":
        return SYMBOLS[node.args[0]].latex
    return number_text(node.args[0]).replace(",", "{,}")


def _operands(node: Expr, leaf: Leaf, render: Callable[[Expr, Leaf], str], brackets: tuple[str, str]) -> list[str]:
    """Both operands of a binary node, in brackets if precedence requires them."""
    out = []
    for i, arg in enumerate(node.args):
        shown = render(arg, leaf)
        out.append(brackets[0] + shown + brackets[1] if _needs_brackets(node, arg, i, shown) else shown)
    return out


def _needs_brackets(node: Expr, arg: Expr, position: int, shown: str) -> bool:
    """Whether operand `arg`, written as `shown`, needs brackets."""
    if arg.op in ("sym", "num"):  # 17/32 is a division to the reader, -3 a subtraction
        divides = "/" in shown and (node.op == "**" or (node.op == "/" and position == 1))
        return divides or (shown.startswith("-") and (node.op == "**" or position == 1))
    mine, theirs = _PRECEDENCE[node.op], _PRECEDENCE.get(arg.op, 9)
    return theirs < mine or (theirs == mine and (node.op == "**" or (position == 1 and node.op in "-/")))


def to_text(node: Expr, leaf: Leaf = _text_leaf) -> str:
    """The expression in one line of text: ``2 · L · n_kv · d · b``."""
    if node.op in ("sym", "num"):
        return leaf(node)
    if node.op in ("min", "max"):
        return f"{node.op}({to_text(node.args[0], leaf)}, {to_text(node.args[1], leaf)})"
    if node.op == "//":
        a, b = _operands(Expr("/", node.args), leaf, to_text, ("(", ")"))
        return f"⌊{a} / {b}⌋"
    a, b = _operands(node, leaf, to_text, ("(", ")"))
    if node.op == "**":
        return a + b.translate(SUPERSCRIPT) if b.isdecimal() else f"{a}^{b}"
    return f"{a} {_TEXT_SIGN[node.op]} {b}"


def to_latex(node: Expr, leaf: Leaf = _latex_leaf) -> str:
    r"""The expression in LaTeX maths: ``2 \cdot L \cdot n_\mathrm{kv}``."""
    if node.op in ("sym", "num"):
        return leaf(node)
    if node.op in ("min", "max"):
        return rf"\{node.op}({to_latex(node.args[0], leaf)}, {to_latex(node.args[1], leaf)})"
    if node.op in ("/", "//"):
        fraction = rf"\frac{{{to_latex(node.args[0], leaf)}}}{{{to_latex(node.args[1], leaf)}}}"
        return fraction if node.op == "/" else rf"\left\lfloor {fraction} \right\rfloor"
    a, b = _operands(node, leaf, to_latex, (r"\left(", r"\right)"))
    if node.op == "**":
        return f"{a}^{{{b}}}"
    return f"{a} {_LATEX_SIGN[node.op]} {b}"


def _latex_quantity(text: str) -> str:
    """A number and, after a narrow space, its unit in upright type."""
    number, _, unit = text.replace(",", "{,}").replace("µ", "\\mu ").partition(" ")
    return rf"{number}\,\mathrm{{{unit}}}" if unit else number


def substituted(node: Expr, values: Mapping[str, Number], *, latex: bool = False) -> str:
    """The expression with `values` substituted for its symbols, not yet evaluated."""

    def leaf(at: Expr) -> str:
        number = quantity_text(at.args[0], values[at.args[0]]) if at.op == "sym" else number_text(at.args[0])
        return _latex_quantity(number) if latex else number

    return to_latex(node, leaf) if latex else to_text(node, leaf)


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: Fraction(a) / Fraction(b),
    "//": lambda a, b: a // b,
    "**": lambda a, b: a**b,
    "min": min,
    "max": max,
}


def evaluate(node: Expr, values: Mapping[str, Number]) -> Any:
    """The exact value of the expression for `values`."""
    if node.op == "sym":
        return values[node.args[0]]
    if node.op == "num":
        return node.args[0]
    return _OPERATIONS[node.op](*(evaluate(arg, values) for arg in node.args))


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One reported number with its derivation. `value` is exact; `unit` is "B", "parameters", "FLOP", …

    `gives`: the symbol that stands for it in the formulas of later steps; empty where none uses it.
    """

    name: str
    expression: Expr
    values: Mapping[str, Number]
    value: Number
    unit: str
    gives: str = ""

    @property
    def formula(self) -> str:
        """``2 · L · n_kv · d · b``"""
        return to_text(self.expression)

    @property
    def substituted(self) -> str:
        """``2 · 32 · 8 · 128 · 2``"""
        return substituted(self.expression, self.values)

    @property
    def latex(self) -> str:
        """The formula in LaTeX maths."""
        return to_latex(self.expression)

    @property
    def latex_substituted(self) -> str:
        """The substituted numbers, in LaTeX maths."""
        return substituted(self.expression, self.values, latex=True)


def derive(name: str, formula: Callable[..., Any], *, unit: str, gives: str = "", **arguments: Any) -> Term:
    """Trace `formula` with symbols, evaluate the trace exactly with the numbers, and keep both.

    Divisions stay exact (a Fraction); a direct call with ints would round to a float. Numbers among `arguments` become
    symbols; booleans, enums, strings and None choose the form of the formula and are passed unchanged.
    """
    numbers = {k: v for k, v in arguments.items() if isinstance(v, int | float | Fraction) and not isinstance(v, bool)}
    shape = {k: v for k, v in arguments.items() if k not in numbers}
    traced = formula(**{k: symbol(k) for k in numbers}, **shape)
    expression = as_expr(traced)
    value = evaluate(expression, numbers)
    exact = whole(value) if isinstance(value, Fraction) else value
    return Term(name=name, expression=expression, values=numbers, value=exact, unit=unit, gives=gives)
