"""calc.units: sizes and counts read exactly, refused with the remedy, written without mixing GB and GiB."""

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import QuantityError
from calc.units import (
    GB,
    GIB,
    MAX_BYTES,
    MAX_COUNT,
    MAX_LIST,
    format_binary,
    format_bytes,
    format_bytes_exact,
    format_count,
    format_decimal,
    format_duration_s,
    format_flops,
    format_gb,
    format_gib,
    format_rate,
    parse_count,
    parse_counts,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("80GB", 80_000_000_000),
        ("80GiB", 85_899_345_920),
        ("80 gb", 80_000_000_000),
        ("80Gb", 80_000_000_000),
        ("  80 gIb ", 85_899_345_920),
        ("1B", 1),
        ("3kB", 3_000),
        ("3KiB", 3_072),
        ("5MB", 5_000_000),
        ("5MiB", 5_242_880),
        ("2TB", 2 * 10**12),
        ("2TiB", 2 * 2**40),
        ("1.5GB", 1_500_000_000),
        (".5GiB", 536_870_912),
        ("1_000 MB", 10**9),
        ("1,000,000 kB", 10**9),
        ("8e10 B", 80 * GB),
        ("80Gi", 80 * GIB),
        ("+2KB", 2_000),
    ],
)
def test_size_is_exact(text, n_bytes):
    assert parse_size(text) == n_bytes


def test_size_rounds_down_from_the_exact_number():
    # 79.19 x 2^30 = 85029615042.56; as floats 0.1 + 0.2 TB would already be off.
    assert parse_size("79.19GiB") == 85_029_615_042
    assert parse_size("0.3TB") == 300_000_000_000
    assert parse_size("1.0000000000000001 GB") == 1_000_000_000


def test_bare_number_is_refused_with_both_readings():
    with pytest.raises(QuantityError) as caught:
        parse_size("80", what="gpu memory")
    assert str(caught.value) == ("gpu memory 80 has no unit: 80GB is 80,000,000,000 B, 80GiB is 85,899,345,920 B")


def test_bare_byte_count_is_offered_as_bytes():
    with pytest.raises(QuantityError, match=r"80000000000B is 80\.00 GB \(74\.51 GiB\)"):
        parse_size("80000000000")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("0GB", "more than zero"),
        ("-80GB", "more than zero"),
        ("-80", "more than zero"),
        ("nan", "must be a number"),
        ("nanGB", "must be a number"),
        ("inf GB", "must be a number"),
        ("GB", "must be a number"),
        ("1e400GB", "must be a number"),
        ("9" * 65 + "GB", "must be a number"),
        ("79,19GiB", "must be a number"),
        ("1__0GB", "must be a number"),
        ("8 0GB", "must be a number"),
        ("٣GB", "must be a number"),
        ("0x10GB", "must be a number"),
        ("80GX", "unknown unit"),
        ("80GBGB", "unknown unit"),
        ("80G", "80GB is 80,000,000,000 B, 80GiB is 85,899,345,920 B"),
        ("1e12GB", "is too large"),
        ("0.5B", "less than one byte"),
    ],
)
def test_size_refused_in_one_sentence(text, says):
    with pytest.raises(QuantityError, match=r"^memory ") as caught:
        parse_size(text, what="memory")
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8192", 8192),
        ("8k", 8000),
        ("8K", 8000),
        ("8Ki", 8192),
        ("128Ki", 131_072),
        ("1e3", 1000),
        ("4_096", 4096),
        ("4,096", 4096),
        ("1.5k", 1500),
        ("1.5Ki", 1536),
        ("2M", 2_000_000),
        ("1Mi", 1_048_576),
        ("1.0", 1),
        ("1T", MAX_COUNT),
    ],
)
def test_count(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("0", "at least 1"),
        ("-1", "at least 1"),
        ("1.5", "whole number"),
        ("1.0001k", "whole number"),
        ("1e-3", "at least 1"),
        ("1e13", "at most 1,000,000,000,000"),
        ("8B", "8e9 for billions"),
        ("8 kilo", "unknown suffix"),
        ("8kk", "unknown suffix"),
        ("many", "must be a number"),
        ("nan", "must be a number"),
        ("1 2", "must be a number"),
    ],
)
def test_count_refused(text, says):
    with pytest.raises(QuantityError, match=r"^context ") as caught:
        parse_count(text, what="context")
    assert says in str(caught.value)


