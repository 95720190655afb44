"""calc.model.storage: whole blocks, so bytes are exact."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import QuantityError
from calc.model.storage import FORMATS, StorageFormat, bytes_format, parse_format, storage_format

# Bits an element: FACTS G14 and ggml-common.h. Written out, not computed.
BITS = {
    "fp32": "32", "bf16": "16", "fp16": "16", "fp8": "8", "fp8_e4m3": "8", "fp8_e5m2": "8", "int8": "8", "int4": "4",
    "q8_0": "8.5", "q6_k": "6.5625", "q5_k": "5.5", "q5_1": "6", "q5_0": "5.5",
    "q4_k": "4.5", "q4_1": "5", "q4_0": "4.5", "iq4_nl": "4.5",
    "mxfp4": "4.25", "nvfp4": "4.5",
}  # fmt: skip


def test_every_format_has_its_bits():
    assert {name: f.bytes_per_element * 8 for name, f in FORMATS.items()} == {
        name: Fraction(bits) for name, bits in BITS.items()
    }


def test_whole_bytes_are_ints():
    assert type(FORMATS["bf16"].bytes_per_element) is int
    assert type(FORMATS["q8_0"].bytes_per_element) is Fraction
    assert type(StorageFormat("x", 3, 6).bytes_per_element) is int


@pytest.mark.parametrize("name", ["bf16", "BF16", " bfloat16 ", "Bfloat16"])
def test_format_by_name(name):
    assert storage_format(name) is FORMATS["bf16"]


def test_dash_and_underscore_are_the_same():
    assert storage_format("Q4-K") is storage_format("q4_k") is FORMATS["q4_k"]


@pytest.mark.parametrize("name", ["", "bf17", "q4", "two"])
def test_unknown_format_lists_the_known(name):
    with pytest.raises(QuantityError, match="unknown storage format") as caught:
        storage_format(name)
    assert all(known in str(caught.value) for known in FORMATS)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2", 2), ("0.5", Fraction(1, 2)), ("9/16", Fraction(9, 16)), (".25", Fraction(1, 4)), ("64", 64)],
)
def test_bytes_an_element(text, value):
    assert parse_format(text).bytes_per_element == value


@pytest.mark.parametrize(
    "text", ["0", "-1", "65", "1/0", "1e-9", "nan", "inf", "2 bytes", "0x2", "1/5000", "1e999999999", "1" * 99]
)
def test_impossible_bytes_an_element(text):
    with pytest.raises(QuantityError, match="bytes per element"):
        bytes_format(text)


@given(st.integers(1, 64), st.integers(1, 4096))
def test_fraction_reads_back(numerator, denominator):
    text = f"{numerator}/{denominator}"
    assert bytes_format(text).bytes_per_element == Fraction(numerator, denominator)
