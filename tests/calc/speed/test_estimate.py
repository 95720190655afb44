"""Loads: what the engine does with the steps, what fits, and how the command says it."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from dataclasses import replace
from fractions import Fraction
from math import sqrt
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calc.__main__ import main
from calc.errors import CalcError
from calc.fit.degrees import ParallelSpec
from calc.fit.parallel import plan
from calc.model.storage import FORMATS, StorageFormat
from calc.model.stored_format import stored_format
from calc.model.study import Policy, Study
from calc.servers.records import ServerOptions
from calc.servers.refusals import runs_on
from calc.servers.report import server_report
from calc.sources.catalog import find_device, find_model
from calc.speed.asked import SERVERS, Asked, Load
from calc.speed.constants import constants_of
from calc.speed.crossings import cache_over_weights, compute_bound_batch, speculation_pays_to
from calc.speed.estimate import Room, estimate
from calc.speed.room import room_of
from calc.speed.spans import Span
from calc.speed.steps import Steps
from tests.calc.servers.test_checkpoint_formats import COMPRESSED, LLAMA
from tests.examples import examples

SHARED: tuple[dict[str, int], ...] = (
    {},
    {"tp": 4},
    {"tp": 2, "pp": 4},
    {"tp": 8, "ep": 8},
    {"tp": 8, "ep": 4, "dp_attention": 4},
)
ROOM = Room(10**6, 10**6)
QUICK = examples(30)
PUBLIC = Path(__file__).parents[4] / "shared" / "data" / "throughput_more.csv"


def study(model: str = "llama-3-8b", device: str = "h100-sxm") -> Study:
    return Study(model=find_model(model), device=find_device(device), policy=Policy.REPLICATED)


def test_a_static_batch_is_a_prompt_and_its_steps() -> None:
    asked = Asked(prompt_tokens=1024, new_tokens=256, count=16)
    steps, answer = Steps(study=study(), asked=asked), estimate(study(), asked, ROOM)
    assert answer.ttft is not None
    assert answer.tpot is not None
    assert answer.e2e is not None
    assert answer.output_rate
    assert answer.tpot.mid == pytest.approx(steps.decode(16, 1024 + 128).expected_s + 0.4e-3)
    assert answer.ttft.mid == pytest.approx(steps.prefill(16).expected_s + 0.4e-3)
    assert answer.e2e.mid == pytest.approx(answer.ttft.mid + 255 * answer.tpot.mid)
    assert answer.output_rate.mid == pytest.approx(16 * 256 / answer.e2e.mid)


def test_in_a_closed_loop_the_prompts_of_the_others_come_between_the_steps() -> None:
    asked = Asked(prompt_tokens=1024, new_tokens=256, load=Load.CLOSED, count=16)
    steps, answer = Steps(study=study(), asked=asked), estimate(study(), asked, ROOM)
    prompt_s, _ = steps.prefill_s()
    step_s = steps.decode(16, 1024 + 128).expected_s + 0.4e-3
    assert answer.tpot is not None
    assert answer.ttft is not None
    assert answer.tpot.mid == pytest.approx(step_s + 15 * prompt_s / 256)
    assert answer.ttft.mid == pytest.approx(prompt_s * (1 + 0.74 * sqrt(15)) + step_s)


def test_one_client_in_a_closed_loop_is_a_batch_of_one() -> None:
    asked = Asked(load=Load.CLOSED, count=1)
    alone, static = estimate(study(), asked, ROOM), estimate(study(), replace(asked, load=Load.STATIC), ROOM)
    assert alone.tpot is not None
    assert static.tpot is not None
    assert alone.tpot.mid == static.tpot.mid
    assert alone.ttft == static.ttft


def test_llama_cpp_multiplies_a_row_by_an_expert_without_filling_a_tile() -> None:
    """Mixtral on an M2 Max: 2 of 8 experts are read, and 16 rows of each would take longer to multiply than to read."""
    one = Steps(study=study("mixtral-8x7b", "apple-m2-max"), asked=Asked(engine="llamacpp")).decode(1, 1024)
    assert one.limited_by == "memory bandwidth"


def test_clients_beyond_what_fits_wait() -> None:
    asked = Asked(load=Load.CLOSED, count=100)
    assert estimate(study(), asked, Room(10, 20)).batch == 10


def test_a_static_batch_that_does_not_fit_has_no_times() -> None:
    answer = estimate(study(), Asked(count=100), Room(10, 20))
    assert (answer.fits, answer.ttft, answer.tpot, answer.limited_by) == (False, None, None, "capacity")
    assert answer.problem == "10 requests of 1,280 tokens (1,024 prompt, 256 generated) fit, not 100"


def test_a_pipeline_has_as_many_steps_under_way_as_stages() -> None:
    """16 requests on 2 stages: steps of 8, twice as many tokens; one request waits for both stages."""
    one, two = Asked(count=16), Asked(count=16, pp=2)
    eight = Steps(study=study(), asked=one).decode(8, 1024 + 128)
    found, alone = estimate(study(), two, ROOM), estimate(study(), replace(two, count=1), ROOM)
    whole = estimate(study(), replace(one, count=1), ROOM)
    assert found.tpot is not None
    assert alone.tpot is not None
    assert whole.tpot is not None
    link = constants_of(study().device).all_reduce[2]
    send_s = link.t0_s + 8 * 4096 * 2 / link.bytes_per_s
    assert found.tpot.mid == pytest.approx(eight.expected_s + send_s + 0.4e-3)
    assert alone.tpot.mid == pytest.approx(whole.tpot.mid + link.t0_s + 4096 * 2 / link.bytes_per_s)
    assert alone.tpot.bound == whole.tpot.bound


def test_chunks_follow_one_another_through_a_pipeline() -> None:
    """8 chunks on 4 stages: the first through all of them, then one per quarter of its time."""
    asked = Asked(prompt_tokens=4096, chunk=512, pp=4)
    steps = Steps(study=study(), asked=asked)
    assert steps.prefill_s()[0] == pytest.approx((1 + 7 / 4) * steps.prefill().expected_s + 8 * 0.4e-3)
    assert steps.prefill_s()[1] == Steps(study=study(), asked=Asked(prompt_tokens=4096)).prefill_s()[1] / 4


def test_the_cards_of_llama_cpp_share_a_prompt_and_wait_for_one_another_in_a_step() -> None:
    """Two cards: parts of 512 tokens go through one after the other; a step takes as long as on one, and a send."""
    one, two = (Steps(study=study(), asked=Asked(engine="llamacpp", prompt_tokens=4096, tp=n)) for n in (1, 2))
    assert two.step(8).expected_s == pytest.approx(one.step(8).expected_s, rel=0.01)
    assert two.chunk == 512
    assert two.prefill_s()[0] < 0.65 * one.prefill_s()[0]


def test_room_of_shared_devices_is_that_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """vLLM's own account with stages, SGLang's with groups; the plan of calc.fit.parallel for what neither counts."""
    asked = Asked(prompt_tokens=7000, new_tokens=1192, pp=2)
    said = server_report(replace(study(), context=8192, tps=(1,)), ServerOptions(pp=2))
    assert room_of(study(), asked).fitting == min(int(said.max_concurrency), said.max_num_seqs or 10**9)
    deepseek = study("deepseek-v3", "h200-sxm")
    groups = Asked(engine="sglang", tp=8, dp_attention=8, prompt_tokens=7000, new_tokens=1192)
    grouped = ServerOptions(engine="sglang", tp=8, dp_attention=8)
    said = server_report(replace(deepseek, context=8192, tps=(8,)), grouped)
    assert room_of(deepseek, groups).fitting == 8 * min(int(said.max_concurrency), said.max_num_seqs or 10**9)
    spread = Asked(engine="vllm", tp=8, ep=8, dp_attention=8, prompt_tokens=7000, new_tokens=1192)
    left = replace(deepseek.device, memory_bytes=int(deepseek.device.memory_bytes * 0.9) - 2 * 10**9)
    held = plan(replace(deepseek, device=left, context=8192), ParallelSpec(tp=8, ep=8, dp_attention=8)).max_batch
    assert room_of(deepseek, spread).fitting == held


def test_llama_cpp_and_transformers_have_their_own_account() -> None:
    """Llama-3-70B in Q4_K_M on two RTX 4090: 42.5 GB on 2 x 24.9, as `memory --policy llamacpp` counts it."""
    from calc.model.named import weights_as
    from calc.model.typed_formats import parse_weights

    model, named = find_model("llama-3-70b"), parse_weights("q4_k_m")
    assert not isinstance(named, StorageFormat)
    one = replace(study("llama-3-70b", "rtx-4090"), weight_format=weights_as(named, model))
    assert room_of(one, Asked(engine="llamacpp", tp=2)).fitting >= 1
    assert room_of(one, Asked(engine="llamacpp")).fitting == 0
    asked = Asked(engine="transformers", prompt_tokens=7000, new_tokens=1192)
    said = server_report(replace(study(), context=8192, tps=(1,)), ServerOptions(engine="transformers"))
    assert room_of(study(), asked).fitting == int(said.max_concurrency)


def test_sharing_tokens_makes_room_and_costs_an_exchange(capsys: pytest.CaptureFixture[str]) -> None:
    """One latent row for all heads: 8 H200 hold it 8 times, or each an eighth of the tokens."""
    words = ("--model", "deepseek-v3", "--device", "h200-sxm", "--tp", "8", "--prompt-tokens", "100k", "--batch", "4")
    alone, shared = answered(capsys, *words), answered(capsys, *words, "--dcp", "8")
    assert (alone["dcp"], shared["dcp"]) == (1, 8)
    names = [[one["name"] for one in found["decode"]["operators"]] for found in (alone, shared)]
    assert ["gather queries, sum results" in of for of in names] == [False, True]
    assert alone["prefill"]["flops"] == shared["prefill"]["flops"]
    study_of = study("deepseek-v3", "h200-sxm")
    rooms = [room_of(study_of, Asked(prompt_tokens=100_000, tp=8, dcp=dcp)).fitting for dcp in (1, 8)]
    assert rooms[1] == pytest.approx(8 * rooms[0], abs=8)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--model", "llama-3-8b", "--tp", "8", "--dcp", "2"), "each of the 8 KV heads is held once"),
        (("--model", "deepseek-v3.2", "--tp", "8", "--dcp", "2"), "if an indexer selects"),
        (("--model", "deepseek-v3", "--tp", "8", "--dcp", "3"), "--tp 8 is not divisible by --dcp 3"),
        (("--model", "deepseek-v3", "--tp", "8", "--dcp", "2", "--policy", "sglang"), "SGLang has no --dcp"),
    ],
)
def test_tokens_that_cannot_be_shared(words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--device", "h200-sxm", *words]) == 2
    assert reason in capsys.readouterr().err


def test_clients_that_wait_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "--device", "h100-sxm", "--concurrency", "1000")
    assert "346 of 1,000 clients fit at once. TTFT does not include the waiting time of the others." in str(
        found["assumptions"]
    )


def test_tensorrt_llm_starts_a_request_when_all_its_tokens_have_room() -> None:
    asked = Asked(engine="trtllm", load=Load.MAX, count=None, prompt_tokens=1000, new_tokens=9000)
    assert room_of(study(), asked).fitting == room_of(study(), replace(asked, load=Load.STATIC, count=1)).fitting


def test_speculation_divides_a_longer_step_by_the_tokens_it_gives() -> None:
    """4 drafted at 0.5: 1 + 0.5 + 0.25 + 0.125 + 0.0625 tokens per step."""
    asked = Asked(drafted=4, acceptance=Fraction(1, 2))
    assert asked.step_tokens == 1.9375
    fast, plain = estimate(study(), asked, ROOM), estimate(study(), Asked(), ROOM)
    assert fast.tpot is not None
    assert plain.tpot is not None
    assert plain.tpot.mid / 1.9375 < fast.tpot.mid < plain.tpot.mid


def test_a_draft_model_takes_a_step_for_every_token_it_drafts() -> None:
    """Llama-3-70B on 4 H100 drafted by Llama-3.2-1B: 5 steps of it and one of 6 tokens give 2.94 tokens at 0.7."""
    one, draft = study("llama-3.1-70b"), find_model("llama-3.2-1b")
    asked = Asked(tp=4, count=8, drafted=5, acceptance=Fraction(7, 10), draft=draft)
    small = Steps(
        study=replace(one, model=draft, weight_format=stored_format(draft) or FORMATS["bf16"]), asked=Asked(tp=4)
    )
    whole, answer = Steps(study=one, asked=replace(asked, draft=None)), estimate(one, asked, ROOM)
    drafting_s = 5 * small.decode(8, 1024 + 128).expected_s
    tokens = sum(0.7**i for i in range(6))
    assert answer.tpot is not None
    assert answer.ttft is not None
    assert answer.tpot.mid == pytest.approx((whole.decode(8, 1152).expected_s + 0.4e-3 + drafting_s) / tokens)
    assert answer.ttft.mid == pytest.approx(whole.prefill_s(8)[0] + small.prefill_s(8)[0])
    assert room_of(one, asked).fitting < room_of(one, replace(asked, draft=None)).fitting


def test_speculation_pays_until_its_tokens_come_later() -> None:
    one = study("llama-3.1-70b")
    asked = Asked(tp=4, drafted=5, acceptance=Fraction(7, 10), draft=find_model("llama-3.2-1b"))
    batch = speculation_pays_to(Steps(study=one, asked=asked), ROOM)
    assert batch is not None

    def gained_s(n: int) -> float:
        plain, fast = (estimate(one, replace(which, count=n), ROOM).tpot for which in (Asked(tp=4), asked))
        assert plain is not None
        assert fast is not None
        return float(plain.mid - fast.mid)

    assert gained_s(batch) > 0 >= gained_s(batch + 1)
    useless = replace(asked, acceptance=Fraction(1, 100))
    assert speculation_pays_to(Steps(study=one, asked=useless), ROOM) is None


def test_a_prefix_that_is_found_leaves_less_to_compute() -> None:
    whole = Steps(study=study(), asked=Asked(prompt_tokens=4000))
    half = Steps(study=study(), asked=Asked(prompt_tokens=4000, prefix_hit=Fraction(1, 2)))
    assert half.asked.computed_tokens == 2000
    assert 0.4 < half.prefill_s()[0] / whole.prefill_s()[0] < 0.65


def test_chunks_read_what_is_there_when_they_come() -> None:
    """65,536 tokens: chunks add starts, reads of weights and of the cache, but attention is the same triangle."""
    whole = Steps(study=study(), asked=Asked(prompt_tokens=65_536))
    chunked = replace(whole, asked=replace(whole.asked, chunk=2048))
    exact = sum(
        replace(chunked, asked=Asked(prompt_tokens=2048 * (i + 1), prefix_hit=Fraction(i, i + 1))).prefill_s()[0]
        for i in range(32)
    )
    assert chunked.prefill_s()[0] == pytest.approx(exact, rel=0.01)
    assert chunked.prefill_s()[1] == whole.prefill_s()[1]
    assert whole.prefill_s()[0] < chunked.prefill_s()[0] < 1.3 * whole.prefill_s()[0]


def test_the_operators_of_a_chunk_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--device", "h100-sxm", "--chunk", "256")
    prefill = answered(capsys, *words)["prefill"]
    assert isinstance(prefill, dict)
    assert prefill["tokens"] == 256
    assert main(["estimate", *words]) == 0
    assert "Prefill, operator by operator: one chunk of 256 of 1,024 tokens" in capsys.readouterr().out


def test_why_an_engine_does_not_start_is_said_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    long = ["--model", "qwen3-8b", "--device", "h200-sxm", "--prompt-tokens", "1M"]
    assert "longer than the model's context limit of 40,960 tokens" in str(answered(capsys, *long)["assumptions"])


@pytest.mark.parametrize("policy", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--model", "llama-3-70b", "--tp", "3"), "64 query heads are not divisible by"),
        (("--model", "mixtral-8x7b", "--tp", "16", "--ep", "16"), "16 devices for 8 experts"),
        (("--model", "qwen3-8b", "--tp", "4", "--ep", "4"), "the model has no routed experts to divide among devices"),
    ],
)
def test_devices_that_cannot_share_a_model_are_refused_by_every_engine(
    policy: str, words: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """That a plan is short of memory is an answer; that nobody could run it is not."""
    assert main(["estimate", "--device", "h100-sxm", "--policy", policy, *words]) == 2
    assert reason in capsys.readouterr().err


def test_vllm_loads_float32_in_16_bits(capsys: pytest.CaptureFixture[str]) -> None:
    """gpt2 is stored in float32; its head is read at 2 bytes per weight."""
    words = ("--model", "gpt2", "--device", "h100-sxm", "--prompt-tokens", "500")
    decode = answered(capsys, *words)["decode"]
    assert isinstance(decode, dict)
    head = next(one for one in decode["operators"] if one["name"] == "lm_head")
    assert head["bytes"] == pytest.approx(50_257 * 768 * 2, rel=0.01)


def test_crossings_are_where_the_sides_meet() -> None:
    """Cache over weights, a batch of one: 15.0 GB of weights read over 131,072 B per token, no queries."""
    steps = Steps(study=study(), asked=Asked())
    context = cache_over_weights(steps, 1)
    assert context is not None
    assert context == pytest.approx(7_504_924_672 * 2 / 131_072, rel=1e-3)
    assert compute_bound_batch(steps) is None  # every sequence reads 151 MB for 16 GFLOP
    short = Steps(study=study(), asked=Asked(prompt_tokens=16, new_tokens=16))
    batch = compute_bound_batch(short)
    assert batch is not None
    one, before = short.decode(batch, short.middle), short.decode(batch - 1, short.middle)
    assert one.compute_s >= one.memory_s
    assert before.compute_s < before.memory_s


def ordered(span: Span, *, rate: bool = False) -> bool:
    bound = span.high <= span.bound * (1 + 1e-9) if rate else span.bound <= span.low
    return bound and span.low <= span.mid <= span.high


@QUICK
@given(
    model=st.sampled_from(("llama-3-8b", "deepseek-v3", "gemma-3-27b", "qwen3-30b-a3b")),
    device=st.sampled_from(("h100-sxm", "rtx-4090", "mi300x", "apple-m2-ultra")),
    load=st.sampled_from(tuple(Load)),
    engine=st.sampled_from(("vllm", "sglang", "trtllm", "transformers", "llamacpp")),
    count=st.integers(1, 300),
    lengths=st.tuples(st.integers(1, 20_000), st.integers(1, 3_000)),
    shared=st.sampled_from(SHARED),
)
def test_bound_low_middle_high(
    model: str,
    device: str,
    load: Load,
    engine: str,
    count: int,
    lengths: tuple[int, int],
    shared: dict[str, int],
) -> None:
    assume(engine in SERVERS or set(shared) <= {"tp"})
    asked = Asked(
        engine=engine,
        load=load,
        count=None if load is Load.MAX else count,
        prompt_tokens=lengths[0],
        new_tokens=lengths[1],
        **shared,
    )
    one = study(model, device)
    assume(runs_on(engine, one.device))
    answer = estimate(one, asked, Room(400, 500))
    assert answer.ttft
    assert answer.tpot
    assert answer.e2e
    assert answer.output_rate
    assert answer.user_rate
    assert ordered(answer.ttft)
    assert ordered(answer.tpot)
    assert ordered(answer.e2e)
    assert ordered(answer.output_rate, rate=True)
    assert ordered(answer.user_rate, rate=True)


def test_room_is_the_servers_own_account() -> None:
    """vLLM on one H100: what `memory --policy vllm` says holds for requests of the asked length."""
    asked = Asked(prompt_tokens=7000, new_tokens=1192)
    one = replace(study(), context=8192, tps=(1,))
    assert room_of(study(), asked).fitting == int(server_report(one, ServerOptions()).max_concurrency)


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    assert main(["estimate", *words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(("word", "name"), [("vLLM", "vllm"), ("TensorRT-LLM", "trtllm"), ("llama.cpp", "llamacpp")])
def test_engines_are_known_however_they_are_written(word: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answered(capsys, "--device", "h100-sxm", "--policy", word)["policy"] == name


def test_an_engine_that_does_not_run_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "--device", "apple-m2-ultra")
    assert (found["fits"], found["tpot_s"]) == (False, None)
    assert found["assumptions"][0] == "vLLM does not run on Apple M2 Ultra (76-core)."  # type: ignore[index]


def test_the_document_has_the_keys_that_scripts_rely_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "h100-sxm", "--concurrency", "8", "--batches", "1..4", "--price", "2"]
    found = answered(capsys, *words, "--limit", "tpot=20ms")
    assert set(found) >= {
        "command", "schema", "model", "device", "tp", "pp", "ep", "load", "ttft_s", "tpot_s", "e2e_s",
        "output_tokens_per_s", "tokens_per_s_per_user", "limited_by", "fits", "prefill", "decode", "crossovers",
        "cost_per_million_output_tokens", "frontier", "calibration", "assumptions",
    }  # fmt: skip
    assert found["load"] == {"kind": "closed", "batch": 8, "asked": 8}
    assert set(found["calibration"]) >= {"family", "rows", "median_error", "band_covers"}  # type: ignore[call-overload]
    frontier = found["frontier"]
    assert isinstance(frontier, list)
    assert [row["batch"] for row in frontier] == [1, 2, 4]
    assert all(row["meets_limits"] for row in frontier)
    rate = found["output_tokens_per_s"]
    assert isinstance(rate, dict)
    assert found["cost_per_million_output_tokens"] == pytest.approx(2 / 3600 / rate["mid"] * 1e6)


def test_all_devices_are_paid_for(capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("--model", "qwen3-30b-a3b", "--device", "h100-sxm", "--tp", "4", "--ep", "4", "--pp", "2", "--batch", "8")
    found = answered(capsys, *shared, "--price", "3")
    assert (found["tp"], found["pp"], found["ep"], found["n_devices"]) == (4, 2, 4, 8)
    rate = found["output_tokens_per_s"]
    assert isinstance(rate, dict)
    assert found["cost_per_million_output_tokens"] == pytest.approx(8 * 3 / 3600 / rate["mid"] * 1e6)


def test_what_does_not_fit_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "--model", "llama-3-70b", "--device", "rtx-4090")
    assert (found["fits"], found["ttft_s"], found["limited_by"]) == (False, None, "capacity")
    assumptions = found["assumptions"]
    assert isinstance(assumptions, list)
    assert assumptions[0].startswith("no request of 1,280 tokens")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu-memory", "80GB"), "times need the bandwidth and the 16-bit peak of a device with 80 GB"),
        (("--device", "p40"), "16-bit peak of NVIDIA P40, which is not known: pick a device that has it"),
        (("--device", "h100-sxm", "--limit", "fast=1s"), "is not one of ttft, tpot and e2e"),
        (("--device", "h100-sxm", "--limit", "ttft=5"), "a time needs a unit"),
        (("--device", "h100-sxm", "--price", "-1"), "is not a price per device and hour"),
        (("--device", "h100-sxm", "--speculate", "4"), "is not K,A"),
        (("--device", "h100-sxm", "--draft", "llama-3.2-1b"), "--draft needs --speculate K,A"),
        (
            ("--device", "h100-sxm", "--policy", "ollama"),
            "'ollama' is not known: use vllm, sglang, trtllm",
        ),
        (
            ("--device", "h100-sxm", "--policy", "Equal Split"),
            "equal-split is a rule for memory, not an engine",
        ),
        (("--device", "h100-sxm", "--batch", "4", "--max-load"), "not allowed with"),
        (("--device", "h100-sxm", "--policy", "llamacpp", "--pp", "2"), "leave out --pp"),
        (("--device", "h100-sxm", "--policy", "transformers", "--ep", "2"), "transformers has no --ep"),
        (("--device", "h100-sxm", "--dp-attention", "2"), "--tp 1 is not divisible by --dp-attention 2"),
        (("--device", "h100-sxm", "--tp", "4", "--ep", "3"), "--tp 4 is not divisible by --ep 3"),
        (("--device", "h100-sxm", "--policy", "llamacpp", "--dp-attention", "2"), "llama.cpp has no --dp-attention"),
    ],
)
def test_bad_input_is_one_sentence(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(not PUBLIC.exists(), reason="the public measurements are not in this checkout")
def test_no_public_run_beats_the_bound() -> None:
    """Every third number of them: bench/estimates.py compares all."""
    found = importlib.util.spec_from_file_location("estimates", Path(__file__).parents[3] / "bench" / "estimates.py")
    assert found is not None
    assert found.loader is not None
    bench = importlib.util.module_from_spec(found)
    sys.modules["estimates"] = bench
    found.loader.exec_module(bench)
    rows = []
    with PUBLIC.open(encoding="utf-8") as file:
        for i, row in enumerate(csv.DictReader(file)):
            if i % 3 == 0:
                try:
                    rows.append(bench.compared(row))
                except (bench.LeftOut, CalcError):
                    continue
    assert len(rows) > 1000
    assert not [one for one in rows if one.beats_bound]


def test_a_checkpoints_own_cache_format_is_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Llama-3.1-8B in fp8 whose config says an fp8 cache: half of 131,072 B per token are read, weights as stored."""
    config = {**LLAMA, "quantization_config": COMPRESSED}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    words = ("--model", str(tmp_path), "--device", "h100-sxm", "--prompt-tokens", "8000", "--new-tokens", "2")

    def step(*more: str) -> dict[str, float]:
        decode = answered(capsys, *words, *more)["decode"]
        assert isinstance(decode, dict)
        return {one["name"]: one["bytes"] for one in decode["operators"]}

    own, told, old = step(), step("--kv-format", "bf16"), step("--engine-version", "0.14.1")
    queries = 2 * 32 * 32 * 128 * 2
    assert own["full attention"] == 8001 * 65_536 + queries
    assert told["full attention"] == old["full attention"] == 8001 * 131_072 + queries
    moved = 32 * 2 * (4096 + 28_672)
    assert own["mlp.gate_up_proj"] == pytest.approx(32 * 4096 * 28_672 + moved, rel=0.002), "one byte, and scales"
    assert own["lm_head"] == pytest.approx(2 * 128_256 * 4096, rel=0.001), "left in 16 bits"


def test_stored_weights_of_the_catalog_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """gpt-oss-20b: experts in mxfp4 (17 bytes for 32 weights), attention in 16 bits. 4 of 32 experts of a layer."""
    decode = answered(capsys, "--model", "gpt-oss-20b", "--device", "h100-sxm")["decode"]
    assert isinstance(decode, dict)
    moved = {one["name"]: one["bytes"] for one in decode["operators"]}
    up = 24 * 4 * (2 * 2880 * 2880) * 17 / 32
    assert moved["mlp.experts.0.gate_up_proj"] == pytest.approx(up, rel=0.01)
    assert moved["self_attn.o_proj"] == pytest.approx(24 * 4096 * 2880 * 2, rel=0.01)
