"""What formats were measured to cost: what is kept of runs and comparisons, the table, the line on a turned dial."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from calc.commands.render import laid_out
from engine.generation_events import GenerationFinished, GenerationStarted, TokenGenerated
from engine.measure.kinds.formats import FormatChoice, FormatMeasured, FormatRow, Formats
from engine.process.events import Generate, Loaded
from engine.records import CacheKind, DType
from tests.tui.fake_engine import RATED, TOKEN_BYTES, model
from tui.live.choice_line import Expected, Turned, choice_lines, expected
from tui.live.formats import Choice, Effect, Effects, effects_table, model_key
from tui.live.generation import Generation

INT4 = Choice("int4", "full", 1)
MS = 10**6


def run_of(
    path: str | None = None,
    *,
    dtype: DType = "auto",
    cache: CacheKind = "full",
    tp: int = 1,
    step_ms: int = 2,
    n_tokens: int = 20,
    use_cache: bool = True,
) -> Generation:
    """A finished run of `n_tokens` tokens, `step_ms` apart."""
    run = Generation(Generate(prompt="x", model=path, dtype=dtype, cache=cache, tp=tp, use_cache=use_cache))
    run.feed([Loaded(model=model(path, tokenizer=True, dtype=dtype, tp=tp))])
    run.feed([GenerationStarted(prompt_ids=(1,), start_ns=0, kv_cache_bytes=9, kv_bytes_per_token=TOKEN_BYTES // tp)])
    for i in range(n_tokens):
        time_ns = (5 + i * step_ms) * MS
        run.feed([TokenGenerated(index=i, token_id=1, text="a", time_ns=time_ns, kv_tokens=i, kv_used_bytes=0)])
    run.feed(
        [
            GenerationFinished(
                reason="length", prompt_ids=(1,), ids=(1,), text="", start_ns=0, token_times_ns=(), kv_cache_bytes=9
            )
        ]
    )
    return run


def row(dtype: str, *, cache: CacheKind = "full", n_same: int = 126, tpot_s: float = 0.004) -> FormatMeasured:
    return FormatMeasured(
        row=FormatRow(
            dtype=dtype,
            cache=cache,
            weight_bytes=153_060_000,
            kv_bytes_per_token=23_040,
            load_s=0.9,
            tpot_p50_s=tpot_s,
            tpot_p95_s=0.005,
            tokens_per_s=1 / tpot_s,
            n_tokens=127,
            n_same=n_same,
            mean_error=0.0165,
            max_error=0.1,
            perplexity=40.0,
            compiled=True,
        )
    )


def effect(choice: Choice, *, tpot_s: float = 0.004, n_same: int | None = None) -> Effect:
    return Effect(
        choice=choice,
        weight_bytes=153_060_000,
        kv_token_bytes=23_040,
        tpot_p50_s=tpot_s,
        tokens_per_s=1 / tpot_s,
        n_same=n_same,
        n_compared=127 if n_same is not None else 0,
        mean_error=None if n_same is None else 0.0165,
    )


def test_a_run_leaves_a_row_and_auto_is_what_it_ran_as() -> None:
    effects = Effects()
    assert effects.auto(None) is None
    effects.take_run(run_of())
    (only,) = effects.of(None)
    assert only.choice == Choice("float32", "full", 1)
    assert (only.tpot_p50_s, only.tokens_per_s) == (0.002, 500.0)
    assert (only.weight_bytes, only.kv_token_bytes) == (14_553_600, TOKEN_BYTES)
    assert only.n_same is None
    assert effects.auto(None) == "float32"


def test_ranks_have_a_row_of_their_own_with_a_ranks_bytes() -> None:
    effects = Effects()
    effects.take_run(run_of(tp=2, dtype="bfloat16"))
    (only,) = effects.of(None)
    assert only.choice == Choice("bfloat16", "full", 2)
    assert (only.weight_bytes, only.kv_token_bytes) == (14_553_600 // 4, TOKEN_BYTES // 2)


@pytest.mark.parametrize("run", [run_of(n_tokens=7), run_of(use_cache=False)])
def test_short_runs_and_those_without_the_cache_leave_none(run: Generation) -> None:
    effects = Effects()
    effects.take_run(run)
    assert effects.of(None) == ()
    assert effects.known(None, None) == run.model


def test_a_comparison_fills_the_errors_and_a_later_run_keeps_them() -> None:
    effects = Effects()
    effects.take_run(run_of(dtype="int4"))
    request = Formats(choices=(FormatChoice(dtype="int4"),))
    effects.take_formats(request, [row("float32", n_same=127, tpot_s=0.008), row("int4")])
    assert [found.choice.dtype for found in effects.of(None)] == ["float32", "int4"]  # the reference first
    assert effects.of(None)[1].tpot_p50_s == 0.004
    effects.take_run(run_of(dtype="int4", step_ms=3))
    newest = effects.of(None)[1]
    assert (newest.tpot_p50_s, newest.n_same, newest.n_compared, newest.mean_error) == (0.003, 126, 127, 0.0165)


def test_rows_belong_to_a_model_however_its_path_is_written(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.touch()
    (tmp_path / "link.gguf").symlink_to(file)
    effects = Effects()
    effects.take_run(run_of(str(file)))
    assert effects.of(str(tmp_path / "link.gguf")) == effects.of(os.path.join(tmp_path, ".", "m.gguf"))
    assert len(effects.of(str(file))) == 1
    assert effects.of(None) == effects.of("other.gguf") == ()
    assert model_key("x" * 5000 + "/" + "y" * 5000).startswith("xxx")


def test_the_machines_rates_outlive_a_load_that_measures_none() -> None:
    effects = Effects()
    effects.take_run(run_of(RATED))
    effects.take_run(run_of(RATED, tp=2))
    info = effects.known(RATED, None)
    assert info is not None
    assert (info.tp, info.read_bytes_per_s) == (2, 1e9)


def test_the_table_marks_what_is_chosen_and_sets_speed_against_the_first_row() -> None:
    found = [effect(Choice("float32", "full", 1), tpot_s=0.01, n_same=127), effect(INT4), effect(
        Choice("bfloat16", "int8", 2), tpot_s=0.02
    )]  # fmt: skip
    table = effects_table(found, INT4)
    assert table.cells == (
        ("  fp32", "10.0 ms", "100 tok/s", "1.00x", "153.06 MB", "23.04 kB", "127/127", "0.0165"),
        ("▶ int4", "4.00 ms", "250 tok/s", "2.50x", "153.06 MB", "23.04 kB", "–", "–"),
        ("  bf16/int8 tp2", "20.0 ms", "50 tok/s", "0.50x", "153.06 MB ×2", "23.04 kB ×2", "–", "–"),
    )
    assert [row.title for row in table.rows] == ["float32", "int4", "bfloat16, int8 cache, tp 2"]
    narrow, page = laid_out(table, 49), laid_out(effects_table(found[:2], INT4), 78)  # right of 120, a page of 80
    assert narrow is not None
    assert [table.headings[i] for i in narrow.columns] == ["Format", "● TPOT p50", "Speedup", "● Bytes"]
    assert page is not None
    assert not page.left_out


def lines(turned: Turned, choice: Choice, measured: Effect | None = None, ahead: Expected | None = None) -> list[str]:
    info = msgspec.structs.replace(model(None, tokenizer=True), dtype="bfloat16", weight_bytes=269_000_000)
    plain = Expected(weight_bytes=153e6, token_bytes=12_960.0, full_token_bytes=23_040.0, tpot_s=0.0021)
    return list(choice_lines(choice, turned, ahead or plain, measured=measured, info=info))


def test_a_turned_dtype_says_predicted_plain_and_measured_with_a_dot() -> None:
    assert lines("dtype", INT4) == [
        "int4: 153.00 MB of weights (bfloat16 269.00 MB) · TPOT ≥ 2.10 ms predicted · f: measure its error",
        "int4: 153.00 MB of weights (bfloat16 269.00 MB) · TPOT ≥ 2.10 ms · f: measure its error",
        "int4: 153.00 MB of weights (bfloat16 269.00 MB) · TPOT ≥ 2.10 ms",
        "int4: 153.00 MB · TPOT ≥ 2.10 ms",
        "int4: 153.00 MB · ≥ 2.10 ms",
    ]
    known = lines("dtype", INT4, effect(INT4, n_same=126))
    assert known[0] == (
        "int4: ● 153.06 MB of weights (bfloat16 269.00 MB) · TPOT ≥ 2.10 ms predicted · ● 4.00 ms measured · ● 126 "
        "of 127 tokens as in float32, |Δlogit| 0.0165"
    )
    assert known[-1] == "int4: ● 153.06 MB · ≥ 2.10 ms · ● 4.00 ms · ● 126/127 same"
    assert [len(line) for line in known] == sorted((len(line) for line in known), reverse=True)


def test_a_turned_cache_says_its_bytes_a_token_and_ranks_their_share() -> None:
    eight = Choice("bfloat16", "int8", 1)
    assert lines("cache-kind", eight)[2] == "int8 cache: 12.96 kB per token (full 23.04 kB) · TPOT ≥ 2.10 ms"
    window = Choice("bfloat16", "window", 1)
    assert lines("cache-kind", window)[2] == "window cache: the same as full, no layer has a window · TPOT ≥ 2.10 ms"
    two = Choice("bfloat16", "full", 2)
    assert lines("tp", two)[2] == "tp 2: about 76.50 MB of weights per rank (153.00 MB on one) · TPOT ≥ 2.10 ms"
    assert lines("tp", Choice("bfloat16", "full", 1))[3] == "tp 1: 153.00 MB · TPOT ≥ 2.10 ms"


def test_packed_weights_on_ranks_are_refused_before_the_run() -> None:
    assert lines("tp", Choice("int4", "full", 2)) == [
        "✗ int4 weights run on one rank only: set tp to 1 or choose a floating-point dtype"
    ]


def test_nothing_known_is_nothing_said() -> None:
    assert lines("dtype", INT4, ahead=Expected())[0] == "int4 · f: measure its error"
    assert lines("tp", Choice("float32", "full", 2), ahead=Expected())[-1] == "tp 2"
    assert lines("cache-kind", Choice("float32", "int8", 1), ahead=Expected())[-1] == "int8 cache"


def test_expected_figures_by_hand() -> None:
    """1 GB/s; a step reads the packed matrices and 60 tokens of cache; the table of embeddings is bfloat16."""
    info = model(RATED, tokenizer=True)
    layer = 2 * 384 * 6 * 64 + 2 * 384 * 2 * 64 + 3 * 384 * 896
    head = 2048 * 384
    packed = 2 * layer * 20 / 32 + head * 34 / 32
    ahead = expected(INT4, RATED, info, prompt_tokens=50, new_tokens=20)
    assert ahead.weight_bytes == packed + 2 * head
    token_bytes = 2 * 2 * 2 * 64 * 2  # kept in bfloat16, which packed weights are multiplied in
    assert (ahead.token_bytes, ahead.full_token_bytes) == (token_bytes, token_bytes)
    assert ahead.tpot_s == pytest.approx((packed + 60 * token_bytes) / 1e9)
    assert expected(INT4, "never-loaded.gguf", None, prompt_tokens=1, new_tokens=1) == Expected()
    assert expected(INT4, "bundled", model(None, tokenizer=True), prompt_tokens=1, new_tokens=1).tpot_s is None
