"""What the tests of calc share: random models and studies, and a reader of shown derivations.

`read_text` turns the text of a derivation ("⌊(80,000,000,000 − 16,060,522,496) / 1,073,741,824⌋") back into a
number with a grammar of its own, so that what a user reads is checked, not the expression behind it.
"""

from __future__ import annotations

import re
from fractions import Fraction

from hypothesis import strategies as st

from calc.model.parts import Mlp, Norm
from calc.model.spec import ModelSpec, uniform
from calc.model.storage import FORMATS
from calc.model.study import DeviceSpec, Policy, Study
from tests.examples import examples

QUICK = examples(60)
"""Shared machines stall: no deadline; enough examples to find slips, few enough to run on every change."""

REFERENCE = uniform(
    name="assignment",
    n_layers=2,
    n_heads=1,
    n_kv_heads=1,
    head_dim=50,
    hidden_size=50,
    intermediate_size=100,
    vocab_size=1000,
    mlp=Mlp.PLAIN,
    norm=Norm.LAYER,
    mlp_bias=True,
    head_bias=True,
    n_learned_positions=128,
)
"""The assignment's reference model, as its harness makes it."""

LLAMA = uniform(
    name="llama-3-8b",
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    hidden_size=4096,
    intermediate_size=14336,
    vocab_size=128256,
)
H100 = DeviceSpec(
    name="H100",
    memory_bytes=80 * 10**9,
    reading="80 GB",
    bandwidth_bytes_per_s=3.35e12,
    peak_flops_per_s={"bf16": 989.4e12},
)


def device(memory_bytes: int = 80 * 10**9) -> DeviceSpec:
    """A device of which only the memory is known."""
    return DeviceSpec(name="test device", memory_bytes=memory_bytes, reading=f"{memory_bytes:,} B")


formats = st.sampled_from(sorted(FORMATS)).map(FORMATS.__getitem__)


@st.composite
def models(draw: st.DrawFn, *, most: int = 64) -> ModelSpec:
    """Any valid model, with every switch and, sometimes, sliding layers."""
    count = st.integers(1, most)
    n_layers, n_kv_heads = draw(count), draw(st.integers(1, 8))
    n_sliding = draw(st.integers(0, n_layers))
    return uniform(
        name="random",
        n_layers=n_layers,
        n_heads=n_kv_heads * draw(st.integers(1, 8)),
        n_kv_heads=n_kv_heads,
        head_dim=draw(count),
        hidden_size=draw(count),
        intermediate_size=draw(count | st.sampled_from([64, 128])),
        vocab_size=draw(st.integers(1, 100_000)),
        mlp=draw(st.sampled_from(Mlp)),
        norm=draw(st.sampled_from(Norm)),
        n_learned_positions=draw(st.sampled_from([0, 1, 128])),
        n_sliding_layers=n_sliding,
        window=draw(st.integers(1, 2000)) if n_sliding else None,
        **{name: draw(st.booleans()) for name in ("tied", "qkv_bias", "o_bias", "mlp_bias", "head_bias", "qk_norm")},
    )


@st.composite
def studies(draw: st.DrawFn) -> Study:
    """Any valid study of a small model: fitting or not, whole bytes or blocks."""
    return Study(
        model=draw(models()),
        device=device(draw(st.integers(1, 10**9))),
        context=draw(st.integers(1, 10_000)),
        weight_format=draw(formats),
        kv_format=draw(formats),
        tps=tuple(draw(st.lists(st.integers(1, 64) | st.sampled_from([2, 4, 8]), min_size=1, max_size=5))),
        policy=draw(st.sampled_from(Policy)),
    )


# The grammar of shown derivations: sum := product (("+" | "−") product)*; product := power (("·" | "/") power)*;
# power := atom superscript?; atom := number | ⌊sum⌋ | (sum) | min(sum, sum) | max(sum, sum)

_TOKEN = re.compile(r"\s*(?:(-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)(?!\d)|([⁰¹²³⁴⁵⁶⁷⁸⁹]+)|(min|max)|([-+−·/()⌊⌋,]))")
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


class _Reader:
    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            assert match, f"cannot read {text[at:]!r} of {text!r}"
            self.tokens.append(match[0].strip())
            at = match.end()

    def take(self, *wanted: str) -> str:
        if self.tokens and self.tokens[0] in wanted:
            return self.tokens.pop(0)
        return ""

    def expect(self, wanted: str) -> None:
        assert self.take(wanted), f"{wanted!r} expected before {self.tokens}"

    def sum(self) -> Fraction:
        value = self.product()
        while sign := self.take("+", "−"):
            value = value + self.product() if sign == "+" else value - self.product()
        return value

    def product(self) -> Fraction:
        value = self.power()
        while sign := self.take("·", "/"):
            value = value * self.power() if sign == "·" else value / self.power()
        return value

    def power(self) -> Fraction:
        value = self.atom()
        if self.tokens and self.tokens[0][0] in "⁰¹²³⁴⁵⁶⁷⁸⁹":
            value = value ** int(self.tokens.pop(0).translate(_DIGITS))
        return value

    def atom(self) -> Fraction:
        if self.take("("):
            value = self.sum()
            self.expect(")")
            return value
        if self.take("⌊"):
            value = self.sum()
            self.expect("⌋")
            return Fraction(value.numerator // value.denominator)
        if name := self.take("min", "max"):
            self.expect("(")
            first = self.sum()
            self.expect(",")
            second = self.sum()
            self.expect(")")
            return min(first, second) if name == "min" else max(first, second)
        return Fraction(self.tokens.pop(0).replace(",", ""))


def read_text(text: str) -> Fraction:
    """The value of a derivation as it is shown, numbers put in."""
    reader = _Reader(text)
    value = reader.sum()
    assert not reader.tokens, f"left over: {reader.tokens}"
    return value
