"""calc and engine call this machine's processor alike: what one measured is the other's device only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from calc.sources import machine as calc_machine
from engine import machine as engine_machine


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC 9R14\n", "AMD EPYC 9R14"),
        ("cpu model\t: MIPS 74Kc\n", "MIPS 74Kc"),
        ("model name\t:\nmodel name\t: second\n", "second"),
    ],
)
def test_one_name(tmp_path: Path, text: str, name: str) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert calc_machine.cpu_name(file) == engine_machine.cpu_name(file) == name


def test_one_name_without_a_file(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert calc_machine.cpu_name(missing) == engine_machine.cpu_name(missing)
    assert calc_machine.cpu_name() == engine_machine.cpu_name()
