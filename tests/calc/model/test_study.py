"""calc.model.study: what is studied is refused when a record is made, with the field's name."""

from dataclasses import replace

import pytest

from calc.errors import CalcError, SpecError
from calc.model.spec import field_names
from calc.model.study import Study
from tests.calc.strategies import H100, LLAMA


@pytest.mark.parametrize("memory", [0, -1, 80e9, True, "80GB", 10**18 + 1])
def test_device_memory_is_a_positive_whole_number_of_bytes(memory):
    with pytest.raises(SpecError) as caught:
        replace(H100, memory_bytes=memory)
    assert caught.value.field == "memory_bytes"


def test_ridge_is_peak_over_bandwidth_and_none_where_unknown():
    assert H100.ridge() == pytest.approx(295.34, abs=0.01)
    assert H100.ridge("fp8") is None
    assert replace(H100, bandwidth_bytes_per_s=None).ridge() is None


@pytest.mark.parametrize(
    ("field", "change"),
    [("context", {"context": 0}), ("context", {"context": 1.5}), ("tp", {"tps": ()}), ("tp", {"tps": (1, 0)})],
)
def test_study_names_the_bad_field(field, change):
    with pytest.raises(SpecError) as caught:
        Study(model=LLAMA, device=H100, **change)
    assert caught.value.field == field
    assert isinstance(caught.value, CalcError)


def test_defaults_are_the_assignment():
    study = Study(model=LLAMA, device=H100)
    assert (study.context, study.weight_format.name, study.kv_format.name, study.tps) == (
        8192,
        "bf16",
        "bf16",
        (1, 2, 4, 8),
    )
    assert field_names(Study)[:3] == ("model", "device", "context")
