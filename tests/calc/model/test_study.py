"""calc.model.study: what is studied is refused when a record is made, with the field's name."""

from dataclasses import replace

import pytest

from calc.errors import CalcError, SpecError
from calc.model.spec import field_names, uniform
from calc.model.study import DeviceSpec, Study

LLAMA = uniform(
    name="llama-3-8b",
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    hidden_size=4096,
    intermediate_size=14_336,
    vocab_size=128_256,
)
DEVICE = DeviceSpec(
    name="H100",
    memory_bytes=80 * 10**9,
    reading="80 GB",
    bandwidth_bytes_per_s=3.35e12,
    peak_flops_per_s={"bf16": 989.4e12},
)


@pytest.mark.parametrize("memory", [0, -1, 80e9, True, "80GB", 10**18 + 1])
def test_device_memory_is_a_positive_whole_number_of_bytes(memory):
    with pytest.raises(SpecError) as caught:
        replace(DEVICE, memory_bytes=memory)
    assert caught.value.field == "memory_bytes"


def test_ridge_is_peak_over_bandwidth_and_none_where_unknown():
    assert DEVICE.ridge() == pytest.approx(295.34, abs=0.01)
    assert DEVICE.ridge("fp8") is None
    assert replace(DEVICE, bandwidth_bytes_per_s=None).ridge() is None


@pytest.mark.parametrize(
    ("field", "change"),
    [("context", {"context": 0}), ("context", {"context": 1.5}), ("tp", {"tps": ()}), ("tp", {"tps": (1, 0)})],
)
def test_study_names_the_bad_field(field, change):
    with pytest.raises(SpecError) as caught:
        Study(model=LLAMA, device=DEVICE, **change)
    assert caught.value.field == field
    assert isinstance(caught.value, CalcError)


def test_defaults_are_the_assignment():
    study = Study(model=LLAMA, device=DEVICE)
    assert (study.context, study.weight_format.name, study.kv_format.name, study.tps) == (
        8192,
        "bf16",
        "bf16",
        (1, 2, 4, 8),
    )
    assert field_names(Study)[:3] == ("model", "device", "context")
