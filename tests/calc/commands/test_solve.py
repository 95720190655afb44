"""solve and sweep on the command line: keys and types, answers, files, refusals, progress."""

import csv
import io
import json
import os
import stat

import pytest

from calc import __main__ as calc_main
from calc.commands.solve import FINDS
from calc.commands.sweep import Progress, sweep_parser
from calc.errors import QuantityError
from calc.fit.sweep import COLUMNS
from calc.units import parse_counts


def run(words, capsys):
    code = calc_main.main(words)
    out = capsys.readouterr()
    return code, out.out, out.err


def answer(words, capsys):
    code, out, err = run([*words, "--json"], capsys)
    assert (code, err) == (0, "")
    return json.loads(out)


TOP = {
    "command": str,
    "schema": int,
    "model": str,
    "device": str,
    "device_memory_bytes": int,
    "context": int,
    "batch": int,
    "tp": int,
    "policy": str,
    "weight_format": str,
    "kv_format": str,
    "fits": bool,
    "missing_bytes": int,
    "shortage": str,
    "answers": dict,
    "advice": list,
    "notes": list,
}


# solve


def test_every_answer_at_once(capsys):
    document = answer(["solve"], capsys)
    assert {key: type(value) for key, value in document.items()} == TOP
    assert document["answers"].keys() == set(FINDS)
    assert document["answers"]["context"]["context"] == 487_819
    assert document["answers"]["batch"]["batch"] == 59
    assert document["answers"]["devices"]["devices"] == 1
    assert document["answers"]["device"][0].keys() == {
        "id",
        "name",
        "memory_bytes",
        "fits",
        "max_batch",
        "missing_bytes",
        "reason",
    }
    assert (document["fits"], document["missing_bytes"], document["advice"]) == (True, 0, [])


@pytest.mark.parametrize("find", FINDS)
@pytest.mark.parametrize("words", [[], ["--gpu-memory", "10GB"], ["--model", "mistral-7b-v0.1", "--batch", "300"]])
def test_one_answer_in_every_format(find, words, capsys):
    document = answer(["solve", "--find", find, *words], capsys)
    assert document["answers"].keys() == {find}
    for form in ("text", "csv", "md"):
        code, out, err = run(["solve", "--find", find, *words, "--format", form], capsys)
        assert (code, err) == (0, "")
        assert out.strip()


def test_what_does_not_fit_is_an_answer_with_what_to_change(capsys):
    document = answer(["solve", "--gpu-memory", "10GB", "--find", "batch"], capsys)
    assert (document["fits"], document["missing_bytes"]) == (False, 7_134_264_320)
    assert [step["change"] for step in document["advice"]] == ["weight-format", "tp", "device"]
    code, out, _ = run(["solve", "--gpu-memory", "10GB", "--find", "batch"], capsys)
    assert code == 0
    assert "7.13 GB (6.64 GiB) are missing for one request" in out
    assert "--weight-format q8_0" in out


