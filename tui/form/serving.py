"""What the Estimate pane asks: load, engine, limits, price; and the matching options of ``kvscope estimate``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

LOADS = ("batch", "clients", "maximum")
"""One static batch; clients that each send their next request when the last one ends; all requests at once."""
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEVICES = ("a100-80gb", "h100-sxm", "h200-sxm", "b200-sxm", "mi300x")
"""Commonly compared devices, by their catalog names."""

ENGINE = ("engine", "version", "tp", "pp", "ep", "dp_attention", "dcp")
"""Fields on how the model runs, whatever the load."""

Limit = tuple[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The load and how it is served. `limits` are seconds by name, `price` is per device and hour.

    `count` is the batch size or the number of clients. `devices` are compared, by their catalog names.
    """

    engine: str = "vllm"
    version: str | None = None
    tp: int = 1
    pp: int = 1
    ep: int = 1
    dp_attention: int = 1
    dcp: int = 1
    load: str = "clients"
    count: int = 32
    prompt_tokens: int = 1024
    new_tokens: int = 256
    chunk: int | None = None
    prefix_hit: Fraction | None = None
    drafted: int = 0
    acceptance: Fraction = Fraction(0)
    limits: tuple[Limit, ...] = ()
    price: float | None = None
    batches: tuple[int, ...] = BATCHES
    devices: tuple[str, ...] = DEVICES


def engine_words(serving: Serving) -> list[str]:
    """Options of the engine that are not the default."""
    words = [] if serving.engine == "vllm" else ["--policy", serving.engine]
    if serving.version is not None:
        words += ["--engine-version", serving.version]
    shares = {name: getattr(serving, name) for name in ("tp", "pp", "ep", "dp_attention", "dcp")}
    given = ((f"--{name.replace('_', '-')}", str(n)) for name, n in shares.items() if n != 1)
    return [*words, *(word for pair in given for word in pair)]


def serving_words(serving: Serving) -> list[str]:
    """Options of ``kvscope estimate`` for `serving`, including the frontier but not the devices."""
    return [*_load_words(serving), *_asked_words(serving), *engine_words(serving)]


def _load_words(serving: Serving) -> list[str]:
    count = str(serving.count)
    return {"batch": ["--batch", count], "clients": ["--concurrency", count], "maximum": ["--max-load"]}[serving.load]


def _asked_words(serving: Serving) -> Iterator[str]:
    for name, value, usual in (
        ("--prompt-tokens", str(serving.prompt_tokens), "1024"),
        ("--new-tokens", str(serving.new_tokens), "256"),
        ("--chunk", number_text(None if serving.load == "maximum" else serving.chunk), ""),
        ("--prefix-hit", number_text(serving.prefix_hit), ""),
        ("--speculate", draft_text(serving.drafted, serving.acceptance), ""),
        ("--limit", limit_text(serving.limits), ""),
        ("--price", number_text(serving.price), ""),
        ("--batches", list_text(serving.batches), ""),
    ):
        if value != usual:
            yield from (name, value)


def number_text(value: float | Fraction | None) -> str:
    """A number as typed text that reads back to the same; "" for None."""
    if value is None:
        return ""
    text = f"{float(value):.10g}"
    return text if Fraction(text) == value or isinstance(value, float) else str(value)


def split_text(serving: Serving) -> str:
    """``pp=2,ep=8``: ways to share the model in addition to TP; "" if there are none."""
    shares = {"pp": serving.pp, "ep": serving.ep, "dp": serving.dp_attention, "dcp": serving.dcp}
    return ",".join(f"{name}={n}" for name, n in shares.items() if n != 1)


def draft_text(drafted: int, acceptance: Fraction) -> str:
    """``4,0.8``; "" without drafting."""
    return f"{drafted},{number_text(acceptance)}" if drafted else ""


def limit_text(limits: tuple[Limit, ...]) -> str:
    """``ttft=500ms,tpot=50ms``"""
    return ",".join(
        f"{name}={seconds:.10g}s" if seconds >= 1 else f"{name}={seconds * 1000:.10g}ms" for name, seconds in limits
    )


def list_text(numbers: tuple[int, ...]) -> str:
    """``1..256`` if each number is twice the previous one, else all of them."""
    doubling = len(numbers) > 2 and all(b == 2 * a for a, b in pairwise(numbers))
    return f"{numbers[0]}..{numbers[-1]}" if doubling else ",".join(map(str, numbers))
