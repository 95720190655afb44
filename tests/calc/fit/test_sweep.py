"""calc.fit.sweep: every value equals memory_report's, in 64 bits and beyond; rows can be read back."""

import csv
import io
import json
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc.__main__ import main
from calc.errors import SpecError
from calc.fit.axes import Axes
from calc.fit.costs import rank_costs
from calc.fit.memory import memory_report
from calc.fit.sweep import BLOCK_POINTS, COLUMNS, csv_rows, exact_type, json_rows, sweep, table_rows
from calc.model.storage import FORMATS
from calc.model.stored import StoredWeights
from calc.model.stored_format import stored_format
from calc.model.study import Policy, Study
from calc.servers.records import ServerOptions
from calc.servers.report import server_report
from calc.sources.catalog import find_device, find_model
from tests.calc.layered_models import layered_models
from tests.calc.strategies import LLAMA, device, formats, models
from tests.examples import examples

GB = 10**9


@st.composite
def all_axes(draw):
    few = st.lists(st.integers(1, 5000), min_size=1, max_size=3, unique=True).map(tuple)
    some_formats = st.lists(formats, min_size=1, max_size=2, unique=True).map(tuple)
    return Axes(
        models=(draw(models() | layered_models()),),
        devices=(device(draw(st.integers(1, 10**8))), device(draw(st.integers(1, 10**18)))),
        tps=draw(st.sampled_from([(1,), (2, 1), (1, 3, 8)])),
        contexts=draw(few),
        batches=draw(few),
        weight_formats=draw(some_formats),
        kv_formats=draw(some_formats),
        policy=draw(st.sampled_from(Policy)),
    )


def expected(axes):
    """Every row from memory_report, in exact fractions."""
    for model in axes.models:
        for dev in axes.devices:
            for tp in axes.tps:
                for weight in axes.weight_formats:
                    for kv in axes.kv_formats:
                        for context in axes.contexts:
                            study = Study(
                                model=model,
                                device=dev,
                                context=context,
                                weight_format=weight,
                                kv_format=kv,
                                tps=(tp,),
                                policy=axes.policy,
                            )
                            (row,) = memory_report(study).tp
                            request = Fraction(row.kv_bytes_per_request_per_gpu) + row.state_bytes_per_sequence_per_gpu
                            free = dev.memory_bytes - Fraction(row.steps[0].value)
                            for batch in axes.batches:
                                yield {
                                    "model": model.name,
                                    "device": dev.name,
                                    "tp": tp,
                                    "context": context,
                                    "batch": batch,
                                    "weight_format": weight.name,
                                    "kv_format": kv.name,
                                    "weight_bytes": row.weight_bytes_per_gpu,
                                    "kv_bytes": ceil(batch * request),
                                    "free_bytes": floor(free - batch * request),
                                    "fits": row.max_batch >= batch,
                                    "max_batch": row.max_batch,
                                }


def rows(axes):
    text = ",\n".join(line for block in sweep(axes) for line in json_rows(block))
    return json.loads(f"[{text}]")


@examples(40)
@given(all_axes())
def test_every_row_is_memory_reports(axes):
    assert rows(axes) == list(expected(axes))
    assert sum(block.points for block in sweep(axes)) == axes.points


def llama_axes(**changes):
    axes = Axes(
        models=(LLAMA,),
        devices=(device(),),
        tps=(1,),
        contexts=(8192,),
        batches=(1, 59, 60),
        weight_formats=(FORMATS["bf16"],),
        kv_formats=(FORMATS["bf16"],),
    )
    return replace(axes, **changes)


def test_by_hand():
    found = rows(llama_axes())
    assert [row["fits"] for row in found] == [True, True, False]
    assert [row["max_batch"] for row in found] == [59] * 3
    assert [row["free_bytes"] for row in found] == [80 * GB - 16_060_522_496 - n * 2**30 for n in (1, 59, 60)]
    assert found[0].keys() == set(COLUMNS)


def test_large_numbers_leave_64_bits_and_stay_exact():
    axes = llama_axes(contexts=(10**12, 8192), batches=(10**12, 3), devices=(device(10**18),))
    assert rows(axes) == list(expected(axes))
    (costs,) = rank_costs(Study(model=LLAMA, device=device(), tps=(1,)))
    assert exact_type(costs, 80 * GB, 10**6, 10**4) is np.int64
    assert exact_type(costs, 80 * GB, 10**12, 10**12) is object
    assert exact_type(costs, 80 * GB, 2**40, 2**5 - 1) is object  # 2^17 bytes per token x 2^40 tokens x 2^5 = 2^62
    assert exact_type(costs, 80 * GB, 2**40 - 1, 2**5 - 1) is np.int64


@given(st.integers(1, 10**12), st.integers(1, 10**12), st.sampled_from(sorted(FORMATS)), st.sampled_from([1, 3, 8]))
@examples(100)
def test_no_value_overflows(context, batch, fmt, tp):
    axes = llama_axes(contexts=(context, 1), batches=(batch, 1), kv_formats=(FORMATS[fmt],), tps=(tp,))
    assert rows(axes) == list(expected(axes))


