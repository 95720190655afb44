"""calc.commands.output: answers in every format, refusals as sentences, exit codes."""

from __future__ import annotations

import csv
import io
import json

import pytest

from calc.commands import output
from calc.commands.options import study_parser
from calc.commands.output import emit, emit_json, guarded, rendered
from calc.commands.tables import Table
from calc.errors import CalcError

TABLE = Table(title="T", columns=("a", "b"), rows=(("x", "1,000"), ("y, z", "2")), numeric=frozenset({1}))


@pytest.mark.parametrize("form", ["text", "csv", "md"])
def test_every_format_holds_every_cell(form):
    shown = rendered(form, "Heading", [TABLE, TABLE], ["One.", "Two."])
    assert shown.count("1,000") == 2
    assert ("Heading" in shown) is (form != "csv")
    assert ("Two." in shown) is (form != "csv")


def test_csv_can_be_read_back():
    assert list(csv.reader(io.StringIO(rendered("csv", "", [TABLE], [])))) == [
        ["a", "b"],
        ["x", "1,000"],
        ["y, z", "2"],
    ]


def test_json_in_an_ascii_pipe(monkeypatch, capsys):
    monkeypatch.setattr(output, "_encoding", lambda: "ascii")
    args = study_parser("kvscope").parse_args(["--json"])
    assert emit_json(args, {"formula": "2 · L"}) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"formula": "2 · L"}


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CalcError("no such thing"), 2, "kvscope: no such thing\n"),
        (OSError(28, "No space left on device"), 2, "kvscope: cannot write the answer: No space left on device\n"),
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_what_users_cause_is_a_sentence_and_an_exit_code(error, code, said, monkeypatch, capsys):
    monkeypatch.setattr(output, "_leave_stdout", lambda: None)
    assert guarded(raising(error), "kvscope") == code
    assert capsys.readouterr().err == said


def test_a_slip_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()), "kvscope")


def test_output_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    args = study_parser("kvscope").parse_args(["--output", str(folder / "missing" / "x.txt")])
    assert guarded(lambda: emit(args, "text"), "kvscope") == 2
    assert "cannot write" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [folder]
