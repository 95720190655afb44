"""calc.commands.cli: options into specs, refusals into sentences, answers into every format."""

from __future__ import annotations

import csv
import io
import json

import pytest

from calc.commands import cli
from calc.commands.cli import derived_head_dim, guarded, memory_parser, rendered, study_from
from calc.commands.tables import Table
from calc.errors import CalcError, SpecError
from calc.model.spec import Mlp, Policy

TABLE = Table(title="T", columns=("a", "b"), rows=(("x", "1,000"), ("y, z", "2")), numeric=frozenset({1}))


def study(*words):
    return study_from(memory_parser("kvscope").parse_args(words))


def test_defaults():
    plain = study()
    assert plain.model.name == "llama-3-8b"
    assert (plain.device.memory_bytes, plain.context, plain.tps) == (80 * 10**9, 8192, (1, 2, 4, 8))
    assert (plain.weight_format.name, plain.kv_format.name, plain.policy) == ("bf16", "bf16", Policy.EQUAL_SPLIT)


def test_overrides_change_what_they_say_and_mark_the_model():
    changed = study("--n-layers", "16", "--mlp", "plain", "--tied", "--vocab-size", "32k").model
    assert (changed.n_layers, changed.mlp, changed.tied, changed.vocab_size) == (16, Mlp.PLAIN, True, 32_000)
    assert changed.name == "llama-3-8b (edited)"
    assert study("--n-layers", "32", "--untied").model == study().model


def test_the_head_dimension_follows_the_hidden_size_unless_it_is_given():
    assert study("--hidden-size", "8192").model.head_dim == 256
    assert study("--hidden-size", "8192", "--head-dim", "128").model.head_dim == 128
    assert study("--n-heads", "64", "--n-kv-heads", "8").model.head_dim == 64
    assert study("--model", "gemma-7b", "--n-layers", "2").model.head_dim == 256  # not hidden / heads: kept
    with pytest.raises(SpecError, match="give the head dimension itself"):
        derived_head_dim(100, 3)


def test_sliding_layers_keep_their_share():
    assert study("--model", "mistral-7b-v0.1", "--n-layers", "10").model.n_sliding_layers == 10


def test_device_and_memory_together():
    catalog = study("--device", "a100-80gb").device
    assert catalog.bandwidth_bytes_per_s
    same = study("--device", "a100-80gb", "--gpu-memory", f"{catalog.memory_bytes}B").device
    assert same == catalog
    other = study("--device", "a100-80gb", "--gpu-memory", "70GB").device
    assert (other.memory_bytes, other.name) == (70 * 10**9, f"{catalog.name} (edited)")
    assert other.reading.startswith("70 GB read as 70 x 10^9 B")


@pytest.mark.parametrize(
    ("words", "each"),
    [
        (["--weight-bytes", "0.5"], (1, 2)),
        (["--weight-bytes", "9/16"], (9, 16)),
        (["--weight-format", "Q4_K"], (144, 256)),
        (["--weight-format", "bfloat16"], (2, 1)),
    ],
)
def test_weight_formats(words, each):
    stored = study(*words).weight_format
    assert stored.block_bytes * each[1] == stored.block_elems * each[0]


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
    monkeypatch.setattr(cli, "_encoding", lambda: "ascii")
    args = memory_parser("kvscope").parse_args(["--json"])
    assert cli.emit_json(args, {"formula": "2 · L"}) == 0
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
    monkeypatch.setattr(cli, "_leave_stdout", lambda: None)
    assert guarded(raising(error), "kvscope") == code
    assert capsys.readouterr().err == said


def test_a_slip_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()), "kvscope")


def test_output_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    args = memory_parser("kvscope").parse_args(["--output", str(folder / "missing" / "x.txt")])
    assert guarded(lambda: cli.emit(args, "text"), "kvscope") == 2
    assert "cannot write" in capsys.readouterr().err
    assert list(tmp_path.rglob("*")) == [folder]
