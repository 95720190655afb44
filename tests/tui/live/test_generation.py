"""A run as the app follows it: every way it can end, and what it knows meanwhile."""

from __future__ import annotations

import msgspec
import pytest

from engine.generation_events import GenerationFinished, GenerationStarted, StopReason, TokenGenerated
from engine.measure.own import OwnTimes, PromptTime, StepTime, TextTime
from engine.measure.timing import timing
from engine.process.events import EngineExited, Failed, Generate, Loaded
from engine.records import Cancelled, Event
from engine.speculation import Drafted, Speculate
from tests.tui.fake_engine import TOKEN_BYTES, model
from tui.live.generation import Generation, generate_options
from tui.live.predict import predicted_times
from tui.views.generation import Pair, cache_text, meter_text, run_table


def token(index: int, time_ns: int, text: str = "a") -> TokenGenerated:
    return TokenGenerated(
        index=index, token_id=40 + index, text=text, time_ns=time_ns, kv_tokens=3 + index, kv_used_bytes=10
    )


def started() -> GenerationStarted:
    return GenerationStarted(
        prompt_ids=(1, 2, 3), start_ns=1000, kv_cache_bytes=20 * TOKEN_BYTES, kv_bytes_per_token=TOKEN_BYTES
    )


def finished(reason: StopReason) -> GenerationFinished:
    return GenerationFinished(
        reason=reason, prompt_ids=(1,), ids=(2,), text=None, start_ns=0, token_times_ns=(1,), kv_cache_bytes=0
    )


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        (finished("eos"), "the model ended the text"),
        (finished("length"), "limit of 64 new tokens reached"),
        (finished("positions"), "the model has no more positions (4,000,000)"),
        (finished("cache"), "the cache is full"),
        (finished("cancelled"), "stopped by you"),
        (Cancelled(), "stopped by you"),
        (Failed(kind="input", message="no such file"), "no such file"),
        (EngineExited(returncode=-9, message="The engine was killed."), "The engine was killed."),
    ],
)
def test_every_end_is_said_in_words(event: Event, outcome: str) -> None:
    run = Generation(Generate(prompt="x"), model=model(None, tokenizer=True))
    assert not run.over
    run.feed([event])
    assert run.over
    assert run.outcome == outcome


def test_text_is_handed_out_once_and_numbers_are_kept() -> None:
    run = Generation(Generate(prompt="x"))
    run.feed([Loaded(model=model(None, tokenizer=True)), started(), token(0, 3_001_000, "be")])
    assert run.take_text() == "be"
    run.feed([token(1, 4_001_000, ""), token(2, 6_001_000, "é")])
    assert run.take_text() == "é"
    assert run.take_text() == ""
    rates = run.timing
    assert rates is not None
    assert (rates.ttft_s, rates.tpot_s) == (0.003, 0.0015)
    assert (run.cache_tokens, run.capacity, run.ids) == (5, 20, [40, 41, 42])
    assert run.shown_prompt == "1 2 3"


def test_a_model_without_a_tokenizer_shows_ids() -> None:
    run = Generation(Generate(prompt_ids=(1,)), model=model("w.pt", tokenizer=False))
    run.feed([started(), token(0, 2000, ""), token(1, 3000, "")])
    assert run.take_text() == " 40 41"


def test_before_a_run_nothing_is_claimed() -> None:
    assert "appear here" in meter_text(None, None).plain
    assert "appears here" in cache_text(None, width=60).plain


def test_a_prediction_that_fails_would_show() -> None:
    """The ratio is computed, not assumed: half the predicted bytes reads 0.5 of them."""
    info = model(None, tokenizer=True)
    run = Generation(Generate(prompt="x"), model=info)
    run.feed([started(), token(0, 2000)])
    assert "measured/predicted 1.000" in cache_text(run, width=60).plain
    run.cache_bytes += TOKEN_BYTES // 2
    assert "measured/predicted 1.025" in cache_text(run, width=60).plain


def test_predicted_times_stand_under_the_measured_ones() -> None:
    """1 GB/s reads the weights and the cache at the middle of the run in some 14.6 ms."""
    info = msgspec.structs.replace(model(None, tokenizer=True), read_bytes_per_s=1e9, matmul_flops_per_s=1e12)
    run = Generation(Generate(prompt="x"), model=info)
    bounds = predicted_times(info, "full", prompt_tokens=3, new_tokens=3)
    assert bounds is not None
    step_ns = round(bounds.tpot_s * 1e9)
    first = 1000 + 2 * round(bounds.ttft_s * 1e9)
    run.feed([started(), token(0, first), token(1, first + 3 * step_ns), token(2, first + 6 * step_ns)])
    lines = meter_text(run, run.timing).plain.splitlines()
    assert lines[2].split() == ["●", "measured", "at", "least", "ratio"]
    assert (lines[3].split()[0], lines[3].split()[-1]) == ("TTFT", "2.00")
    assert (lines[4].split()[0], lines[4].split()[-1]) == ("TPOT", "3.00")
    assert lines[5] == "  14.56 MB per token at 1.00 GB/s: 14.6 ms"
    assert all(len(line) <= 50 for line in lines)
    rows = {row[0]: row[1] for row in run_table(run).rows}
    assert rows["TPOT, at least"] == "14.6 ms"
    run.request = Generate(prompt="x", use_cache=False)
    assert "at least" not in meter_text(run, run.timing).plain


