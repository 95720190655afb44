"""The options of a real server in the form: read from text, shown as text, and as command-line options.

A blank field means the server's own default.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from calc.commands.llamacpp import ALL, layer_count
from calc.errors import QuantityError
from calc.servers.names import ENGINES
from calc.servers.records import ServerOptions
from calc.units import parse_count


def _count(name: str) -> Callable[[str], int | None]:
    def read(text: str) -> int | None:
        return parse_count(text, what=name) if text.strip() else None

    return read


def read_version(text: str) -> str | None:
    """An engine's version; blank means the measured one."""
    return text.strip() or None


def read_utilization(text: str) -> Fraction | None:
    """A share of the device, ``0.9`` or ``90%``."""
    stripped = text.strip()
    if not stripped:
        return None
    if not re.fullmatch(r"\d{0,3}\.?\d{0,9}%?", stripped) or not re.search(r"\d", stripped):
        raise QuantityError(f"utilization must be a share such as 0.9, not {stripped[:20]!r}")
    value = Fraction(stripped.removesuffix("%")) / (100 if stripped.endswith("%") else 1)
    if not 0 < value <= 1:
        raise QuantityError(f"utilization must be above 0 and at most 1, not {stripped[:20]}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionField:
    """One of the server's options in the form: label, cells, reader, meaning, and its command-line option."""

    name: str
    label: str
    width: int
    read: Callable[[str], Any]
    meaning: str
    word: str
    engines: tuple[str, ...] = ENGINES
    blank: Any = None


WITH_POOL = ("vllm", "sglang")
EAGER_ENGINES = WITH_POOL
"""Servers with CUDA graphs."""


def _gpu_layers(text: str) -> int | None:
    n = layer_count(text) if text.strip() else ALL
    return None if n == ALL else n


OPTION_FIELDS: tuple[OptionField, ...] = (
    OptionField(
        name="version",
        label="version",
        width=8,
        read=read_version,
        meaning="Version of the server, such as 0.19.0; sets defaults and accounting. Blank: the measured version.",
        word="--engine-version",
    ),
    OptionField(
        name="tp",
        label="TP",
        width=4,
        read=lambda text: parse_count(text or "1", what="TP"),
        meaning="Tensor-parallel GPUs of this server.",
        word="--tp",
    ),
    OptionField(
        name="gpu_memory_utilization",
        label="util",
        width=5,
        read=read_utilization,
        meaning="Share of the device that the server may use. Blank: the version's default.",
        word="--gpu-memory-utilization",
        engines=WITH_POOL,
    ),
    OptionField(
        name="max_num_batched_tokens",
        label="tokens/step",
        width=7,
        read=_count("tokens/step"),
        meaning="Maximum tokens per step; activations are reserved for them. Blank: by version and device.",
        word="--max-num-batched-tokens",
    ),
    OptionField(
        name="max_num_seqs",
        label="seqs",
        width=6,
        read=_count("seqs"),
        meaning="Maximum sequences per step (llama.cpp: slots). Blank: by version and device, or one slot.",
        word="--max-num-seqs",
        engines=(*WITH_POOL, "llamacpp"),
    ),
    OptionField(
        name="block_size",
        label="block",
        width=4,
        read=_count("block"),
        meaning="Tokens per cache block. Blank: the server's own.",
        word="--block-size",
        engines=WITH_POOL,
    ),
    OptionField(
        name="n_gpu_layers",
        label="GPU layers",
        width=5,
        read=_gpu_layers,
        meaning="Number of layers on devices, from the top, including the output. Blank: all. The others are in host "
        "memory.",
        word="--n-gpu-layers",
        engines=("llamacpp",),
    ),
    OptionField(
        name="n_cpu_moe",
        label="CPU experts",
        width=5,
        read=lambda text: layer_count(text) if text.strip() else 0,
        meaning="Number of layers with experts in host memory, from the bottom. Blank: none.",
        word="--n-cpu-moe",
        engines=("llamacpp",),
        blank=0,
    ),
)


def option_text(options: ServerOptions, name: str) -> str:
    """The text of the field `name`."""
    value, blank = getattr(options, name), next(field.blank for field in OPTION_FIELDS if field.name == name)
    if value == blank:
        return ""
    return f"{float(value):g}" if isinstance(value, Fraction) else str(value)


def option_words(options: ServerOptions) -> list[str]:
    """The command-line options for `options`, without the defaults."""
    words: list[str] = ["--policy", options.engine]
    for field in OPTION_FIELDS:
        value = getattr(options, field.name)
        if value == field.blank or field.name == "tp":
            continue
        words += [field.word, option_text(options, field.name)]
    if options.kv_pool_bytes is not None:
        words += ["--kv-pool", f"{options.kv_pool_bytes}B"]
    if options.enforce_eager:
        words.append("--enforce-eager")
    if options.speculative_layers:
        words += ["--speculative-layers", str(options.speculative_layers)]
    return words


def with_engine(options: ServerOptions | None, engine: str) -> ServerOptions:
    """`options` for another engine: what only the previous one supports returns to its default."""
    if options is None:
        return ServerOptions(engine=engine)
    if options.engine == engine:
        return options
    return ServerOptions(engine=engine, tp=options.tp, pp=options.pp, facts=options.facts)
