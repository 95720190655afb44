"""Lengths, arrivals and traces: what is drawn, what is read, what is refused by name."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.errors import QuantityError, SourceError
from calc.simulate.lengths import MOST_TOKENS, parse_lengths
from calc.simulate.traces import MOST_REQUESTS, read_trace
from calc.simulate.workload import Arrival, Mix, constant, poisson


def drawn(text: str, n: int = 20_000) -> list[int]:
    random, lengths = Random(5), parse_lengths(text)
    return [lengths.draw(random) for _ in range(n)]


def test_lengths_have_the_mean_and_the_range_that_was_written() -> None:
    assert set(drawn("1Ki", 10)) == {1024}
    assert (min(drawn("10..20")), max(drawn("10..20"))) == (10, 20)
    assert sum(drawn("10..20")) / 20_000 == pytest.approx(15, rel=0.01)
    assert sum(drawn("exponential:300")) / 20_000 == pytest.approx(300, rel=0.03)
    normal = drawn("normal:1000,200")
    assert sum(normal) / 20_000 == pytest.approx(1000, rel=0.01)
    assert sum(1 for value in normal if value < 800) / 20_000 == pytest.approx(0.159, abs=0.01)  # one deviation below
    log_normal = sorted(drawn("lognormal:800,0.7"))
    assert log_normal[10_000] == pytest.approx(800, rel=0.03)
    assert log_normal[16_826] == pytest.approx(800 * 2.014, rel=0.03)  # exp(0.7): one sigma above, 84.13 %


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("20..10", "ends before it begins: write 10..20"),
        ("zipf:3", "zipf:3 is not a distribution of lengths: write 1024, 512..2048"),
        ("normal:5", "is not a distribution of lengths"),
        ("lognormal:800,x", "sigma of a log-normal length is a number up to 5"),
        ("lognormal:800,nan", "sigma of a log-normal length"),
        ("0", "must be at least 1"),
        ("1e9", "must be at most 10,000,000"),
        ("", "empty"),
    ],
)
def test_lengths_that_say_nothing_are_refused(text: str, said: str) -> None:
    with pytest.raises(QuantityError, match=said):
        parse_lengths(text)


@given(st.sampled_from(["exponential:9999999", "normal:10,1000000", "lognormal:9999999,5"]), st.integers())
def test_no_draw_is_below_one_token_or_above_the_most(text: str, seed: int) -> None:
    assert 1 <= parse_lengths(text).draw(Random(seed)) <= MOST_TOKENS


def test_poisson_arrivals_have_their_rate_and_independent_gaps() -> None:
    mix = Mix(prompt=parse_lengths("10"), new=parse_lengths("1"))
    arrivals = poisson(mix.drawn(20_000, 1), 4.0, 1)
    gaps = [b.at_s - a.at_s for a, b in pairwise(arrivals)]
    assert sum(gaps) / len(gaps) == pytest.approx(0.25, rel=0.03)
    assert sum(gap > 0.25 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.01)  # exp(-1)
    slower = poisson(mix.drawn(20_000, 1), 2.0, 1)
    assert slower[77].at_s == pytest.approx(2 * arrivals[77].at_s)  # the same gaps, twice as long
    assert [one.at_s for one in constant(mix.drawn(3, 1), 4.0)] == [0.0, 0.25, 0.5]


def test_more_requests_of_a_seed_begin_with_the_same_ones() -> None:
    mix = Mix(prompt=parse_lengths("1..1000"), new=parse_lengths("1..100"), shared=0.5, prefixes=7)
    assert mix.drawn(50, 3) == mix.drawn(500, 3)[:50]
    assert all(
        one.common_tokens == one.prompt_tokens // 2 and 0 <= int(one.prefix or 0) < 7 for one in mix.drawn(50, 3)
    )


# --- traces -----------------------------------------------------------------------------------------------------


def trace(tmp_path: Path, text: str) -> list[Arrival]:
    path = tmp_path / "trace"
    path.write_text(text, encoding="utf-8")
    return read_trace(path)


def test_a_trace_is_csv_with_names(tmp_path: Path) -> None:
    text = "arrival_s,prompt_tokens,new_tokens,prefix,prefix_tokens\n10.5,100,20,,\n10,50,5,system,32\n\n"
    assert trace(tmp_path, text) == [Arrival(0.0, 50, 5, "system", 32), Arrival(0.5, 100, 20)]


def test_azures_traces_are_read(tmp_path: Path) -> None:
    """AzurePublicDataset, AzureLLMInferenceTrace_conv.csv: seven digits of a second, Windows line ends."""
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951690,396,109\r\n"
    )
    assert trace(tmp_path, text) == [Arrival(0.0, 374, 44), Arrival(pytest.approx(4.314579), 396, 109)]


def test_mooncakes_traces_are_read(tmp_path: Path) -> None:
    """kvcache-ai/Mooncake: milliseconds. Its hashes of blocks are not followed."""
    text = (
        '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
        '{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": [0, 14]}\n'
    )
    assert trace(tmp_path, text) == [Arrival(0.0, 6758, 500), Arrival(3.0, 7322, 490)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no requests: a trace is CSV with a header line"),
        ("arrival_s,prompt_tokens,new_tokens\n", "no requests"),
        ("arrival_s,prompt_tokens\n1,2\n", "line 2: no new_tokens"),
        ("prompt_tokens,new_tokens\n1,2\n", "no arrival: name it arrival_s or arrival_ms"),
        ("timestamp,prompt_tokens,new_tokens\n1,2,3\n", "timestamp is a number without a unit"),
        ("timestamp,prompt_tokens,new_tokens\nsoon,2,3\n", "timestamp is 'soon', not a date and time"),
        ("arrival_s,prompt_tokens,new_tokens\n1,2.5,3\n", "prompt_tokens is '2.5', not a number of tokens"),
        ("arrival_s,prompt_tokens,new_tokens\n1,0,3\n", "from 1 to 10,000,000"),
        ("arrival_s,prompt_tokens,new_tokens\nnan,5,3\n", "arrival_s is 'nan', not a time"),
        ("arrival_s,prompt_tokens,new_tokens\n1,5\n", "line 2: 2 fields, not 3 as named"),
        (
            "arrival_s,prompt_tokens,new_tokens,prefix,prefix_tokens\n1,5,3,a,9\n",
            "prefix_tokens 9 is more than",
        ),
        ('{"arrival_s": 1, "prompt_tokens": true, "new_tokens": 1}', "prompt_tokens is 'True'"),
        ('{"arrival_s": 1, "prompt_tokens": [2], "new_tokens": 1}', "not a number of tokens"),
        ('{"arrival_s": 1}\n[1]', "line 1: no prompt_tokens"),
        ("[1]", "line 1: not a JSON object"),
        ("{" * 100_000, "not a JSON object"),
        ('{"arrival_s": 1, "prompt_tokens": ' + "9" * 5000 + ', "new_tokens": 1}', "not a"),
        ("arrival_s,prompt_tokens,new_tokens\n1," + "9" * 70_000 + ",3\n", "not CSV: field larger than field limit"),
        ("arrival_s,prompt_tokens,new_tokens\n1,5,\x1b]0;x\x07\n", r"new_tokens is '\\\\u001b"),
    ],
)
def test_what_is_no_trace_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        trace(tmp_path, text)


def test_a_trace_is_read_up_to_a_number_of_requests(tmp_path: Path) -> None:
    row = "1,5,3\n"
    with pytest.raises(SourceError, match="more than 100,000 requests: shorten the trace"):
        trace(tmp_path, "arrival_s,prompt_tokens,new_tokens\n" + row * (MOST_REQUESTS + 1))


def test_what_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(SourceError, match="not a text file"):
        read_trace(tmp_path / "binary")
    with pytest.raises(SourceError, match="no such file"):
        read_trace(tmp_path / "none")


@given(st.text(max_size=200))
def test_any_text_is_a_trace_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_text("arrival_s,prompt_tokens,new_tokens\n" + text, encoding="utf-8", errors="replace")
    with suppress(SourceError):
        assert all(one.at_s >= 0 for one in read_trace(path))
