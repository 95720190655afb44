"""What public reports of servers said beside what calc predicts: ``python -m tests.calc.servers.public_reports``.

`public_reports.json` holds what was asked (model, device, version, options) and what the log said, in GiB, tokens and
blocks; a report against which nothing can be held says why. Predicted are the same quantities with their bands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from calc.model.spec import ModelSpec, model_of
from calc.model.storage import FORMATS
from calc.model.stored_format import stored_format
from calc.model.study import DeviceSpec, Policy, Study
from calc.servers.facts import named_facts
from calc.servers.records import Band, ServerOptions, ServerReport
from calc.servers.report import server_report
from calc.servers.sglang import resolve
from calc.sources.catalog import find_device, find_model, manual_device

TABLE = Path(__file__).with_name("public_reports.json")
GIB = 2**30
SIZES = {
    "weights_gib": "weight_bytes_per_gpu",
    "activation_gib": "activation_bytes",
    "non_torch_gib": "non_torch_bytes",
    "kv_pool_gib": "kv_pool_bytes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A quantity of a report: what was said, what is predicted, and the band around it, None where it is exact."""

    id: str
    what: str
    said: float
    predicted: float
    band: tuple[float, float] | None

    @property
    def error(self) -> float:
        """Relative to what was said."""
        return self.predicted / self.said - 1 if self.said else float(self.predicted)

    @property
    def held(self) -> bool:
        """Whether the band holds what was said; without one, whether both agree to half a per cent."""
        if self.band is None:
            return abs(self.error) <= 0.005
        slack = 0.005 * abs(self.said)  # what was said is printed with few digits
        return self.band[0] - slack <= self.said <= self.band[1] + slack


@cache
def reports() -> tuple[dict[str, Any], ...]:
    """All reports of the table."""
    return tuple(json.loads(TABLE.read_text())["reports"])


def _model(given: str | dict[str, int]) -> ModelSpec:
    return find_model(given) if isinstance(given, str) else model_of(name="of a report", **given)


def _device(ask: dict[str, Any]) -> DeviceSpec:
    return find_device(ask["device"]) if "device" in ask else manual_device(int(ask["memory_gib"] * GIB))


def question(ask: dict[str, Any]) -> tuple[Study, ServerOptions]:
    """The study and the options of a report."""
    model = _model(ask["model"])
    weights = FORMATS[ask["weight_format"]] if "weight_format" in ask else stored_format(model) or FORMATS["bf16"]
    study = Study(
        model=model,
        device=_device(ask),
        context=ask["context"],
        weight_format=weights,
        kv_format=FORMATS[ask.get("kv_format", "bf16")],
        policy=Policy.REPLICATED,
    )
    options: dict[str, Any] = {k: Fraction(v) if isinstance(v, str) else v for k, v in ask.get("options", {}).items()}
    facts = named_facts(model.name)
    return study, ServerOptions(engine=ask["engine"], version=ask["version"], facts=facts, **options)


def lines() -> Iterator[Line]:
    """Every quantity of every report that can be held against calc."""
    for report in reports():
        if "ask" not in report:
            continue
        study, options = question(report["ask"])
        said = report["said"]
        found = server_report(study, options)
        pool = said.get("pool_gib")
        given = None if pool is None else server_report(study, replace(options, kv_pool_bytes=int(pool * GIB)))
        for what, value in said.items():
            if what != "pool_gib":
                predicted, band = _predicted(what, found, given)
                yield Line(id=report["id"], what=what, said=float(value), predicted=predicted, band=band)


def _predicted(what: str, found: ServerReport, given: ServerReport | None) -> tuple[float, tuple[float, float] | None]:
    if what in SIZES:
        field = SIZES[what]
        return getattr(found, field) / GIB, _in_gib(found.bands.get(field))
    if what == "kv_tokens":
        return found.kv_tokens, _of_pool(found, found.kv_tokens)
    if what == "free_gib":
        return resolve(found.study, found.options).free / GIB, None
    exact = {
        "request_gib": found.kv_request_bytes / GIB,
        "cache_gib": found.kv_pool_bytes / GIB,
        "starts": float(found.starts),
        "tokens_of_pool": given.kv_tokens if given else 0,
        "blocks_of_pool": given.kv_blocks if given else 0,
    }
    return exact[what], None


def _in_gib(band: Band | None) -> tuple[float, float] | None:
    return None if band is None else (band[0] / GIB, band[1] / GIB)


def _of_pool(found: ServerReport, predicted: int) -> tuple[float, float] | None:
    """The band of what a pool holds: in proportion to the pool's own."""
    band, pool = found.bands.get("kv_pool_bytes"), found.kv_pool_bytes
    if band is None or pool <= 0:
        return None
    return max(0.0, predicted * band[0] / pool), max(0.0, predicted * band[1] / pool)


def markdown() -> str:
    """The table for a document."""
    head = "| report | quantity | said | predicted | error | band |\n| --- | --- | ---: | ---: | ---: | --- |"
    rows = [f"| {' | '.join(_cells(line))} |" for line in lines()]
    left_out = [f"- {report['id']}: {report['why']}." for report in reports() if "why" in report]
    return "\n".join([head, *rows, "", "Nothing to hold against:", *left_out])


def _cells(line: Line) -> tuple[str, ...]:
    sizes = (f"{line.said:,.6g}", f"{line.predicted:,.6g}", f"{line.error:+.1%}")
    return (line.id, line.what, *sizes, _band_text(line))


def _band_text(line: Line) -> str:
    band = "exact" if line.band is None else f"{line.band[0]:,.4g} to {line.band[1]:,.4g}"
    return band + ("" if line.held else ", missed")


if __name__ == "__main__":
    print(markdown())