def test_count_limits_are_inclusive():
    assert parse_count("0", minimum=0) == 0
    assert parse_count("8", minimum=8, maximum=8) == 8
    with pytest.raises(QuantityError, match="at least 8"):
        parse_count("7", minimum=8)
    with pytest.raises(QuantityError, match="at most 8"):
        parse_count("9", maximum=8)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,2,4,8", (1, 2, 4, 8)),
        ("8, 4 ,2", (8, 4, 2)),
        ("1,1,2", (1, 2)),
        ("64..1024", (64, 128, 256, 512, 1024)),
        ("1..6", (1, 2, 4, 6)),
        ("5..5", (5,)),
        ("1..4,6,8..9", (1, 2, 4, 6, 8, 9)),
        ("1k..4Ki", (1000, 2000, 4000, 4096)),
    ],
)
def test_counts(text, values):
    assert parse_counts(text) == values


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("1,,2", "is empty"),
        ("1..", "is empty"),
        ("8..1", "goes down: write 1..8"),
        ("1,x", "must be a number"),
        ("0,1", "at least 1"),
        (",".join(map(str, range(1, MAX_LIST + 2))), "more than 256"),
    ],
)
def test_counts_refused(text, says):
    with pytest.raises(QuantityError, match=r"^tp ") as caught:
        parse_counts(text, what="tp")
    assert says in str(caught.value)


def test_a_range_cannot_double_from_zero():
    with pytest.raises(QuantityError, match="cannot double from 0"):
        parse_counts("0..8", minimum=0)


@given(st.integers(1, MAX_COUNT), st.integers(1, MAX_COUNT))
def test_range_holds_both_ends_and_doubles(a, b):
    low, high = sorted((a, b))
    values = parse_counts(f"{low}..{high}")
    assert values[0] == low
    assert values[-1] == high
    assert all(y == 2 * x for x, y in pairwise(values[:-1]))
    assert len(values) < 2 or values[-2] < high <= 2 * values[-2]


@given(st.integers(1, MAX_BYTES))
def test_exact_bytes_read_back(n_bytes):
    assert parse_size(format_bytes_exact(n_bytes)) == n_bytes


@given(st.integers(1, MAX_COUNT))
def test_count_reads_back(value):
    assert parse_count(format_count(value)) == value


@given(st.integers(1, MAX_BYTES // 10))
def test_written_size_reads_back_within_its_rounding(n_bytes):
    decimal, binary = format_decimal(n_bytes), format_binary(n_bytes)
    for text in (decimal, binary):
        assert abs(parse_size(text) - n_bytes) <= max(1, n_bytes * 0.006), text
    assert "i" not in decimal


def read_or_refused(parse, text):
    """The numbers read, or the sentence of the QuantityError; any other exception is a failure."""
    try:
        result = parse(text)
    except QuantityError as error:
        return str(error)
    return result if isinstance(result, tuple) else (result,)


@given(st.text(max_size=80) | st.text("0123456789.,_eE+-kKMGTiB ", max_size=12))
def test_any_text_gives_positive_numbers_or_one_sentence(text):
    for parse in (parse_size, parse_count, parse_counts):
        result = read_or_refused(parse, text)
        if isinstance(result, str):
            assert 0 < len(result) < 300
        else:
            assert min(result) >= 1


@given(st.fractions(min_value=-(10**15), max_value=10**15), st.integers(0, 4))
def test_rounding_is_half_even_on_the_exact_number(value, digits):
    shown = Fraction(format_gb(value * GB, digits).removesuffix(" GB").replace(",", ""))
    assert shown == round(value, digits)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (16_060_522_496, "16.06 GB (14.96 GiB)"),
        (131_072, "131.07 kB (128.00 KiB)"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB (1,000.00 B)"),
        (999_999_999, "1.00 GB (953.67 MiB)"),
        (-5_000_000, "-5.00 MB (-4.77 MiB)"),
        (Fraction(3, 2), "1.5 B"),
        (80e9, "80.00 GB (74.51 GiB)"),
    ],
)
def test_format_bytes(n_bytes, text):
    assert format_bytes(n_bytes) == text


def test_units_are_never_mixed():
    assert (format_gb(GIB), format_gib(GIB)) == ("1.07 GB", "1.00 GiB")
    assert (format_gb(85_899_345_920), format_gib(80 * GB)) == ("85.90 GB", "74.51 GiB")


@pytest.mark.parametrize(
    ("value", "text"),
    [(8_030_261_248, "8,030,261,248"), (0, "0"), (Fraction(34, 32), "1.062"), (2.5, "2.5"), (1000, "1,000")],
)
def test_format_count(value, text):
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (542_113_792, "542.1 MFLOP"),
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (999_999, "1.0 MFLOP"),
        (Fraction(10**13, 7), "1.4 TFLOP"),
        (3 * 10**21, "3,000.0 EFLOP"),
    ],
)
def test_format_flops(flops, text):
    assert format_flops(flops) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1e-12, "0.001 ns"),
        (2.5e-7, "250 ns"),
        (9.996e-7, "1.00 µs"),
        (0.00257, "2.57 ms"),
        (0.99999, "1.00 s"),
        (21.05, "21.1 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_format_duration(seconds, text):
    assert format_duration_s(seconds) == text


def test_format_rate():
    assert format_rate(3.35e12) == "3.35 TB/s"
    assert format_rate(989.4e12, "FLOP/s") == "989.4 TFLOP/s"
    assert format_rate(1234.5, "tokens/s") == "1,234 tokens/s"
    assert format_rate(Fraction(529_408, 532_992), "FLOP/B") == "0.993 FLOP/B"
