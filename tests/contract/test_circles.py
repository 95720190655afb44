"""No circle of imports: what two modules both need stands in a third."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("assets", "calc", "engine", "tui")


def modules() -> dict[str, Path]:
    """Every module of the packages, and its file."""
    files = (file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports in `node`, those inside of functions too; not those for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from statements(child)


def imported(text: str, known: set[str]) -> set[str]:
    """The modules of `known` that a module with this source imports, at once or later."""
    found: set[str] = set()
    for each in statements(ast.parse(text)):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
        else:
            assert each.level == 0, "imports are absolute"
            names = {f"{each.module}.{alias.name}" for alias in each.names}
            found |= (names & known) or {str(each.module)}
    return found & known


def check(sources: dict[str, str], room: Callable[[str], str] = str) -> None:
    """Raise CycleError, which names the rooms of a circle; `room`: where a module is, by its name (itself)."""
    known, arrows = set(sources), defaultdict[str, set[str]](set)
    for name, text in sources.items():
        arrows[room(name)] |= {room(each) for each in imported(text, known)} - {room(name)}
    TopologicalSorter(arrows).prepare()


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {name: file.read_text(encoding="utf-8") for name, file in modules().items()}


def test_no_circle_of_imports(sources: dict[str, str]) -> None:
    assert len(sources) > 300
    check(sources)


def test_no_circle_of_folders(sources: dict[str, str]) -> None:
    """A family says what files of it hold, and the loading of files asks the families: these two are one room."""

    def folder(name: str) -> str:
        return ".".join(name.split(".")[:2]).replace("engine.families", "engine.weights")

    check(sources, folder)


def test_a_circle_through_a_function_is_found() -> None:
    late = "def late():\n    from b import thing"
    for_types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from b import thing"
    check({"a": for_types, "b": "import a"})
    with pytest.raises(CycleError):
        check({"a": late, "b": "import a"})
