"""calc.commands.documents: JSON holds the report's exact numbers, and only numbers that JSON can hold."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given

from calc.commands.documents import json_number, term_document
from calc.commands.intensity import intensity_document
from calc.commands.memory import memory_document
from calc.explain.terms import derive
from calc.fit.memory import equal_share, memory_report
from calc.intensity.attention import Attention
from calc.intensity.study import IntensityQuery, intensity_report
from calc.model.study import Policy, Study
from tests.calc.intensity.test_study import queries
from tests.calc.strategies import LLAMA, QUICK, device, read_text, studies

STUDY = Study(model=LLAMA, device=device())


def strict(document):
    """The document after a journey through strict JSON."""
    return json.loads(json.dumps(document, allow_nan=False))


@pytest.mark.parametrize(
    ("value", "number"), [(3, 3), (Fraction(4, 2), 2), (Fraction(1, 2), 0.5), (0.25, 0.25), (10**30, 10**30)]
)
def test_json_number(value, number):
    assert json_number(value) == number
    assert type(json_number(value)) is type(number)


def test_term_document():
    term = derive("Weights per GPU", equal_share, unit="B", weight_bytes=9, tp=2)
    assert term_document(term) == {
        "name": "Weights per GPU",
        "formula": "W / X",
        "substituted": "9 / 2",
        "value": 4.5,
        "unit": "B",
    }


def test_memory_of_llama():
    document = strict(memory_document(memory_report(STUDY)))
    assert document["parameters"] == {
        "total": 8_030_261_248,
        "active_per_token": 8_030_261_248,
        "components": {
            "embedding": 525_336_576,
            "attention": 1_342_177_280,
            "mlp": 5_637_144_576,
            "experts": 0,
            "norms": 266_240,
            "head": 525_336_576,
            "other": 0,
        },
        "encoders": None,
    }
    assert document["weight_bytes"] == 16_060_522_496
    assert document["kv_bytes_per_token"] == 131_072
    assert document["kv_bytes_per_request"] == 2**30
    assert (document["fits"], document["max_batch"]) == (True, 59)
    assert [row["max_batch"] for row in document["tp"]] == [59, 134, 283, 581]


@QUICK
@given(studies())
def test_memory_documents_agree_with_the_report(study):
    report = memory_report(study)
    document = strict(memory_document(report))
    assert sum(document["parameters"]["components"].values()) == document["parameters"]["total"]
    assert document["tp"] == document["tp_by_policy"][str(study.policy)]
    assert [row["tp"] for row in document["tp"]] == list(study.tps)
    assert document["kv_bytes_per_token"] == float(report.kv_bytes_per_token)
    assert type(document["kv_bytes_per_request"]) is type(document["weight_bytes"]) is int
    for step, term in zip(document["steps"], report.steps, strict=True):
        assert step["value"] == float(term.value)
        assert read_text(step["substituted"]) == term.value
    last = document["steps"][-1]
    if not document["fits"]:
        missing = document["weight_bytes"] + document["kv_bytes_per_request"] - document["device_memory_bytes"]
        assert (last["value"], last["unit"]) == (missing, "B")


def test_policy_chooses_the_rows():
    study = replace(STUDY, tps=(16,), policy=Policy.REPLICATED)
    document = memory_document(memory_report(study))
    assert document["policy"] == "replicated"
    assert document["tp"] == document["tp_by_policy"]["replicated"] != document["tp_by_policy"]["equal-split"]


@QUICK
@given(queries)
def test_intensity_documents_agree_with_the_report(query):
    report = intensity_report(query)
    document = strict(intensity_document(report))
    for name, cost in (("prefill", report.shown_prefill), ("decode", report.shown_decode)):
        phase = document[name]
        whole = (ceil(cost.flops), ceil(cost.bytes), cost.intensity)
        assert (phase["flops"], phase["bytes"], phase["intensity"]) == whole
        flops = sum(Fraction(step["flops"]) for step in phase["steps"])  # a part of a FLOP makes a step's a float
        assert phase["flops"] == pytest.approx(float(ceil(flops)), rel=1e-15, abs=0)
        moved = sum(Fraction(step["read_bytes"]) + Fraction(step["write_bytes"]) for step in phase["steps"])
        assert moved == pytest.approx(float(cost.bytes), rel=1e-12)
    for point in (*document["prefill_by_context"], document["prefill"], document["decode"]):
        assert type(point["flops"]) is type(point["bytes"]) is int
        rounded = 1 / point["bytes"] + 1 / point["flops"]
        assert point["intensity"] == pytest.approx(point["flops"] / point["bytes"], rel=rounded)
    assert [p["context"] for p in document["prefill_by_context"]] == list(query.contexts)
    assert [p["batch"] for p in document["decode_by_batch"]] == list(query.batches)
    assert len(document["observations"]) >= 7


def test_limit_is_null_where_there_is_none():
    query = IntensityQuery(model=LLAMA, device=device(), attention=Attention.FLASH)
    document = strict(intensity_document(intensity_report(query)))
    assert document["prefill"]["limit"] is None
    assert document["prefill"]["formula_limit"] is None
    assert document["ridge"] is None
    assert math.isfinite(document["decode"]["limit"])
