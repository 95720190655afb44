"""The accuracy of kvscope on real models, files, servers and questions, compared with calculators from PyPI.

    python bench/accuracy.py [--data ../shared/data] [--cases ../shared/cases/calc] [--rivals PYTHON] [--date DAY]

Writes docs/accuracy.md. `--rivals` is the interpreter of a virtual environment that has the tools of bench/rivals.py.
They run offline; a tool that cannot answer from a file counts as refusing. The numbers do not depend on the machine.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.accuracy_files import (  # noqa: E402
    CONTEXT,
    GGUF_CONTEXT,
    Case,
    Kind,
    Row,
    checkpoints,
    configs,
    gguf_files,
    our_checkpoint,
    our_config,
    our_gguf,
    rows,
)
from bench.accuracy_servers import (  # noqa: E402
    banded,
    distinct,
    error_rows,
    file_pairs,
    fitted_words,
    given_pool,
    log_tallies,
    pools,
    run_errors,
)
from bench.questions import Question, Verdict, answered  # noqa: E402
from bench.rivals import RIVALS, installed  # noqa: E402
from bench.server_logs import LogCase, RunCase, run_cases, startup_cases  # noqa: E402
from bench.tally import HEAD, Tally, table  # noqa: E402
from calc.servers.records import ServerReport  # noqa: E402
from calc.servers.report import server_report  # noqa: E402
from calc.servers.vllm_budget import SAMPLER_WORDS  # noqa: E402

OURS = "**kvscope**"
SHARED = ROOT.parent / "shared"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)


def kinds_of(data: Path, cases: Path, gguf: list[Case]) -> list[Kind]:
    """What files are asked: published configs, checkpoints, GGUF headers."""
    return [
        Kind("config", "parameters", "cache", CONTEXT, configs(data), our_config),
        Kind(
            "checkpoint", "parameters of later configs", "checkpoint bytes", CONTEXT, checkpoints(cases), our_checkpoint
        ),
        Kind("gguf", "GGUF bytes", "GGUF cache", GGUF_CONTEXT, gguf, our_gguf),
    ]


def summary(found: list[Row], served: dict[str, tuple[Tally, Tally]]) -> str:
    """A row per tool, a column per kind."""
    columns = list(dict.fromkeys(name for row in found for name in (row.kind.first, row.kind.second)))
    cells: dict[str, dict[str, str]] = {row.tool: {} for row in found}
    for row in found:
        cells[row.tool] |= {row.kind.first: row.first.short(), row.kind.second: row.second.short()}
    for tool, (pool, _) in served.items():
        cells[tool]["pool of a server"] = pool.short()
    columns.append("pool of a server")
    return table(["tool", *columns], ([tool, *(own.get(name, "–") for name in columns)] for tool, own in cells.items()))


def question_counts(found: list[Question]) -> str:
    """How many questions and values are answered how."""
    whole = [question.verdict for question in found]
    values = [one.verdict for question in found for one in question.checked]
    named = (("questions, by their worst value", whole), ("values", values))
    lines = [[name, *(str(own.count(verdict)) for verdict in Verdict)] for name, own in named]
    return table(["kvscope", *(verdict.words for verdict in Verdict)], lines)


def wrong_ones(found: list[Question]) -> str:
    """Which questions are wrong, and why."""
    wrong = [question for question in found if question.verdict >= Verdict.WRONG]
    return bullets(f"**{question.id}** is {question.verdict.words}: {question.cause}" for question in wrong)


def missed(found: list[Row]) -> str:
    """Files that kvscope gets wrong or refuses."""
    own = [(row.kind.second, row.missed) for row in found if row.tool == OURS and row.missed]
    return bullets(f"**{name}** wrong or refused: {', '.join(names)}." for name, names in own)


def question_table(found: list[Question]) -> str:
    """A line per question."""
    lines = [f"| {question.id} | {question.text} | {question.verdict.words} |" for question in found]
    return "\n".join(["|  | question | kvscope |", "| --- | --- | --- |", *lines])


def question_text(question: Question) -> str:
    """A question with its values and the commands that repeat it."""
    lines = [f"**{question.id}, {question.verdict.words}.** {question.text} ({question.source})"]
    lines += [f"- {one.what}: {one.ours}; right: {one.right} ({one.verdict.words})" for one in question.checked]
    lines += [f"- {question.note}"] if question.note else []
    lines += ["", "```sh", *(f"kvscope {command}" for command in question.commands), "```"]
    return "\n".join([lines[0], "", *lines[1:]])


def details(found: list[Row], kind: Kind) -> str:
    """Both tables of a kind."""
    own = [row for row in found if row.kind is kind]
    out = []
    for name, tallies in ((kind.first, [row.first for row in own]), (kind.second, [row.second for row in own])):
        pairs = zip(own, tallies, strict=True)
        lines = [[row.tool, *tally.cells()] for row, tally in pairs if tally.answered or row.tool == OURS]
        out.append(table([name, *HEAD], lines))
    return "\n\n".join(out)


@dataclass(frozen=True)
class Findings:
    """Everything that the page tells, found before a line of it is written."""

    day: str
    versions: dict[str, str]
    kinds: list[Kind]
    files: list[Row]
    runs: list[RunCase]
    logs: list[LogCase]
    served: dict[str, tuple[Tally, Tally]]
    n_served: int
    asked: list[Question]


def findings(data: Path, cases: Path, python: Path | None, day: str) -> Findings:
    """Ask kvscope and the tools of `python` on every file, log and question."""
    versions = installed(python)
    with gguf_files() as gguf:
        kinds = kinds_of(data, cases, gguf)
        files = [row for kind in kinds for row in rows(kind, python, versions)]
    runs, logs = run_cases(data / "vllm_h100_runs.csv"), startup_cases(data / "server_startup.csv")
    pairs = file_pairs(data, runs)
    served = {OURS: pools(pairs, None, None)}
    served |= {
        f"{rival.name} {versions[rival.name]}": pools(pairs, python, rival)
        for rival in RIVALS
        if rival.name in versions and "run" in rival.kinds
    }
    return Findings(day, versions, kinds, files, runs, logs, served, len(pairs), answered())


def document(found: Findings) -> str:
    """All of docs/accuracy.md, section after section."""
    sections = (in_short, questions, files, given_pools, from_device_alone, from_configs, values, tools)
    return "\n\n".join(section(found) for section in sections) + "\n"


def in_short(found: Findings) -> str:
    """The title, the table of all tools, and the questions in numbers."""
    config, checkpoint, gguf = found.kinds
    return f"""# Accuracy