def test_blocks_are_bounded_and_hold_every_point_once():
    contexts, batches = tuple(range(1, 3001)), tuple(range(1, 201))
    blocks = list(sweep(llama_axes(contexts=contexts, batches=batches)))
    assert len(blocks) > 1
    assert all(block.points <= BLOCK_POINTS for block in blocks)
    assert np.concatenate([block.contexts for block in blocks]).tolist() == list(contexts)
    wide = list(sweep(llama_axes(batches=tuple(range(1, BLOCK_POINTS + 2)))))
    assert [block.points for block in wide] == [BLOCK_POINTS, 1]


def test_csv_rows_say_what_json_rows_say():
    axes = llama_axes(models=(replace(LLAMA, name='odd, "quoted"'), LLAMA), contexts=(1, 8192))
    text = "".join(line for block in sweep(axes) for line in csv_rows(block))
    read = [dict(zip(COLUMNS, cells, strict=True)) for cells in csv.reader(io.StringIO(text))]
    assert [{k: json.dumps(v).strip('"') for k, v in row.items() if k != "model"} for row in rows(axes)] == [
        {k: v for k, v in row.items() if k != "model"} for row in read
    ]
    assert [row["model"] for row in read] == [row["model"] for row in rows(axes)]


def test_a_table_for_people():
    cells = [row for block in sweep(llama_axes()) for row in table_rows(block)]
    assert cells[0] == (
        "llama-3-8b",
        "test device",
        "1",
        "8,192",
        "1",
        "bf16",
        "bf16",
        "16,060,522,496",
        "1,073,741,824",
        "62,865,735,680",
        "yes",
        "59",
    )
    assert cells[2][9:] == ("-485,031,936", "no", "59")


def test_what_no_server_could_run_fits_nowhere_in_whole_heads():
    (row,) = rows(llama_axes(tps=(3,), batches=(1,), policy=Policy.REPLICATED))
    assert (row["fits"], row["max_batch"]) == (False, 0)
    (row,) = rows(llama_axes(tps=(3,), batches=(1,)))
    assert row["max_batch"] == (240 * GB - 16_060_522_496) // 2**30


def test_weights_as_a_checkpoint_stores_them():
    stored = StoredWeights(name="int4 in a file", split_bytes=5 * GB, kv_bytes=GB, whole_bytes=GB + 7)
    axes = llama_axes(models=(replace(LLAMA, stored=stored),), tps=(1, 8), policy=Policy.REPLICATED)
    as_stored = replace(axes, weight_formats=(stored_format(axes.models[0]),))
    assert rows(replace(axes, weight_formats=(None,))) == rows(as_stored) == list(expected(as_stored))
    (study_format,) = as_stored.weight_formats
    study = Study(model=axes.models[0], device=device(), weight_format=study_format, policy=Policy.REPLICATED)
    (costs,) = rank_costs(study, (8,))
    assert (costs.weight_num, costs.weight_den) == (GB * 6 // 8 + GB + 7, 1)
    assert exact_type(costs, 80 * GB, 10**6, 10**4) is np.int64  # an odd size of the weights costs no speed


@pytest.mark.parametrize("name", ["contexts", "batches", "tps"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(SpecError, match=name):
        llama_axes(**{name: (1, 0)})


# As a server counts


def test_a_sweep_of_a_server_is_its_reports(capsys):
    words = ["sweep", "--policy", "vLLM", "--devices", "h100-sxm,rtx-3090", "--tp", "1,3,2", "--batches", "1,64"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["device"], row["tp"]) for row in found} == {
        (name, tp) for name in ("NVIDIA H100 SXM", "NVIDIA RTX 3090") for tp in (1, 2)
    }
    for row in found:
        study = Study(model=find_model("llama-3-8b"), device=find_device(row["device"]), policy=Policy.REPLICATED)
        report = server_report(study, ServerOptions(tp=row["tp"]))
        assert row["max_batch"] == report.requests
        assert row["fits"] is (row["batch"] <= report.requests)
        assert row["free_bytes"] == report.kv_pool_bytes - row["batch"] * report.kv_request_bytes


def test_a_sweep_that_a_server_refuses_whole(capsys):
    assert main(["sweep", "--policy", "vllm", "--tp", "3"]) == 2
    out = capsys.readouterr()
    assert (out.out, "32 query heads are not divisible by TP 3" in out.err) == ("", True)
    assert main(["sweep", "--policy", "vllm", "--contexts", "1..200000:1"]) == 2
    assert "200,000 server reports" in capsys.readouterr().err


def test_a_sweep_of_llama_cpp_counts_what_is_left(capsys):
    words = ["sweep", "--policy", "llama.cpp", "--devices", "rtx-4090", "--batches", "1,4,12", "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)["rows"]
    assert [row["fits"] for row in found] == [row["free_bytes"] >= 0 for row in found] == [True, True, False]