def test_tensor_parallelism_and_policy(capsys):
    two = answer(["solve", "--tp", "2", "--find", "batch"], capsys)
    assert two["answers"]["batch"]["batch"] == 134
    three = answer(["solve", "--tp", "3", "--policy", "replicated"], capsys)
    assert three["fits"] is False
    assert "TP 3 cannot be served: 32 query heads are not divisible by 3." in three["notes"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["solve", "--find", "luck"], "luck"),
        (["solve", "--batch", "0"], "at least 1"),
        (["solve", "--gpu-memory", "80"], "80GiB"),
        (["solve", "--tp", "1,2"], "1,2"),
        (["sweep", "--contexts", "8..1"], "goes down"),
        (["sweep", "--contexts", "1:2"], "has a step but no range"),
        (["sweep", "--contexts", "1..1e12:1"], "more than 1,000,000 numbers"),
        (["sweep", "--contexts", "1..1e6:1", "--batches", "1..1e6:1"], "points are more than"),
        (["sweep", "--batches", "0..4"], "at least 1"),
        (["sweep", "--models", "no-such-model"], "no-such-model"),
        (["sweep", "--models", ","], "expected one or more names"),
        (["sweep", "--devices", "80"], "80"),
        (["sweep", "--devices", "80GB", "--gpu-memory", "80GB"], "cannot be combined"),
        (["sweep", "--kv-formats", "bf16,fp7"], "fp7"),
        (["sweep", "--contexts", "1..20000:1", "--format", "text"], "too many for a table"),
        (["sweep", "--output", "/no/such/folder/x.csv"], "cannot write /no/such/folder/x.csv"),
    ],
)
def test_refusals_are_one_sentence(words, said, capsys):
    code, out, err = run(words, capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


# sweep


def test_rows_as_csv_and_json(capsys):
    words = ["sweep", "--contexts", "4k,8Ki", "--batches", "1..3", "--devices", "80GB,a100-80gb", "--tp", "1,2"]
    code, out, err = run(words, capsys)
    assert (code, err) == (0, "")
    read = list(csv.DictReader(io.StringIO(out)))
    assert tuple(read[0]) == COLUMNS
    document = answer(words, capsys)
    assert document.keys() == {"command", "schema", "policy", "rows"}
    assert len(document["rows"]) == len(read) == 2 * 3 * 2 * 2
    assert [int(row["max_batch"]) for row in read] == [row["max_batch"] for row in document["rows"]]
    assert {type(document["rows"][0][name]) for name in ("tp", "kv_bytes", "free_bytes", "max_batch")} == {int}


def test_formats_and_models(capsys):
    words = ["sweep", "--models", "gpt2,llama-3-8b", "--weight-formats", "bf16,q4_k", "--kv-formats", "bf16,q8_0"]
    found = answer(words, capsys)["rows"]
    assert len({(row["model"], row["weight_format"], row["kv_format"]) for row in found}) == len(found) == 8
    assert [r["weight_bytes"] for r in found if r["weight_format"] == "q4_k"][-1] == 8_030_261_248 * 144 // 256


@pytest.mark.parametrize("form", ["text", "md"])
def test_a_short_sweep_as_a_table(form, capsys):
    code, out, _ = run(["sweep", "--batches", "1,64", "--format", form], capsys)
    assert code == 0
    assert "59" in out
    assert "no" in out


def test_a_file_is_written_whole(tmp_path, capsys):
    file = tmp_path / "sweep.csv"
    file.write_text("before")
    file.chmod(0o600)
    code, out, err = run(["sweep", "--batches", "1..8", "--output", str(file)], capsys)
    assert (code, out, err) == (0, "", f"wrote {file}: 4 rows\n")
    assert len(file.read_text().splitlines()) == 5
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["sweep.csv"]


def test_a_sweep_that_stops_leaves_the_file_as_it_was(tmp_path, capsys, monkeypatch):
    file = tmp_path / "sweep.csv"
    file.write_text("before")

    def interrupted(block):
        yield "half a row"
        raise KeyboardInterrupt

    monkeypatch.setattr("calc.fit.sweep.csv_rows", interrupted)
    assert run(["sweep", "--output", str(file)], capsys)[0] == 130
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == ["sweep.csv"]


def test_a_sweep_into_something_that_is_no_file(capsys):
    assert run(["sweep", "--output", os.devnull, "--quiet"], capsys) == (0, "", "")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8192", (8192,)),
        ("1..6", (1, 2, 4, 6)),
        ("1k..4k:1k", (1000, 2000, 3000, 4000)),
        ("1..6:2", (1, 3, 5, 6)),
        ("5..5:3", (5,)),
        ("4,1..8", (4, 1, 2, 8)),
    ],
)
def test_axes(text, values):
    assert parse_counts(text) == values


@pytest.mark.parametrize("text", ["", "1..", "..4", "a", "1..4:0", "1..4:-1", "4..1:1", "1.5"])
def test_axes_that_are_none(text):
    with pytest.raises(QuantityError):
        parse_counts(text)


def test_defaults_of_sweep():
    args = sweep_parser("kvscope sweep").parse_args([])
    assert (args.models, args.contexts, args.batches, args.tp, args.format) == (
        ("llama-3-8b",),
        (8192,),
        (1,),
        (1,),
        "csv",
    )


# Progress


class Points:
    def __init__(self, points):
        self.points = points


def test_progress_appears_after_a_second_and_is_wiped():
    times = iter([0.0, 0.5, 1.5, 1.55, 2.0])
    out = io.StringIO()
    progress = Progress(4_000_000, out, lambda: next(times))
    assert len(list(progress.follow(Points(1_000_000) for _ in range(4)))) == 4
    drawn = out.getvalue().split("\r")
    assert len(drawn) == 4  # nothing, at 1.5 s, at 2.0 s (1.55 s is too soon), wiped
    assert "sweep 2.0 million of 4.0 million rows, about 2 s left" in drawn[1]
    assert "4.0 million of 4.0 million rows" in drawn[2]
    assert drawn[3] == "\x1b[K"


def test_short_work_shows_no_progress():
    out = io.StringIO()
    list(Progress(1, out, lambda: 0.0).follow([Points(1)]))
    assert out.getvalue() == ""
