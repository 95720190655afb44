"""Reads a trace: arrivals and lengths from CSV or JSON lines, with the names of published traces."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from calc.errors import SourceError
from calc.files import read_bounded
from calc.plain import one_line
from calc.simulate.lengths import MOST_TOKENS
from calc.simulate.workload import Arrival

MOST_BYTES, MOST_REQUESTS = 64 * 2**20, 100_000
MOST_FIELD = 2**16
"""Characters of a field of CSV."""
SECONDS = {"arrival_s": 1.0, "time_s": 1.0, "arrival_ms": 1e-3, "time_ms": 1e-3}
CLOCK = ("timestamp", "time")
"""A date and time (Azure's traces); with Mooncake's names of lengths milliseconds."""
PROMPT = ("prompt_tokens", "contexttokens", "input_length", "input_tokens", "prompt_len")
NEW = ("new_tokens", "generatedtokens", "output_length", "output_tokens", "output_len")
MOONCAKE = "input_length"
PREFIX, COMMON = "prefix", "prefix_tokens"


def read_trace(path: Path) -> list[Arrival]:
    """The requests of a trace, the first one at 0 s, in the order of their arrival. Raises SourceError.

    CSV with a header line, or one JSON object per line. Required are an arrival (`arrival_s`, `arrival_ms`, or a
    `timestamp`) and two lengths (`prompt_tokens` and `new_tokens`, or the names of Azure's and Mooncake's traces).
    `prefix` names a shared prefix, `prefix_tokens` is its length.
    """
    found: list[Arrival] = []
    for place, row in _rows(path):
        if len(found) == MOST_REQUESTS:
            raise SourceError(f"{path}: more than {MOST_REQUESTS:,} requests: shorten the trace")
        found.append(_arrival(row, f"{path}, {place}"))
    if not found:
        raise SourceError(f"{path}: no requests: a trace is CSV with a header line, or one JSON object per line")
    first_s = min(one.at_s for one in found)
    return sorted((replace(one, at_s=one.at_s - first_s) for one in found), key=lambda one: one.at_s)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row is, and its fields by name in lower case."""
    try:
        text = read_bounded(path, limit=MOST_BYTES, what="a trace of so few requests").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise SourceError(f"{path}: not a text file") from None
    lines = text.split("\n")
    return _objects(path, lines) if text.lstrip().startswith(("{", "[")) else _table(path, lines)


def _objects(path: Path, lines: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise SourceError(f"{path}, line {number}: not a JSON object")
        yield f"line {number}", {str(name).strip().lower(): value for name, value in row.items()}


def _table(path: Path, lines: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(MOST_FIELD)
    reader = csv.reader(lines)
    names: list[str] | None = None
    try:
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if names is None:
                names = [field.strip().lower() for field in row]
                continue
            if len(row) != len(names):
                raise SourceError(f"{path}, line {reader.line_num}: {len(row)} fields, not {len(names)} as named")
            yield f"line {reader.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise SourceError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _arrival(row: Mapping[str, Any], where: str) -> Arrival:
    prompt = _tokens(row, PROMPT, "prompt_tokens", where)
    new = _tokens(row, NEW, "new_tokens", where)
    at_s = _time_s(row, where)
    prefix = row.get(PREFIX)
    if prefix in (None, ""):
        return Arrival(at_s, prompt, new)
    common = _whole(row.get(COMMON, prompt), f"{where}: {COMMON}", least=0)
    if common > prompt:
        raise SourceError(f"{where}: {COMMON} {common:,} is more than the prompt's {prompt:,}")
    return Arrival(at_s, prompt, new, str(prefix)[:MOST_FIELD], common)


def _tokens(row: Mapping[str, Any], names: tuple[str, ...], said: str, where: str) -> int:
    name = next((name for name in names if name in row), None)
    if name is None:
        raise SourceError(f"{where}: no {said} (or {', '.join(names[1:])})")
    return _whole(row[name], f"{where}: {name}", least=1)


def _whole(value: Any, where: str, *, least: int) -> int:
    number = _number(value)
    if number is None or number != int(number) or not least <= number <= MOST_TOKENS:
        raise SourceError(f"{where} is {_shown(value)}, not a number of tokens from {least} to {MOST_TOKENS:,}")
    return int(number)


def _time_s(row: Mapping[str, Any], where: str) -> float:
    for name, unit in SECONDS.items():
        if name in row:
            return _seconds(row[name], unit, f"{where}: {name}")
    clock = next((name for name in CLOCK if name in row), None)
    if clock is None:
        raise SourceError(f"{where}: no arrival: name it arrival_s or arrival_ms, or give a timestamp")
    value, where = row[clock], f"{where}: {clock}"
    if _number(value) is None:
        return _clock(value, where)
    if MOONCAKE in row:
        return _seconds(value, 1e-3, where)
    raise SourceError(f"{where} is a number without a unit: name it arrival_s or arrival_ms")


def _seconds(value: Any, unit: float, where: str) -> float:
    number = _number(value)
    if number is None or abs(number) > 1e15:
        raise SourceError(f"{where} is {_shown(value)}, not a time")
    return number * unit


def _clock(value: Any, where: str) -> float:
    """Seconds of a date and time such as 2023-11-16 18:15:46.6805900, to the microsecond."""
    text = str(value).strip()
    head, dot, fraction = text.partition(".")
    zone = fraction.lstrip("0123456789")
    digits = fraction[: len(fraction) - len(zone)][:6].ljust(6, "0")
    try:
        moment = datetime.fromisoformat(f"{head}.{digits}{zone}" if dot else text)
    except ValueError:
        raise SourceError(f"{where} is {_shown(value)}, not a date and time") from None
    return (moment.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds() - _offset_s(moment)


def _offset_s(moment: datetime) -> float:
    offset = moment.utcoffset()
    return 0.0 if offset is None else offset.total_seconds()


def _number(value: Any) -> float | None:
    """A finite number, as JSON or as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 40:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if isfinite(number) else None


def _shown(value: Any) -> str:
    return repr(one_line(str(value))[:40])
