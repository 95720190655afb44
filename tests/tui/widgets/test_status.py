"""The two lines under the title, of one device and of the devices that --tp asked for."""

from dataclasses import replace

import pytest

from calc.fit.memory import memory_report
from calc.model.storage import StorageFormat
from calc.model.study import Policy, Study
from calc.sources.catalog import find_device, find_model
from tui.form.state import initial_state
from tui.widgets.bar import memory_bar
from tui.widgets.status import StatusStrip


def study(*tps: int, policy: Policy = Policy.EQUAL_SPLIT) -> Study:
    """Llama-3.1-70B in 16 bits, which one H100 does not hold."""
    return Study(model=find_model("llama-3.1-70b"), device=find_device("h100-sxm"), tps=tps, policy=policy)


def lines(asked: Study, width: int) -> list[str]:
    strip = StatusStrip()
    strip.show(initial_state(asked), memory_report(asked))
    return strip.plain(width)


@pytest.mark.parametrize(
    ("tps", "devices", "answer"),
    [((1, 2, 4), "H100 SXM × 1", "MAX BATCH 0: does not fit"), ((4,), "H100 SXM × 4", "MAX BATCH 74")],
)
def test_the_answer_is_that_of_the_devices_beside_it(tps: tuple[int, ...], devices: str, answer: str) -> None:
    question, said = lines(study(*tps), 160)
    assert devices in question
    assert said.split("   ")[2] == answer


def test_several_devices_are_said_where_there_is_little_room() -> None:
    question, _ = lines(study(4), 80)
    assert "× 4" in question
    assert "× 1" not in lines(study(1), 80)[0]


def test_a_long_name_leaves_the_device_on_the_line() -> None:
    """At 70 columns there is room for the name and the device, but not for the context between them."""
    model = replace(find_model("llama-3.1-70b"), name="a-model-with-a-long-name")
    question, _ = lines(replace(study(1), model=model), 70)
    assert "a-model-with-a-long-name ▏ NVIDIA H100 SXM" in question


def test_a_degree_that_no_server_runs_does_not_fit_where_heads_stay_whole() -> None:
    assert "MAX BATCH 0: does not fit" in lines(study(3, policy=Policy.REPLICATED), 160)[1]


def test_the_bar_is_of_each_of_the_devices() -> None:
    words = memory_bar(memory_report(study(4)), 90).plain
    assert "weights 35.28 GB" in words  # 141.11 GB / 4
    assert "KV 49.66 GB = 74 × 671.09 MB" in words  # 74 x 2.684 GB / 4


def test_a_file_of_several_formats_is_named_after_the_first() -> None:
    mixed = StorageFormat(name="file (Q4_K, Q6_K, F32)", block_bytes=80, block_elems=100)
    asked = Study(model=find_model("llama-3.1-8b"), device=find_device("h100-sxm"), weight_format=mixed)
    assert " · file (Q4_K …) weights · " in lines(asked, 160)[0]
