"""Simulates a load in a separate process: options of ``simulate`` in, JSON lines out, one rate after another.

A simulation takes seconds of plain Python, and in a thread of the app it would delay every key.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from calc.commands.simulate import Point, Simulated, prepared, simulate_parser
from calc.commands.simulate_document import document, run_document
from calc.errors import CalcError
from calc.simulate.capacity import Found
from calc.simulate.load import Load

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1)
"""Simulated rates, as fractions of the full load."""


def answers(words: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The results as they become known: the server, each rate, the highest that meets the limits, its run."""
    try:
        answer = prepared(simulate_parser("simulate").parse_args([*words]))
        if answer.load is None:
            yield {"problem": answer.problem}
            return
        yield {"server": {name: value for name, value in document(answer).items() if name not in ("runs", "found")}}
        for share in SHARES:
            yield {"run": run_document(answer, _point(answer.load, share * answer.load.full_load))}
        if answer.aim is not None:
            yield from _most(answer, answer.load)
    except CalcError as error:
        yield {"problem": str(error)}
    yield {"done": True}


def _point(load: Load, rate: float) -> Point:
    return Point(seen=load.at_rate(rate), rate=rate)


def _most(answer: Simulated, load: Load) -> Iterator[dict[str, Any]]:
    assert answer.aim is not None
    found: Found = load.highest_rate(answer.aim)
    answer.args.find = "rate"
    yield {"found": document(replace(answer, found=found))["found"]}
    if found.value is not None:
        yield {"run": run_document(answer, _point(load, found.value))}


def main() -> None:
    """A JSON line per answer; the caller ends the process when the question changes."""
    try:
        for one in answers(sys.argv[1:]):
            print(json.dumps(one), flush=True)
    except BrokenPipeError:
        sys.stderr.close()


if __name__ == "__main__":
    main()
