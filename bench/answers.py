"""Record the answers of kvscope and compare two records, to prove that a refactoring changes no answer.

    python bench/answers.py record before.json [--configs DIR]
    python bench/answers.py compare before.json after.json [--words]

A record holds the exit code and the JSON of `memory`, `intensity` and `solve` for every catalog model (and every
config.json of DIR) under several policies, TP degrees and formats, and the text of every command's help. `compare`
lists the numbers that differ; with --words also the sentences that differ. The exit code is 1 if a number differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from calc.sources.catalog import models as catalog_models  # noqa: E402
from tui.headless import cli  # noqa: E402

MEMORY = (
    "--tp 1,2,3,4,8,16",
    "--tp 1,2,4,8 --context 128k --policy replicated --weight-format int4 --kv-format fp8",
    "--tp 8 --pp 2 --device h200-sxm",
    "--tp 1,4,8 --policy vllm --device h200-sxm",
    "--tp 8 --policy sglang --device h200-sxm --context 32k",
    "--tp 2 --policy transformers --device a100-80gb",
    "--tp 2 --policy llamacpp --device a100-80gb",
)
EDITED = ("--n-layers 3", "--hidden-size 8192", "--n-kv-heads 4", "--vocab-size 1000 --tied")
INTENSITY = ("", "--attention flash --context 8k --causal --softmax-flops 0 --weight-format fp8")
SOLVE = ("--find all --device l40s --tp 4", "--find all --device h200-sxm --tp 8 --policy vllm")
HELP = ("memory", "intensity", "solve", "sweep", "generate", "evaluate", "kv-evaluate", "benchmark", "batch", "formats",
        "report", "models", "devices")  # fmt: skip
REPORTS = ("llama-3-8b", "deepseek-v3", "qwen3-30b-a3b", "gpt2")


def questions(configs: Path | None) -> Iterator[list[str]]:
    """Every command line of a record."""
    models = [entry.spec.name for entry in catalog_models().values()]
    models += sorted(str(path) for path in configs.glob("*.json")) if configs is not None else []
    for model in models:
        for command, variants in (("memory", MEMORY), ("intensity", INTENSITY), ("solve", SOLVE)):
            yield from ([command, "--model", model, *options.split(), "--json"] for options in variants)
    for options in EDITED:
        yield from (["memory", "--model", model, *options.split(), "--json"] for model in ("llama-3-8b", "gemma-2-9b"))
    for model in REPORTS:
        yield ["report", "--model", model, "--no-measure", "--output", "{folder}/report.md"]
    yield ["--help"]
    yield from ([command, "--help"] for command in HELP)


def answer(argv: list[str], folder: Path) -> dict[str, Any]:
    """Exit code and output of one command line."""
    out, err = io.StringIO(), io.StringIO()
    argv = [word.replace("{folder}", str(folder)) for word in argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(argv)
        except SystemExit as end:
            code = int(end.code or 0)
    text = out.getvalue()
    if argv[0] == "report":
        text = (folder / "report.md").read_text()
    body = json.loads(text) if "--json" in argv and code == 0 else text + err.getvalue()
    return {"code": code, "answer": body}


def record(path: Path, configs: Path | None) -> None:
    """Write every answer to `path`."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        answers = {" ".join(argv): answer(argv, Path(folder)) for argv in questions(configs)}
    path.write_text(json.dumps(answers))
    print(f"{len(answers):,} answers in {path}")


def differences(before: Any, after: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Leaves that differ, with their path."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from differences(before.get(key, "(absent)"), after.get(key, "(absent)"), f"{where}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{where}[{i}]")
    elif before != after:
        yield where, before, after


def is_wording(where: str, before: Any, after: Any) -> bool:
    """Whether a difference is one of sentences: text in place of text, or notes that grew."""
    texts = isinstance(before, str) and isinstance(after, str) and "(absent)" not in (before, after)
    return texts or where.endswith(("notes", "observations"))


def compare(before: Path, after: Path, *, words: bool) -> int:
    """Print what differs; 1 where a number does."""
    old, new = json.loads(before.read_text()), json.loads(after.read_text())
    numbers = 0
    for question in dict.fromkeys([*old, *new]):
        for where, was, now in differences(old.get(question, "(absent)"), new.get(question, "(absent)")):
            wording = is_wording(where, was, now)
            numbers += not wording
            if words or not wording:
                print(f"{question}\n  {where or 'all'}: {str(was)[:300]}\n    -> {str(now)[:300]}")
    print(f"{numbers:,} numbers differ in {len(new):,} answers")
    return 1 if numbers else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("path", type=Path)
    recording.add_argument("--configs", type=Path, help="a folder of config.json files")
    comparing = commands.add_parser("compare")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--words", action="store_true", help="also where only sentences differ")
    args = parser.parse_args()
    if args.command == "record":
        record(args.path, args.configs)
        return 0
    return compare(args.before, args.after, words=args.words)


if __name__ == "__main__":
    sys.exit(main())