def test_the_models_own_operators_predict_a_run_once_they_were_timed() -> None:
    """A prompt of 3 predicted at 30 ms and steps at 10 ms: measured 33 and 40, so the second needs a reason."""
    run = Generation(Generate(prompt="x"), model=model(None, tokenizer=True))
    run.feed([started(), token(0, 33_001_000), token(1, 73_001_000), token(2, 113_001_000)])
    assert "predicted" not in meter_text(run, run.timing).plain
    run.own = OwnTimes(
        compiled=False, max_rows=None, threads=1, n_layers=2, layers_timed=2, chunk=None, slowdown=4.0,
        steps=(StepTime(batch=1, context=1, seconds=0.010), StepTime(batch=1, context=8, seconds=0.010)),
        prompts=(PromptTime(tokens=3, past=0, seconds=0.030),),
    )  # fmt: skip
    lines = meter_text(run, run.timing).plain.splitlines()
    assert lines[2].split() == ["●", "measured", "predicted", "ratio"]
    assert lines[3].split() == ["TTFT", "33.0", "ms", "30.0", "ms", "1.10"]
    assert lines[4].split() == ["TPOT", "40.0", "ms", "10.0", "ms", "4.00"]
    assert lines[5:7] == ["  differ: other processes had 75 % of the cores:", "    40.0 ms expected with that"]
    assert all(len(line) <= 50 for line in lines)
    rows = {row[0]: tuple(row[1:]) for row in run_table(run).rows}
    assert rows["TPOT, predicted"] == ("10.0 ms", "● / predicted 4.00")
    assert rows["Why they differ"] == ("", "other processes had 75 % of the cores: 40.0 ms expected with that")


def test_speculation_stands_beside_what_is_predicted_for_its_acceptance() -> None:
    """Three tokens per step of 12 ms, where one takes 10 ms: 2.50 times as fast, measured and predicted alike."""
    run = Generation(Generate(prompt="x", speculate=Speculate(tokens=2)), model=model(None, tokenizer=True))
    run.feed([started(), *(token(i, 33_001_000 + i * 4_000_000) for i in range(7))])
    drafted = Drafted(draft="lookup", tokens=2, by_step=(2, 2), accepted=(2, 2), drafting_ns=0)
    run.feed([msgspec.structs.replace(finished("length"), drafted=drafted)])
    run.own = OwnTimes(
        compiled=True, max_rows=32, threads=1, n_layers=2, layers_timed=2, chunk=None,
        steps=(StepTime(batch=1, context=1, seconds=0.010), StepTime(batch=1, context=8, seconds=0.010)),
        prompts=(PromptTime(tokens=3, past=0, seconds=0.030),),
        texts=(TextTime(tokens=3, context=8, seconds=0.012),),
    )  # fmt: skip
    lines = meter_text(run, run.timing).plain.splitlines()
    assert lines[4].split() == ["TPOT", "4.00", "ms", "4.00", "ms", "1.00"]
    assert lines[5].split() == ["gain", "2.50x", "2.50x", "1.00"]
    assert "predicted 3.00 at acceptance 1.00; faster from 0.17 upwards" in " ".join(" ".join(lines[6:9]).split())
    assert all(len(line) <= 50 for line in lines)
    rows = {row[0]: tuple(row[1:]) for row in run_table(run).rows}
    assert rows["Drafted tokens accepted"] == ("4 of 4", "measured")
    assert rows["Gain of speculation"] == ("2.50x", "predicted 2.50x")
    assert generate_options(run.request)[-2:] == ["--speculate", "lookup,2"]


def test_a_pair_keeps_the_other_way_only_for_the_same_prompt() -> None:
    info = model(None, tokenizer=True)
    first = Generation(Generate(prompt="x"), model=info, prompt_ids=(1, 2))
    same = Generation(Generate(prompt="x", use_cache=False), model=info, prompt_ids=(1, 2))
    other = Generation(Generate(prompt="y", use_cache=False), model=info, prompt_ids=(3,))
    pair = Pair().with_run(first).with_run(same)
    assert (pair.cached, pair.uncached) == (first, same)
    pair = pair.with_run(other)
    assert (pair.cached, pair.uncached) == (None, other)


def test_rates_taken_in_pieces_are_those_of_the_whole() -> None:
    times = [3_000_000 + (i * i * 7919) % 1_000_003 + i * 2_000_000 for i in range(200)]
    run = Generation(Generate(prompt="x"), model=model(None, tokenizer=True))
    run.feed([started()])
    assert run.timing == timing(1000, [])
    for i, at in enumerate(times):
        run.feed([token(i, at)])
        if i % 7 == 0 or i < 4:
            assert run.timing == timing(1000, times[: i + 1])
    assert run.timing == timing(1000, times)
    assert run.timing == timing(1000, times), "asking again changes nothing"


def test_a_reason_is_wrapped_to_the_column() -> None:
    """48 cells: the column at 120 columns. Nothing is left to be wrapped a second time."""
    run = Generation(Generate(prompt="x"), model=model(None, tokenizer=True))
    run.feed([started(), token(0, 33_001_000), token(1, 73_001_000), token(2, 113_001_000)])
    run.own = OwnTimes(
        compiled=False, max_rows=None, threads=1, n_layers=2, layers_timed=2, chunk=None, slowdown=4.0,
        steps=(StepTime(batch=1, context=1, seconds=0.010), StepTime(batch=1, context=8, seconds=0.010)),
        prompts=(PromptTime(tokens=3, past=0, seconds=0.030),),
    )  # fmt: skip
    for width in (40, 48):
        lines = meter_text(run, run.timing, width).plain.splitlines()
        reason = [line for line in lines[5:] if line.startswith(("  differ", "    "))]
        assert len(reason) > 1
        assert max(map(len, reason)) <= width
