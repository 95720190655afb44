"""`python -m engine`: options, documents, files, exit codes; one sentence for everything that is wrong."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from engine.__main__ import main, wait_briefly
from engine.commands import run as commands
from engine.commands.cli import parse, requests
from engine.commands.documents import generation_document, to_json
from engine.commands.run import ProgressLine, progress_text
from engine.commands.summary import generation_text
from engine.errors import OptionError
from engine.files import check_writable, write_whole
from engine.generation_events import GenerationFinished
from engine.measure.kinds import batch, benchmark, evaluate
from engine.measure.kinds.batch import Batch, BatchResult
from engine.measure.kinds.benchmark import Benchmark, BenchmarkResult
from engine.measure.kinds.evaluate import CaseResult, Evaluate, EvaluationResult
from engine.measure.measurement import plain_document
from engine.process.events import Generate
from engine.records import TO_THE_END, Progress
from engine.speculation import Drafted, Speculate
from engine.text import duration, table
from tests.engine import oracle
from tests.engine.reference import Reference
from tests.patience import PATIENCE_S
from tests.records import batch_row, benchmark_row, machine

ROOT = Path(__file__).parents[3]
STATE = oracle.random_state_dict()


ROWS = tuple(
    benchmark_row(*row, low=0.9, high=1.2, tpot_s=7.8e-05)
    for row in ((10, 0.00325, 0.0054), (100, 0.0037, 0.0129), (1000, 0.0096, 0.221))
)
MACHINE = machine("Some <CPU> & co")
RESULT = BenchmarkResult(
    model="two & layers", new_tokens=40, repeats=5, warmup=1, rows=ROWS, machine=MACHINE, notes=("A note.",)
)
BATCHES = BatchResult(
    model="m",
    context=64,
    new_tokens=16,
    repeats=5,
    ragged=True,
    rows=tuple(batch_row(*row, 56.0) for row in ((1, 0.010), (2, 0.0125), (8, 0.020))),
    prefill_tokens=256,
    prefill_s=0.5,
    machine=MACHINE,
    notes=("A note.",),
)
FINISHED = GenerationFinished(
    reason="length",
    prompt_ids=(5, 6),
    ids=(7, 8, 9),
    text="a b c",
    start_ns=1_000_000_000,
    token_times_ns=(1_250_000_000, 1_350_000_000, 1_450_000_000),
    kv_cache_bytes=4096,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.pt"
    torch.save({name: torch.from_numpy(values) for name, values in STATE.items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> str:
    ids = [3, 1, 4]
    item = {"input_ids": [ids], "expected_logits_no_cache": [oracle.logits(STATE, ids).tolist()]}
    path = tmp_path_factory.mktemp("cases") / "cases.json"
    path.write_text(json.dumps([item]))
    return str(path)


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """The one JSON document that a command prints, and nothing else."""
    assert main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert isinstance(printed, dict)
    return printed


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["--weights", "--model_state_dict", "--model-state-dict", "--model"])
@pytest.mark.parametrize("cases", ["--test_cases", "--test-cases", "--cases"])
@pytest.mark.parametrize(
    ("mode", "cached"),
    [
        (["--mode", "evaluate"], False),
        (["--evaluate"], False),
        (["--mode", "kv_evaluate"], True),
        (["--mode", "kv-evaluate"], True),
        (["--kv_evaluate"], True),
        (["--kv-evaluate"], True),
    ],
)
def test_the_assignments_invocation_and_its_aliases(mode: list[str], cached: bool, weights: str, cases: str) -> None:
    args = parse([*mode, weights, "w.pt", cases, "c.json"])
    assert requests(args) == [Evaluate(weights="w.pt", cases="c.json", dtype="float64", cached=cached)]


def test_benchmark_and_run_options() -> None:
    argv = shlex.split("--lengths 10,50 --new-tokens 4 --repeats 2 --warmup 0 --threads 1 --dtype float32 --weights m")
    expected = Benchmark(model="m", lengths=(10, 50), new_tokens=4, repeats=2, warmup=0, threads=1, dtype="float32")
    assert requests(parse(["--benchmark", *argv])) == [expected]
    assert requests(parse(["--mode", "benchmark"])) == [Benchmark()]
    run = requests(parse(["--mode", "run", "--weights", "m", "--cases", "c"]))
    assert run == [
        Evaluate(weights="m", cases="c"),
        Evaluate(weights="m", cases="c", cached=True),
        Benchmark(model="m"),
    ]


def test_batch_options() -> None:
    argv = shlex.split(
        "--batches 1..8,24 --context 32 --new-tokens 4 --repeats 2 --dtype int8 --equal --model m --tp 2"
    )
    expected = Batch(
        model="m", batches=(1, 2, 4, 8, 24), context=32, new_tokens=4, repeats=2, dtype="int8", ragged=False, tp=2
    )
    assert requests(parse(["--mode", "batch", *argv])) == [expected]
    assert requests(parse(["--mode", "batch"])) == [Batch()]


def test_generate_options(tmp_path: Path) -> None:
    argv = shlex.split("--max-new-tokens 3 --temperature 0.5 --top-k 4 --top-p 0.9 --seed 1 --no-cache")
    expected = Generate(
        prompt_ids=(1, 2), max_new_tokens=3, temperature=0.5, top_k=4, top_p=0.9, seed=1, use_cache=False
    )
    assert requests(parse(["--mode", "generate", "--prompt-ids", "1,2", *argv])) == [expected]
    (to_the_end,) = requests(parse(["--mode", "generate", "--prompt-ids", "1", "--max-new-tokens", "all"]))
    assert isinstance(to_the_end, Generate)
    assert to_the_end.max_new_tokens == TO_THE_END
    drafted = [Generate(prompt="a", speculate=Speculate(draft="m.gguf", tokens=5))]
    assert requests(parse(["--mode", "generate", "--prompt", "a", "--speculate", "m.gguf,5"])) == drafted
    file = tmp_path / "prompt.txt"
    file.write_text("Zoë\n", encoding="utf-8")
    assert requests(parse(["--mode", "generate", "--prompt-file", str(file)])) == [Generate(prompt="Zoë\n")]


BAD_WORDS = [
    ([], "choose a mode: serve, or --mode generate, evaluate"),
    (["--mode", "dance"], "'dance' is not a mode; the modes are generate"),
    (["--evaluate", "--benchmark"], "not allowed with"),
    (["--mode", "evaluate", "--nonsense"], "unrecognized arguments: --nonsense"),
    (["--mode", "benchmark", "--lengths", "10,x"], "'x' is not a whole number; write a list like 10,50,100"),
    (["--mode", "benchmark", "--lengths", "10,0"], "lengths must be a whole number from 1 to 1,000,000, not 0"),
    (["--mode", "benchmark", "--lengths", "-5"], "lengths|expected one argument"),
    (["--mode", "benchmark", "--repeats", "0"], "repeats must be a whole number from 1"),
    (["--mode", "benchmark", "--new-tokens", "1.5"], "invalid int value: '1.5'"),
    (["--mode", "benchmark", "--threads", "0"], "threads must be a whole number from 1"),
    (
        ["--mode", "benchmark", "--plot", "x.svg"],
        "plots are drawn by kvscope: run kvscope benchmark or kvscope batch or kvscope machine with --plot x.svg",
    ),
    (["--mode", "benchmark", "--output", "/no/such/folder/x.json"], "there is no folder /no/such/folder"),
    (["--mode", "batch", "--batches", "8..1"], "the range 8..1 does not go up from 1 or more"),
    (["--mode", "batch", "--batches", "2,2"], "the batch 2 is given twice"),
    (["--mode", "batch", "--batches", "5000"], "batches must be a whole number from 1 to 1,024, not 5,000"),
    (["--mode", "batch", "--context", "0"], "context must be a whole number from 1"),
    (["--mode", "generate", "--prompt-ids", "1..4"], "'1..4' is not a whole number"),
    (["--mode", "evaluate", "--dtype", "int3"], "invalid choice: 'int3'"),
    (["--mode", "evaluate", "--atol", "x"], "invalid float value: 'x'"),
    (["--mode", "generate"], "no prompt: give --prompt, --prompt-file or --prompt-ids"),
    (["--mode", "generate", "--prompt-file", "/no/such/file"], "cannot read /no/such/file: No such file"),
    (["--mode", "generate", "--prompt", "a", "--prompt-ids", "1"], "not allowed with argument --prompt"),
    (
        ["--mode", "generate", "--prompt", "a", "--temperature", "-1"],
        "temperature is -1.0; it must be 0 (greedy) or above",
    ),
    (["--mode", "generate", "--prompt", "a", "--top-p", "2"], "top_p is 2.0; it must be above 0 and at most 1"),
    (["--mode", "generate", "--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens is 0; it must be at least 1"),
    (["--mode", "generate", "--prompt", "a", "--stop", ""], "a stop text is empty; it would end every run at once"),
    (["serve", "--json"], "serve takes no options"),
    (["dance"], "invalid choice: 'dance'"),
]


def code_of(argv: list[str]) -> int | str | None:
    """Exit code, however it comes: returned, or raised by argparse."""
    try:
        return main(argv)
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize(("argv", "said"), BAD_WORDS, ids=lambda value: " ".join(value) if value else "nothing")
def test_bad_words_are_one_sentence_and_exit_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m engine: ")
    assert err.count("\n") == 1
    assert re.search(said if "|" in said else re.escape(said), err)


def test_a_prompt_file_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "prompt.bin"
    file.write_bytes(b"\xff\xfe\x00")
    assert main(["--mode", "generate", "--prompt-file", str(file)]) == 2
    assert "it is not UTF-8 text" in capsys.readouterr().err


def test_bad_words_are_answered_without_torch() -> None:
    code = f"""
