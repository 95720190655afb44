r"""Turns any text into LaTeX that pdflatex accepts: without commands, active characters or unknown bytes.

The result is pure ASCII. A character without a LaTeX form in the standard fonts is written as its code point
([U+4E2D]), so that a name in another script never breaks the compilation.
"""

from __future__ import annotations

import re
import unicodedata

from calc.explain.terms import SUPERSCRIPT

_SPACES = " \t\r\n\f\v"
_BEFORE_UNIT = r"(?<=[0-9⁰¹²³⁴⁵⁶⁷⁸⁹]) (?=(?:[kMGTP]?i?B|[kMGTP]?FLOP|FLOP/B|[mµn]?s|%)(?![A-Za-z]))"
"""The space between a number and its unit, where no line may end."""
LONG_WORD = 22
"""Longer runs without a space get break points, so that a path does not run over the margin."""
CHUNK = 8
"""Maximum characters without punctuation before such a word may be broken."""

# Signs that LaTeX would take from TS1 (a font set missing in small installations) are written as maths.
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"$\mathdollar$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "\u00a0": "~",
}  # fmt: skip
_LIGATURES = frozenset("-'`!?,<>")
"""Characters that form ligatures in TeX's fonts: each is put in braces."""

_MATHS = {
    "·": r"\cdot", "×": r"\times", "−": "-", "±": r"\pm", "÷": r"\div", "≈": r"\approx", "≤": r"\le", "≥": r"\ge",
    "≠": r"\ne", "∞": r"\infty", "→": r"\to", "←": r"\leftarrow", "↑": r"\uparrow", "↓": r"\downarrow",
    "⌊": r"\lfloor", "⌋": r"\rfloor", "⌈": r"\lceil", "⌉": r"\rceil", "√": r"\surd", "∑": r"\sum", "∈": r"\in",
    "µ": r"\mu", "μ": r"\mu", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "λ": r"\lambda",
    "π": r"\pi", "σ": r"\sigma", "θ": r"\theta", "Δ": r"\Delta", "Σ": r"\Sigma", "Ω": r"\Omega", "ω": r"\omega",
    "ε": r"\varepsilon", "φ": r"\varphi", "ρ": r"\rho", "τ": r"\tau", "°": r"^{\circ}", "ᵀ": r"^{\mathsf{T}}",
    "•": r"\bullet", "●": r"\bullet", "○": r"\circ", "✓": r"\surd", "✗": r"\times",
}  # fmt: skip
_WORDS = {
    "–": "--", "—": "---", "‐": "-", "‑": "-", "‘": "{`}", "’": "'", "“": "``", "”": "''", "„": "``", "…": r"\dots{}",
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}",
    "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "§": r"$\mathsection$", "¶": r"$\mathparagraph$",
    "©": "(c)", "€": "EUR", "£": r"$\mathsterling$",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"', "\u030a": "r", "\u030c": "v",
    "\u0327": "c", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u030b": "H",
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-", strict=True))


def escape(text: str) -> str:
    """`text` for running LaTeX text: one line of ASCII, whatever it contains."""
    raised = re.sub(r"(?<=[0-9])\^([0-9]+)", lambda power: power[1].translate(SUPERSCRIPT), text)
    tied = re.sub(_BEFORE_UNIT, "\u00a0", raised.strip(_SPACES))
    return " ".join(_word(word) for word in re.split(f"[{_SPACES}]+", tied))


def _word(word: str) -> str:
    pieces = [_character(c, before) for c, before in zip(word, " " + word, strict=False)]
    if len(word) <= LONG_WORD:
        return "".join(pieces)
    return r"\allowbreak{}".join("".join(part) for part in _breakable(word, pieces))


def _breakable(word: str, pieces: list[str]) -> list[list[str]]:
    """`pieces` with break points after punctuation and every CHUNK characters."""
    parts: list[list[str]] = [[]]
    for character, piece in zip(word, pieces, strict=True):
        parts[-1].append(piece)
        if (len(parts[-1]) > 3 and not character.isalnum()) or len(parts[-1]) == CHUNK:
            parts.append([])
    return [part for part in parts if part]


def _character(character: str, before: str) -> str:
    if character in _SPECIAL:
        return _SPECIAL[character]
    if character in _LIGATURES and character == before and character != "`":
        return "{}" + character
    if " " < character <= "~":
        # A bracket at the start of a row or list item would be read as an optional argument.
        return "{" + character + "}" if character in "[]*`" else character
    return _beyond_ascii(character)


def _beyond_ascii(character: str) -> str:
    if character in _MATHS:
        return f"${_MATHS[character]}$"
    if character in _WORDS:
        return _WORDS[character]
    if character in _SUPERSCRIPTS:
        return f"$^{{{_SUPERSCRIPTS[character]}}}$"
    if character in _SUBSCRIPTS:
        return f"$_{{{_SUBSCRIPTS[character]}}}$"
    return _accented(character) or _code_point(character)


def _accented(character: str) -> str | None:
    r"""``\'{e}`` for é; None for anything except a letter with one accent."""
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[0].isascii() and parts[0].isalpha() and parts[1] in _ACCENTS:
        base = {"i": r"\i", "j": r"\j"}.get(parts[0], parts[0])
        return rf"\{_ACCENTS[parts[1]]}{{{base}}}"
    return None


def _code_point(character: str) -> str:
    if unicodedata.category(character) in ("Cc", "Cf", "Mn", "Zs", "Zl", "Zp"):
        return ""
    return f"{{[}}U+{ord(character):04X}{{]}}"