Which calculator is right? Each tool below was run on the same files, offline, on {found.day}. Made by
`python bench/accuracy.py --rivals PYTHON` and not edited by hand. Times have [their own page](estimates.md).

## In short

A cell counts answers: exact / within 1 % / wrong / refused. A dash means that the tool gives no such number.

{summary(found.files, found.served)}

- **parameters, cache**: {len(config.cases)} published config.json files; the cache holds {CONTEXT:,} tokens at 2 bytes.
- **later configs, checkpoint bytes**: {len(checkpoint.cases)} quantized checkpoints, drafts and architectures of 2026.
- **GGUF**: {len(gguf.cases)} small files, one per architecture of llama.cpp; a slot of {GGUF_CONTEXT:,} tokens.
- **pool of a server**: {found.n_served} runs of vLLM 0.19 on an H100 with their config.json; exact is within 0.1 %.

{len(found.asked)} public questions from people who size or run inference, each compared with the right answer:

{question_counts(found.asked)}

{wrong_ones(found.asked)}
{missed(found.files)}"""


def questions(found: Findings) -> str:
    """How questions are judged, and a line per question."""
    return f"""## Questions

A number is exact if it agrees with all digits that the source gives, lies inside the range that it gives, or is within
5 % where the source says "about". A question is rated by its worst value. Those marked L are start-up logs, chosen
because they name model, device and number; what a log does not say is left at its default. All values and commands
[are below](#questions-value-by-value). `python bench/questions.py` runs them again;
`--write FOLDER` writes the configs that three of the commands read.

{question_table(found.asked)}"""


def files(found: Findings) -> str:
    """Configs, checkpoints and GGUF files: where the truth is from, and both tables of each."""
    config, checkpoint, gguf = (details(found.files, kind) for kind in found.kinds)
    return f"""## Configs

Reference: counts and caches of transformers' classes on the meta device. innards keeps one token less per window, as
transformers does and servers do not. For DeepSeek-V3.2, innards and aiconfigurator include the indexer's keys, which
are counted separately here; aiconfigurator also includes recurrent states.

{config}

## Checkpoints

Reference: every module of the published checkpoint in the format that its own files state, computed independently of
kvscope. For Gemma-4-31B NVFP4, it is what vLLM reported as loaded, 29.39 GiB, because the computed 28,663,195,552 bytes
do not include the embedding.

{checkpoint}

## GGUF files

Reference: the tensors in the file, and the buffers that llama.cpp b11549 printed when it loaded the file
(`bench/llama_cpp_headers.py` runs it again).

{gguf}"""


def given_pools(found: Findings) -> str:
    """Logs and runs whose pool is given: tokens and concurrency."""
    lines = [[name, *tally.cells()] for name, tally in log_tallies(found.logs).items()]
    lines.append(["tokens of vLLM 0.19 runs", *given_pool(found.runs).cells()])
    counted = (
        f"{len(found.logs)} start-up logs of vLLM and SGLang; {len(found.runs)} runs of vLLM 0.19 on an H100 of "
        "79.19 GiB with every part."
    )
    left_out = bullets(f"{case.id}: {case.problem}." for case in found.logs if case.problem)
    return f"""## Server logs, with the pool given

Exact means tokens within 0.1 % and concurrency within 0.5 %, or within the rounding of the pool's two decimals if that
is more.
{counted}

{table(["", *HEAD], lines)}

Not compared with a pool:

{left_out}"""


def from_device_alone(found: Findings) -> str:
    """Every part of the runs, the bands, and the constant that was fitted."""
    one_each = distinct(found.runs)
    alone, held_out = (run_errors(cases, as_asked) for cases in (found.runs, one_each[1::2]))
    return f"""## From config and device alone: all {len(found.runs)} runs

{table(["part", "rows", "mean error", "largest"], error_rows(alone))}

The activations, graphs and memory outside PyTorch of a pipeline are left out: the log shows those of the first stage,
but the last stage limits. In 0.19, CUDA graphs are captured outside the budget and do not reduce the pool.

How often the measured value lies in the band that `kvscope memory` states:

{table(["part", "rows", "in the band"], banded(found.runs))}

The sampler's constant is {SAMPLER_WORDS} float32 copies of the logits. A fit to every second of the {len(one_each)}
distinct runs gives {fitted_words(one_each[::2]):.2f}. The errors on the other runs, which that fit has not seen:

{table(["part", "rows", "mean error", "largest"], error_rows(held_out))}

The constants for memory outside PyTorch and for graphs come from all runs. For versions before 0.17 and after 0.20, and
for devices below 70 GiB, there are only single logs: their bands are a third of the activation on either side."""


def as_asked(case: RunCase) -> ServerReport:
    """The report of a run with nothing given but config and device."""
    return server_report(case.study, case.options)


def from_configs(found: Findings) -> str:
    """Pool and concurrency of runs from their config.json, per tool."""
    pool = [[tool, *own.cells()] for tool, (own, _) in found.served.items()]
    concurrency = [[tool, *own.cells()] for tool, (_, own) in found.served.items()]
    return f"""## From the model's own config.json

{table(["pool", *HEAD], pool)}

{table(["concurrency", *HEAD], concurrency)}"""


def values(found: Findings) -> str:
    """Every question with its values and commands."""
    return "\n\n".join(["## Questions, value by value", *(question_text(question) for question in found.asked)])


def tools(found: Findings) -> str:
    """How each row is repeated."""
    used = [rival for rival in RIVALS if rival.name in found.versions]
    commands = [f"`{rival.command}` ({rival.note})" if rival.note else f"`{rival.command}`" for rival in used]
    packages = " ".join(f"{name}=={version}" for name, version in found.versions.items())
    return f"""## The tools

To repeat a row, run its command without network access (`HF_HUB_OFFLINE=1`) in an environment made by

```sh
pip install {packages}
```

- `kvscope memory --model config.json --context {CONTEXT} --kv-format bf16 --json` (a folder for checkpoints);
  `kvscope memory --model FILE.gguf --policy llamacpp --context {GGUF_CONTEXT} --json` for GGUF files
{bullets(commands)}

{UNUSED}"""


UNUSED = """Tried and left out: llm-mem and hf-vram-calc (model-vram-calc) only query the Hub; llm-x-py needs weights;
gpu-fit-llm did not install within 90 s, llm-analysis not at all; genz-llm has its own models and reads no config;
modelinfo (not modelinfo-cli) measures models that it runs."""


def main() -> int:
    """Write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "data")
    parser.add_argument("--cases", type=Path, default=SHARED / "cases" / "calc", help="folders with expected.json")
    parser.add_argument("--rivals", type=Path, metavar="PYTHON")
    parser.add_argument("--date", default=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", help="default today")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "accuracy.md")
    args = parser.parse_args()
    if not (args.data / "oracle.csv").exists():
        print(f"{args.data}: no oracle.csv there: give the folder of the data with --data", file=sys.stderr)
        return 2
    found = findings(args.data, args.cases, args.rivals, args.date)
    args.output.write_text(document(found), encoding="utf-8")
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
