"""Files for docs/accuracy.md: published configs, quantized checkpoints and GGUF headers, with their true values."""

from __future__ import annotations

import csv
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from bench.answers import answer
from bench.rivals import RIVALS, Pair, ask
from bench.tally import Tally
from tests.calc import gguf_headers

CONTEXT = 8192
GGUF_CONTEXT = 65_536
LARGEST = "B200"
HEADERS = Path(__file__).parents[1] / "tests" / "calc" / "sources" / "llama_cpp_headers.json"
LOGGED = {"prefix-gemma-4-31b-it-nvfp4": (None, 29.39 * 2**30)}
"""vllm-project/vllm#40291; the worked-out 28,663,195,552 bytes lack the embedding."""
CATALOG = re.compile(r"--model ([a-z][\w.-]+)(?= |$)")


@dataclass(frozen=True, slots=True)
class Case:
    """A file with the pair that is true of it; None where nothing is known or no such thing is asked."""

    path: Path
    truth: Pair
    exact: tuple[float, float] = (1e-6, 1e-6)
    name: str = ""
    """A catalog name that is asked in place of the file."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Cases that are asked alike. `first` and `second` name the pair's values, "" where one is not asked."""

    key: str
    first: str
    second: str
    context: int
    cases: list[Case]
    ours: Callable[[Path, Case], Pair]


@dataclass(frozen=True, slots=True)
class Row:
    """A tool's tallies of a kind."""

    tool: str
    kind: Kind
    first: Tally = field(default_factory=Tally)
    second: Tally = field(default_factory=Tally)
    missed: list[str] = field(default_factory=list)
    """Files whose second value is wrong or refused."""


def configs(data: Path) -> list[Case]:
    """Rows of oracle.csv: parameters, and cache bytes of a request of CONTEXT tokens at 2 bytes."""
    out = []
    with (data / "oracle.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            name = "kv_elements_per_token_full_attention_layers"
            if row["model_type"] == "falcon":  # transformers repeats its heads; servers do not
                name = "kv_formula_elements_per_token"
            window = int(row["window"] or 0)
            kept = int(row[name]) * CONTEXT
            kept += int(row["kv_elements_per_token_sliding_layers"]) * min(CONTEXT, window or CONTEXT)
            out.append(Case(data / "configs" / row["file"], (int(row["total_params"]), 2 * kept)))
    return out


def checkpoints(folder: Path) -> list[Case]:
    """Folders with an expected.json that says parameters or weight bytes; none where the folder is absent.

    A value that is wrong gives way to what a server's log says, to its digits.
    """
    out = []
    for path in sorted(folder.glob("*/expected.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        expected, file = said["expected"], path.with_name("config.json")
        if not isinstance(expected, dict) or not file.exists():
            continue
        truth = expected.get("parameters"), expected.get("weight_bytes")
        catalog = CATALOG.search(said["command"]) if path.parent.name.startswith("catalog") else None
        truth = LOGGED.get(path.parent.name, truth)
        if truth != (None, None):
            out.append(Case(file, truth, name=catalog[1] if catalog else ""))
    return out


@contextmanager
def gguf_files() -> Iterator[list[Case]]:
    """A small file of every architecture of llama.cpp: its weight bytes, and what llama.cpp keeps per slot."""
    with tempfile.TemporaryDirectory() as folder:
        lines = json.loads(HEADERS.read_text(encoding="utf-8"))
        yield [_gguf(Path(folder) / f"{arch}.gguf", arch, line) for arch, line in lines.items()]


def _gguf(path: Path, arch: str, line: dict[str, Any]) -> Case:
    shapes = dict(line["outer"])
    for i, kind in enumerate(line["order"]):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in line["kinds"][kind].items()}
    tensors = [(name, tuple(map(int, shape.split("x")))) for name, shape in shapes.items()]
    typed = [(name, shape, gguf_headers.F32 if len(shape) == 1 else gguf_headers.F16) for name, shape in tensors]
    weights = sum(prod(shape) * gguf_headers.BYTES_EACH[kind] for _, shape, kind in typed)
    sizes = [*(mib for _, _, mib in line["cache"]), line["state"]]
    kept = sum(sizes) * 2**20
    rounding = 0.005 * len(sizes) * 2**20 / kept if kept else 0.0
    path = gguf_headers.write_header(path, arch, line["meta"], typed, hole=True)
    return Case(path, (weights, kept or None), (1e-6, max(rounding, 1e-6)))


# kvscope, by its commands


def _said(words: list[str]) -> dict[str, Any] | None:
    done = answer([*words, "--json"], Path(tempfile.gettempdir()))
    return done["answer"] if done["code"] == 0 else None


def our_config(path: Path, case: Case) -> Pair:
    """`kvscope memory --model config.json --kv-format bf16`."""
    found = _said(["memory", "--model", str(path), "--context", str(CONTEXT), "--kv-format", "bf16"])
    return (found["parameters"]["total"], found["kv_bytes_per_request"]) if found else (None, None)


def our_checkpoint(path: Path, case: Case) -> Pair:
    """`kvscope memory --model FOLDER`: its config.json and what stands beside it."""
    found = _said(["memory", "--model", case.name or str(path.parent)])
    return (found["parameters"]["total"], found["weight_bytes"]) if found else (None, None)


def our_gguf(path: Path, case: Case) -> Pair:
    """`kvscope memory --model FILE.gguf`, and with `--policy llamacpp` what its one slot keeps."""
    words = ["memory", "--model", str(path), "--context", str(GGUF_CONTEXT)]
    plain, served = _said(words), _said([*words, "--policy", "llamacpp"])
    weights = plain["weight_bytes"] if plain else None
    return weights, served["engine"]["kv_bytes_per_request"] if served else None


def rows(kind: Kind, python: Path | None, versions: dict[str, str]) -> Iterator[Row]:
    """kvscope's row of a kind and those of rivals that take it."""
    ours = [kind.ours(case.path, case) for case in kind.cases]
    yield _row("**kvscope**", kind, ours)
    asks = [_question(kind, case) for case in kind.cases]
    for rival in RIVALS:
        if python is not None and rival.name in versions and kind.key in rival.kinds:
            yield _row(f"{rival.name} {versions[rival.name]}", kind, ask(python, rival.name, asks))


def _question(kind: Kind, case: Case) -> dict[str, Any]:
    name = case.path.stem.partition("__")[2].lower().removeprefix("meta-").removesuffix("-hf").removesuffix("-v0.3")
    return {"kind": kind.key, "path": str(case.path), "name": name, "context": kind.context, "gpu": LARGEST}


def _row(tool: str, kind: Kind, found: list[Pair]) -> Row:
    row = Row(tool, kind)
    for case, pair in zip(kind.cases, found, strict=True):
        for tally, said, true, exact in zip((row.first, row.second), pair, case.truth, case.exact, strict=True):
            if true is not None:
                tally.add(said, true, exact=exact)
        if row.second.wrong + row.second.refused > len(row.missed):
            row.missed.append(case.path.stem)
    return row
