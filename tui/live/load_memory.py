"""The memory that a model will need on this machine, shown before it is loaded."""

from __future__ import annotations

import os
import re

from calc.model.cache import request_term
from calc.model.count import parameters
from calc.model.spec import ModelSpec
from calc.units import MAX_BYTES, format_decimal
from engine.errors import CheckpointError
from engine.machine import available_bytes
from engine.process.events import Generate
from engine.records import ModelInfo
from engine.weights.hub import cached_path
from tui.live.predict import DTYPES, ELEMENT_BYTES, read_spec, read_weight_bytes

AUTO = 4.0
"""Upper bound for auto: a CPU that is slow at 16 bits runs such weights as float32."""


ENGINE_BYTES = 45e6
"""Memory of a loaded model besides weights and cache: torch's code and tables on first use (some 25 MB,
bench/load_memory.py), a tokenizer of 50,000 tokens, and what a prefill holds at once."""
RANK_BYTES = 150e6
"""Memory per additional rank: a process with its own torch."""
_CHARACTERS_A_TOKEN = 3


def forecast(request: Generate, loaded: ModelInfo | None) -> str:
    """A sentence on weights, cache and engine compared with the free memory; empty if nothing is to be loaded."""
    if request.model is None or (loaded is not None and loaded.path == request.model):
        return ""
    try:
        cached = None if os.path.exists(request.model) else cached_path(request.model)
    except CheckpointError:  # a tag that means several files: the engine reports it
        return ""
    spec = read_spec(request.model if cached is None else str(cached))
    if spec is None:
        return ""
    weights, free = weight_bytes(spec, request.dtype), available_bytes()
    needed = weights + cache_bytes(spec, request) + ENGINE_BYTES * request.tp + RANK_BYTES * (request.tp - 1)
    sure = request.dtype != "auto" or stored_bytes(spec) is not None
    text = f"loading {spec.name}: {'about' if sure else 'at most'} {format_decimal(weights)} of weights"
    text += f" on {request.tp} ranks" if request.tp > 1 else ""
    text += f", {format_decimal(needed)} with cache and engine"
    if free is None:
        return text
    text += f", {format_decimal(free)} of memory free"
    if needed <= free:
        return text
    return f"{text}: it {'will' if sure else 'may'} not fit"


def shortage(model: str | None, dtype: str, *, given_back_bytes: int = 0) -> str:
    """Why a model cannot be loaded as `dtype`, in a sentence; empty if it can, or if unknown.

    `given_back_bytes`: memory that the currently held model frees first.
    """
    spec, free = read_spec(model) if model else None, available_bytes()
    if spec is None or free is None:
        return ""
    weights, free = weight_bytes(spec, dtype), free + given_back_bytes
    if weights <= free:
        return ""
    return (
        f"{spec.name} as {dtype} needs {format_decimal(weights)} of weights, but only {format_decimal(free)} of "
        "memory is free"
    )


def cache_bytes(spec: ModelSpec, request: Generate) -> float:
    """Cache bytes of a request, assuming three characters per token."""
    turns = "".join(turn.content for turn in request.turns or ())
    prompt = len(request.prompt_ids or ()) or len(request.prompt or turns) // _CHARACTERS_A_TOKEN + 1
    tokens = min(prompt + request.max_new_tokens, spec.max_context or MAX_BYTES)
    packed = request.dtype in ("int8", "int4") or (request.dtype == "auto" and stored_bytes(spec) is not None)
    kept = "bfloat16" if packed else "float32" if request.dtype == "auto" else request.dtype
    return float(request_term(spec, DTYPES[kept], tokens).value)


def stored_bytes(spec: ModelSpec) -> float | None:
    """Bytes of a GGUF file's weights if the engine keeps them as stored; None if it may dequantize them."""
    kinds = re.findall(r"[A-Z]+\d+(?:_\w+)?", spec.stored.name if spec.stored is not None else "")
    if spec.stored is None or not set(kinds) - {"F32", "BF16"}:
        return None
    return float(spec.stored.total_bytes)


def weight_bytes(spec: ModelSpec, dtype: str) -> float:
    """Bytes of the weights as the engine would hold them: for int8 and int4, the embedding table stays bfloat16."""
    if dtype in ("int8", "int4"):
        return read_weight_bytes(spec, dtype) + spec.vocab_size * spec.hidden_size * ELEMENT_BYTES["bfloat16"]
    if dtype not in ELEMENT_BYTES and (kept := stored_bytes(spec)) is not None:
        return kept
    return parameters(spec).total * ELEMENT_BYTES.get(dtype, AUTO)
