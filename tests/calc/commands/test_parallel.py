"""memory --pp --ep --dp-attention --dcp: keys, numbers, words."""

import json

import pytest

from calc import __main__ as calc_main

STAGE = {
    "stage": int,
    "first_layer": int,
    "n_layers": int,
    "embedding": bool,
    "head": bool,
    "weight_bytes_per_gpu": int,
    "kv_bytes_per_request_per_gpu": int,
    "state_bytes_per_sequence_per_gpu": int,
    "max_batch": int,
    "missing_bytes": int,
}


def run(words, capsys):
    code = calc_main.main(["memory", *words])
    out = capsys.readouterr()
    return code, out.out, out.err


def answer(words, capsys):
    code, out, err = run([*words, "--json"], capsys)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_without_the_options_nothing_is_added(capsys):
    assert "parallel" not in answer([], capsys)


def test_stages_of_every_tp(capsys):
    shared = answer(["--pp", "3", "--tp", "1,2,3"], capsys)["parallel"]
    assert {key: shared[key] for key in ("pp", "ep", "dp_attention", "dcp")} == {
        "pp": 3,
        "ep": 1,
        "dp_attention": 1,
        "dcp": 1,
    }
    one, two, three = shared["plans"]
    assert (one["tp"], one["devices"], one["binding_stage"], one["fits"]) == (1, 3, 1, True)
    assert [stage["n_layers"] for stage in one["stages"]] == [11, 11, 10]
    assert {key: type(value) for key, value in one["stages"][0].items()} == STAGE
    assert one["max_batch"] == min(stage["max_batch"] for stage in one["stages"])
    assert [s["weight_bytes_per_gpu"] for s in two["stages"]][1] * 2 == (
        one["stages"][1]["weight_bytes_per_gpu"] + 11 * 2 * 2 * 4096
    )  # the norms are on both
    assert (three["problem"], three["stages"], three["binding_stage"]) == (
        "32 query heads are not divisible by 3",
        [],
        None,
    )


def test_the_rest_of_the_document_stays(capsys):
    plain, shared = answer([], capsys), answer(["--pp", "2"], capsys)
    assert {key: value for key, value in shared.items() if key != "parallel"} == plain


def test_shared_tokens_and_attention_groups(capsys):
    (plan,) = answer(["--dcp", "2", "--tp", "16"], capsys)["parallel"]["plans"]
    assert plan["stages"][0]["kv_bytes_per_request_per_gpu"] == 2**30 // 16
    (groups,) = answer(["--dp-attention", "2", "--tp", "4"], capsys)["parallel"]["plans"]
    assert groups["max_batch"] == 2 * groups["stages"][0]["max_batch"]
    (experts,) = answer(["--ep", "2", "--tp", "2"], capsys)["parallel"]["plans"]
    assert experts["problem"] == "the model has no routed experts to divide among devices"


@pytest.mark.parametrize("form", ["text", "csv", "md"])
def test_the_stage_that_decides_is_named(form, capsys):
    code, out, err = run(["--pp", "3", "--tp", "1,3", "--format", form], capsys)
    assert (code, err) == (0, "")
    assert "with the embedding, limits the batch" in out
    assert "32 query heads are not divisible by 3" in out


def test_what_is_missing_is_said(capsys):
    _, out, _ = run(["--pp", "2", "--tp", "1", "--gpu-memory", "8GB"], capsys)
    assert "short by 567.13 MB" in out


@pytest.mark.parametrize("option", ["--pp", "--ep", "--dp-attention", "--dcp"])
def test_numbers_below_one_are_refused(option, capsys):
    code, out, err = run([option, "0"], capsys)
    assert (code, out) == (2, "")
    assert "at least 1" in err
