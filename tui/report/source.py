"""Pieces of this program's own source code, read from its files, so that a report shows the code that runs."""

from __future__ import annotations

import ast
import textwrap
from importlib.util import find_spec
from pathlib import Path


def source_of(module: str, *names: str) -> str:
    """The definition of `names` (a class, then its method) in a module, which is read, not imported."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for name in names:
        node = next(each for each in ast.iter_child_nodes(node) if getattr(each, "name", None) == name)
    found = ast.get_source_segment(text, node, padded=True)
    assert found is not None
    return textwrap.dedent(found)