import sys
from engine.__main__ import main
for argv in {[argv for argv, _ in BAD_WORDS]!r}:
    try: assert main(argv) == 2
    except SystemExit as left: assert left.code == 2
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--mode", "evaluate", "--weights", "/no/such/file.pt"], "/no/such/file.pt"),
        (["--mode", "evaluate", "--atol", "-1"], "atol"),
        (["--mode", "evaluate", "--cases", "/no/such/cases.json"], "/no/such/cases.json"),
        (["--mode", "generate", "--prompt-ids", "1,999999"], "token id 999999 is outside the vocabulary"),
        (["--mode", "generate", "--prompt", "a", "--temperature", "-1"], "temperature"),
        (["--mode", "generate", "--prompt", ""], "prompt is empty"),
        (["--mode", "generate", "--prompt", "a", "--speculate", "lookup", "--no-cache"], "speculation needs the KV"),
        (["--mode", "generate", "--prompt", "a", "--speculate", "/no/such.gguf"], "/no/such.gguf"),
        (["--mode", "evaluate", "--speculate", "lookup"], "evaluate takes no --speculate (see"),
        (["--mode", "evaluate", "--threads", "2"], "evaluate takes no --threads: it measures no time"),
        (["--mode", "kv_evaluate", "--compile", "auto"], "kv-evaluate takes no --compile: it checks the layers"),
        (["--mode", "evaluate", "--tp", "2"], "evaluate takes no --tp: it runs in one process"),
        (["--mode", "formats", "--dtype", "int8"], "formats takes no --dtype: it measures several formats, and"),
        (["--mode", "evaluate", "--lengths", "5"], "evaluate takes no --lengths (see the options of evaluate in"),
        (["--mode", "benchmark", "--prompt", "x"], "benchmark takes no --prompt (see"),
        (["--mode", "generate", "--prompt", "x", "--repeats", "1"], "generate takes no --repeats (see"),
        (["--mode", "run", "--formats", "int8"], "run takes no --formats (see"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *remarks, sentence = err.splitlines()  # where the compiled step is being built, a remark says so first
    assert said in sentence
    assert len(remarks) <= 1


# --- answers ----------------------------------------------------------------------------------------------

CASE_KEYS = [
    "case",
    "prompt_tokens",
    "passed",
    "max_abs_error",
    "cache_max_abs_error",
    "sequential_max_abs_error",
    "chunked_max_abs_error",
    "cache_max_abs_difference",
    "sequential_max_abs_difference",
    "chunked_max_abs_difference",
]
ROW_KEYS = [
    "prompt_tokens",
    "with_cache_s",
    "without_cache_s",
    "with_cache_min_s",
    "with_cache_max_s",
    "without_cache_min_s",
    "without_cache_max_s",
    "speedup",
    "prefill_s",
    "tpot_s",
    "kv_cache_bytes",
    "tpot_p50_s",
    "tpot_p95_s",
]


@pytest.mark.parametrize("mode", ["evaluate", "kv-evaluate"])
def test_evaluate_prints_the_contracts_document(
    mode: str, model: str, cases: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = document(capsys, "--mode", mode, "--weights", model, "--cases", cases)
    assert list(printed) == [
        "command", "weights", "dtype", "atol", "passed", "cases", "expected_decimals", "notes",
    ]  # fmt: skip
    assert (printed["command"], printed["weights"], printed["dtype"]) == (mode, model, "float64")
    assert printed["passed"] is True
    (case,) = printed["cases"]
    assert list(case) == CASE_KEYS
    assert case["max_abs_error"] < 1e-9
    assert (case["chunked_max_abs_error"] is None) == (mode == "evaluate")


def test_a_failed_check_exits_with_1(model: str, cases: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--mode", "evaluate", "--weights", model, "--cases", cases, "--dtype", "float32", "--atol", "0"]
    assert main(argv) == 1
    assert "FAILED: 0 of 1 cases within 0 in float32" in capsys.readouterr().out
    assert main([*argv, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_benchmark_prints_the_contracts_document(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split("--mode benchmark --lengths 2,5 --new-tokens 3 --repeats 2 --warmup 0")
    printed = document(capsys, *argv, "--weights", model, "--quiet")
    assert list(printed)[:5] == ["command", "model", "new_tokens", "rows", "machine"]
    assert [list(row) for row in printed["rows"]] == [[*ROW_KEYS, *benchmark.PREDICTED_KEYS]] * 2
    assert printed["rows"][0]["with_cache_predicted_s"] is None  # that is the calculator's
    assert [each["tokens"] for each in printed["own_times"]["prompts"]] == [8]
    assert [row["prompt_tokens"] for row in printed["rows"]] == [2, 5]
    assert printed["machine"]["dtype"] == "float64"  # as stored


def test_batch_prints_its_document(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = shlex.split("--mode batch --batches 1,2 --context 4 --new-tokens 2 --repeats 1 --quiet")
    printed = document(capsys, *argv, "--weights", model)
    assert list(printed) == [
        "command", "model", "context", "new_tokens", "repeats", "ragged", "rows", "prefill_tokens", "prefill_s",
        "machine", "notes", "bytes_per_s", "flops_per_s", "own_times",
    ]  # fmt: skip
    assert printed["own_times"]["steps"][0]["batch"] == 1
    assert [row["batch"] for row in printed["rows"]] == [1, 2]
    assert printed["rows"][0]["rise"] == 1
    assert printed["rows"][1]["tokens_per_s_predicted"] is None  # that is the calculator's


def test_batch_document_has_rises_over_the_smallest_batch() -> None:
    rows = batch.document(BATCHES, predicted_tokens_per_s=(100.0, 150.0, 500.0), bytes_per_s=1e9)["rows"]
    assert [row["rise"] for row in rows] == pytest.approx([1.0, 1.6, 4.0])
    assert [row["rise_predicted"] for row in rows] == [1.0, 1.5, 5.0]
    assert [row["tokens_per_s_predicted"] for row in rows] == [100.0, 150.0, 500.0]
    assert [row["step_predicted_s"] for row in rows] == [row["batch"] / row["tokens_per_s_predicted"] for row in rows]
    assert [row["ratio"] * row["step_predicted_s"] for row in rows] == pytest.approx([r["step_p50_s"] for r in rows])
    assert [row["why"] for row in rows] == [None] * 3
    assert list(rows[0])[:8] == [
        "batch", "context_tokens", "step_p50_s", "step_min_s", "step_max_s", "tokens_per_s", "kv_cache_bytes",
        "weight_bytes",
    ]  # fmt: skip


def test_generate_prints_the_contracts_document(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--mode", "generate", "--weights", model, "--prompt-ids", "3,1,4", "--max-new-tokens", "3"]
    printed = document(capsys, *argv, "--dtype", "float64")
    assert list(printed) == [
        "command",
        "model",
        "prompt_ids",
        "ids",
        "text",
        "finish_reason",
        "ttft_s",
        "tpot_s",
        "tokens_per_s",
        "token_times_ns",
        "kv_cache_bytes",
        "kv_cache_bytes_predicted",
        "ttft_predicted_s",
        "tpot_predicted_s",
        "ttft_ratio",
        "tpot_ratio",
        "ttft_least_s",
        "tpot_least_s",
        "why",
        "own_times",
        "speculation",
    ]
    assert printed["speculation"] is None
    ids = [3, 1, 4]
    for _ in range(3):
        ids.append(int(oracle.logits(STATE, ids)[-1].argmax()))
    assert printed["ids"] == ids[3:]
    assert (printed["model"], printed["text"], printed["finish_reason"]) == ("small.pt", None, "length")
    assert printed["ttft_s"] == printed["token_times_ns"][0] / 1e9


def test_generate_streams_ids_or_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--mode", "generate", "--weights", model, "--prompt-ids", "3,1,4", "--max-new-tokens", "3"]
    printed = set()
    for extra in ([], ["--no-stream"], ["--ids"], ["--quiet"]):
        assert main([*argv, *extra]) == 0
        out, err = capsys.readouterr()
        printed.add(out)
        assert ("tokens/s" in err) == (extra != ["--quiet"])
    assert len(printed) == 1
    assert re.fullmatch(r"\d+,\d+,\d+\n", printed.pop())
    text = set()
    for extra in ([], ["--no-stream"]):
        assert main(["--mode", "generate", "--prompt", "The king", "--max-new-tokens", "9", *extra]) == 0
        text.add(capsys.readouterr().out)
    assert len(text) == 1
    assert re.search("[a-z]{2}", text.pop())


def test_output_is_written_whole_and_stdout_stays_empty(
    model: str, cases: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "result.json"
    argv = ["--evaluate", "--weights", model, "--cases", cases, "--json", "--output", str(file)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"wrote {file}\n")
    assert json.loads(file.read_text())["passed"] is True
    assert os.listdir(tmp_path) == ["result.json"]


def test_run_answers_the_assignment_with_its_own_files(
    reference: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--model_state_dict", str(reference.weights)]
    argv += ["--test_cases", str(reference.cases), "--lengths", "10,200", "--repeats", "1"]
    printed = document(capsys, "--mode", "run", *argv)
    assert list(printed) == ["command", "evaluate", "kv_evaluate", "benchmark"]
    assert printed["evaluate"]["passed"] is True
    assert printed["kv_evaluate"]["passed"] is True
    assert len(printed["kv_evaluate"]["cases"]) == 5
    assert "random rows extend its table of 128" in printed["benchmark"]["notes"][0]


# --- documents and texts from records ---------------------------------------------------------------------


def test_documents_are_the_records() -> None:
    case = CaseResult(case=0, prompt_tokens=2, passed=False, max_abs_error=None)
    result = EvaluationResult(command="evaluate", weights="w", dtype="float64", atol=1e-4, passed=False, cases=(case,))
    assert plain_document(result)["cases"][0] == dict.fromkeys(CASE_KEYS) | {
        "case": 0,
        "prompt_tokens": 2,
        "passed": False,
    }
    printed = benchmark.document(RESULT)
    assert printed["command"] == "benchmark"
    assert printed["rows"][1]["with_cache_s"] == 0.0037
    assert (printed["repeats"], printed["warmup"], printed["notes"]) == (5, 1, ["A note."])
    assert json.loads(to_json(printed)) == printed


def test_generation_document_makes_rates_in_one_place() -> None:
    printed = generation_document(FINISHED, model="m", kv_cache_bytes_predicted=4096)
    assert printed["ttft_s"] == 0.25
    assert printed["tpot_s"] == 0.1
    assert printed["tokens_per_s"] == 10.0
    assert printed["token_times_ns"] == [250_000_000, 350_000_000, 450_000_000]
    assert (printed["kv_cache_bytes"], printed["kv_cache_bytes_predicted"]) == (4096, 4096)


def test_generation_document_says_what_came_of_drafting() -> None:
    drafted = Drafted(draft="lookup", tokens=4, by_step=(4, 0), accepted=(1, 0), drafting_ns=2_000_000)
    finished = msgspec.structs.replace(FINISHED, drafted=drafted)
    predicted = {"gain": 1.5, "tokens_per_step_predicted": 1.4}
    printed = generation_document(finished, model="m", speculation_predicted=predicted)["speculation"]
    assert printed == {
        "draft": "lookup", "tokens": 4, "steps": 2, "drafted": 4, "accepted": 1, "acceptance": 0.5,
        "acceptance_by_place": [1.0, 0.0], "tokens_per_step": 1.5, "drafting_s": 0.002, "reading_s": 0.0,
        "compiled": True,
        "tokens_per_step_predicted": 1.4, "tpot_without_predicted_s": None, "gain": 1.5, "gain_predicted": None,
        "pays_from_acceptance": None,
    }  # fmt: skip
    assert "accepted 1 of 4 drafted tokens, 1.50 tokens per step" in generation_text(finished)
    layers = msgspec.structs.replace(FINISHED, drafted=msgspec.structs.replace(drafted, compiled=False))
    assert "1.50 tokens per step (drafting gains nothing without the compiled step)" in generation_text(layers)
    nothing = msgspec.structs.replace(drafted, by_step=(0, 0), accepted=(0, 0))
    assert "nothing was drafted" in generation_text(msgspec.structs.replace(FINISHED, drafted=nothing))


def test_json_is_standard() -> None:
    with pytest.raises(ValueError, match="JSON"):
        to_json({"x": float("nan")})


def test_texts_for_people() -> None:
    text = benchmark.table(RESULT).text().splitlines()
    assert text[0].startswith("benchmark two & layers: the prompt and 40 new tokens, median of 5 repeats")
    assert re.search(r"^ +10 +3\.25 ms +2\.92 ms\.\.3\.90 ms +5\.40 ms .* 1\.66x .* 78\.0 us +- +40,000 B$", text[2])
    assert text[-1] == "A note."
    case = CaseResult(case=0, prompt_tokens=2, passed=False, max_abs_error=0.5, cache_max_abs_error=0.25)
    result = EvaluationResult(
        command="kv-evaluate", weights="w", dtype="float64", atol=1e-4, passed=False, cases=(case,)
    )
    assert "FAILED   5.00e-01    2.50e-01           -          -" in evaluate.table(result).text()
    assert evaluate.table(result).text().endswith("FAILED: 0 of 1 cases within 0.0001 in float64")
    assert generation_text(FINISHED) == (
        "3 tokens (length) · first after 250 ms · then 100 ms each · 10.0 tokens/s · KV cache 4,096 B"
    )


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.9999, "1.00 s"),
        (0.999, "999 ms"),
        (99.4, "99.4 s"),
        (99.6, "1 min 40 s"),
        (1e-6, "1.00 us"),
        (5e-9, "5.00 ns"),
        (3600.0, "60 min 0 s"),
    ],
)
def test_durations_keep_three_digits(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_tables_align_to_the_right() -> None:
    assert table(["a", "bbb"], [["10", "1"], ["7", "22"]]) == [" a  bbb", "10    1", " 7   22"]


# --- files ------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")
    file.chmod(0o640)
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path) == ["a"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OptionError, match="No space left on device"):
        write_whole(file, b"new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_device_is_written_not_replaced() -> None:
    write_whole(Path("/dev/null"), b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_folders_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="it is a folder"):
        check_writable(tmp_path)
    check_writable(tmp_path / "new")


# --- the terminal -----------------------------------------------------------------------------------------


class Terminal:
    """A stream that says what it is and remembers what was written."""

    def __init__(self, *, tty: bool) -> None:
        self.tty = tty
        self.text = ""

    def isatty(self) -> bool:
        return self.tty

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    event = Progress(stage="benchmark", done=3, total=60, elapsed_ns=1, remaining_s=12.0, detail="x")
    assert progress_text(event) == "benchmark 3 of 60, about 12.0 s left: x"
    load = Progress(stage="load", done=120_000_000, total=270_000_000, elapsed_ns=1, remaining_s=1.2, detail="m.gguf")
    assert progress_text(load) == "load 120 MB of 270 MB, about 1.20 s left: m.gguf"
    assert progress_text(Progress(stage="load", done=0, total=0, elapsed_ns=0, detail="m.gguf")) == "load: m.gguf"
    monkeypatch.setattr(commands, "_REDRAW_S", 0.0)
    for tty, enabled, expected in (
        (True, True, "benchmark takes about 12.0 s (60 runs)\n\rbenchmark 3 of 60"),
        (False, True, ""),
        (True, False, ""),
    ):
        terminal = Terminal(tty=tty)
        line = ProgressLine(terminal, enabled=enabled)  # type: ignore[arg-type]
        line.show(event)
        assert terminal.text.startswith(expected)
        assert bool(terminal.text) == bool(expected)
        line.clear()
        assert terminal.text.endswith("\r") or not expected


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_no_traceback() -> None:
    argv = [sys.executable, "-m", "engine", "--mode", "generate", "--prompt", "The", "--max-new-tokens", "2000"]
    with subprocess.Popen(
        [*argv, "--no-cache"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    *remarks, sentence = err.splitlines()  # where the compiled step is being built, a remark says so first
    assert sentence == "python -m engine: interrupted"
    assert len(remarks) <= 1


@pytest.mark.slow
def test_a_closed_pipe_is_no_error() -> None:
    argv = [sys.executable, "-m", "engine", "--mode", "generate", "--prompt", "The", "--max-new-tokens", "2000"]
    with subprocess.Popen([*argv, "--quiet"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(5)
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_threads_wait_briefly_unless_the_user_chose(given: dict[str, str], expected: dict[str, str]) -> None:
    environment = dict(given)
    wait_briefly(environment)
    assert environment == expected
