"""The typed fields of the Estimate pane: how each is read and written, and its meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from calc.commands.estimate_options import drafts, price
from calc.commands.options import limits
from calc.errors import QuantityError
from calc.sources.catalog import find_device
from calc.units import parse_count, parse_counts, parse_share
from tui.form.serving import (
    BATCHES,
    DEVICES,
    Serving,
    draft_text,
    limit_text,
    list_text,
    number_text,
    split_text,
)

MOST_DEVICES = 12
MOST_ROWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingField:
    """A field: its label, cells, reader (to values of `Serving` by name), writer, and its F1 help.

    `blank` is shown for an empty text and says what it means.
    """

    name: str
    label: str
    width: int | str
    read: Callable[[str], Mapping[str, Any]]
    write: Callable[[Serving], str]
    meaning: str
    blank: str = ""


def _count(name: str, what: str, maximum: int) -> Callable[[str], Mapping[str, Any]]:
    return lambda text: {name: parse_count(text, what=what, maximum=maximum)}


def _optional(name: str, read: Callable[[str], Any]) -> Callable[[str], Mapping[str, Any]]:
    return lambda text: {name: read(text) if text.strip() else None}


def _version(text: str) -> str:
    from calc.servers.versions import parse_version

    parse_version(text.strip())
    return text.strip()


def _drafts(text: str) -> Mapping[str, Any]:
    drafted, acceptance = drafts(text) if text.strip() else (0, Fraction(0))
    return {"drafted": drafted, "acceptance": acceptance}


SPLITS = {"pp": "pp", "ep": "ep", "dp": "dp_attention", "dcp": "dcp"}


def _split(text: str) -> Mapping[str, Any]:
    found: dict[str, Any] = dict.fromkeys(SPLITS.values(), 1)
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, given, n = part.partition("=")
        if name.strip().lower() not in SPLITS or not given:
            raise QuantityError(f"{part!r} is not one of pp, ep, dp and dcp with a number: pp=2,ep=8")
        found[SPLITS[name.strip().lower()]] = parse_count(n, what=name.strip().lower(), maximum=1024)
    return found


def _limits(text: str) -> Mapping[str, Any]:
    return {"limits": tuple(limits(text).items()) if text.strip() else ()}


def _batches(text: str) -> Mapping[str, Any]:
    return {"batches": parse_counts(text, what="batches", most=MOST_ROWS) if text.strip() else BATCHES}


def _devices(text: str) -> Mapping[str, Any]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) > MOST_DEVICES:
        raise QuantityError(f"at most {MOST_DEVICES} devices can be compared, not {len(names)}")
    for name in names:
        find_device(name)
    return {"devices": tuple(dict.fromkeys(names)) or DEVICES}


FIELDS = (
    ServingField(
        name="version",
        label="version",
        width=8,
        read=_optional("version", _version),
        write=lambda serving: serving.version or "",
        meaning="Version of the engine, such as 0.19.0. Blank: the measured version.",
        blank="auto",
    ),
    ServingField(
        name="tp",
        label="TP",
        width=4,
        read=_count("tp", "TP", 1024),
        write=lambda serving: str(serving.tp),
        meaning="Tensor-parallel GPUs that share one copy of the model.",
    ),
    ServingField(
        name="count",
        label="clients",
        width=6,
        read=_count("count", "clients", 10**6),
        write=lambda serving: str(serving.count),
        meaning=(
            "Clients in a closed loop: each sends its next request when the last one ends. For a static batch, its "
            "sequences."
        ),
    ),
    ServingField(
        name="prompt_tokens",
        label="prompt",
        width=7,
        read=_count("prompt_tokens", "prompt tokens", 10**8),
        write=lambda serving: str(serving.prompt_tokens),
        meaning="Tokens per prompt.",
    ),
    ServingField(
        name="new_tokens",
        label="new",
        width=6,
        read=_count("new_tokens", "new tokens", 10**8),
        write=lambda serving: str(serving.new_tokens),
        meaning="Tokens generated per prompt.",
    ),
    ServingField(
        name="chunk",
        label="chunk",
        width=6,
        read=_optional("chunk", lambda text: parse_count(text, what="chunk")),
        write=lambda serving: number_text(serving.chunk),
        meaning="Tokens per prefill chunk. Blank: the prompt is computed in one pass.",
    ),
    ServingField(
        name="prefix_hit",
        label="hit",
        width=5,
        read=_optional("prefix_hit", parse_share),
        write=lambda serving: number_text(serving.prefix_hit),
        meaning="Share of the prompt that is already in the prefix cache, such as 0.5 or 50%. Blank: none.",
    ),
    ServingField(
        name="draft",
        label="draft",
        width=6,
        read=_drafts,
        write=lambda serving: draft_text(serving.drafted, serving.acceptance),
        meaning="Speculation: tokens drafted per step and the probability that each is accepted, such as 4,0.8. Blank: "
        "none.",
    ),
    ServingField(
        name="limits",
        label="limits",
        width=21,
        read=_limits,
        write=lambda serving: limit_text(serving.limits),
        meaning=(
            "Latency limits: ttft (first token), tpot (per token after it) and e2e (end to end), such as "
            "ttft=500ms,tpot=50ms. Blank: none."
        ),
        blank="ttft=500ms,tpot=50ms",
    ),
    ServingField(
        name="price",
        label="price",
        width=6,
        read=_optional("price", price),
        write=lambda serving: number_text(serving.price),
        meaning="Price per device and hour, in any currency: gives the cost per million tokens. Blank: none.",
        blank="2.50",
    ),
    ServingField(
        name="split",
        label="split",
        width=11,
        read=_split,
        write=split_text,
        meaning=(
            "Ways to share the model in addition to TP: pp (pipeline stages of TP devices each), ep (expert-parallel "
            "degree within the TP devices), dp (attention groups with their own requests), dcp (devices that share "
            "the tokens of repeated KV heads), such as pp=2,ep=8. Blank: none."
        ),
    ),
    ServingField(
        name="batches",
        label="rows",
        width=9,
        read=_batches,
        write=lambda serving: list_text(serving.batches),
        meaning=f"Batch sizes or client counts in the table: 1..256 doubles, 8,16,24 is a list. At most {MOST_ROWS}.",
    ),
    ServingField(
        name="devices",
        label="compare",
        width="1fr",
        read=_devices,
        write=lambda serving: ",".join(serving.devices),
        meaning="Catalog devices to compare with the current one: h100-sxm,l40s,rtx-4090 (kvscope devices lists all).",
    ),
)

BY_NAME = {field.name: field for field in FIELDS}
