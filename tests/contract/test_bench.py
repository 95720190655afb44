"""The scripts of bench/ import what is there: they run seldom, and a name that moved would break them unseen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.contract.test_circles import ROOT, modules, statements


def defined(file: Path) -> set[str]:
    """Names that a module has at its top level, imported ones among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def missing(text: str, known: dict[str, Path]) -> Iterator[str]:
    """What a script with this source imports from the packages, and they do not have."""
    packages = {name.partition(".")[0] for name in known}
    for each in statements(ast.parse(text)):
        if not isinstance(each, ast.ImportFrom) or str(each.module).partition(".")[0] not in packages:
            continue
        names = defined(known[str(each.module)]) if each.module in known else set()
        for alias in each.names:
            if alias.name not in names and f"{each.module}.{alias.name}" not in known:
                yield f"{each.module}.{alias.name}"


def test_scripts_import_what_is_there() -> None:
    known = modules()
    scripts = sorted((ROOT / "bench").glob("*.py"))
    assert len(scripts) > 20
    assert {file.name: lost for file in scripts if (lost := [*missing(file.read_text(encoding="utf-8"), known)])} == {}


def test_a_name_that_is_gone_is_found() -> None:
    known = modules()
    text = "from calc.units import MAX_COUNT, gone\nfrom calc.nowhere import one\nfrom calc import units\n"
    assert [*missing(text, known)] == ["calc.units.gone", "calc.nowhere.one"]
