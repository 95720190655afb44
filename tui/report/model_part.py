"""Problem 2 (a): the model, the content of its cache, and the code that appends to it."""

from __future__ import annotations

from calc.model.count import parameters
from calc.units import format_bytes, format_count
from engine.records import ModelInfo
from tui.live.predict import cache_token_term, spec_of
from tui.report.model import Block, Code, Derivation, Grid, Heading, Step, Text, cells, paragraph, symbol_math
from tui.report.source import source_of


def model_part(info: ModelInfo | None) -> list[Block]:
    """Sizes, the derivation of the cache bytes, and the append in code; empty if no model was described."""
    if info is None:
        return []
    shape = f"({info.n_layers}, 2, rows, {info.n_kv_heads}, capacity, {info.head_dim})"
    return [
        Heading(2, "(a) The model and its KV cache"),
        Grid(title="The model that was run", columns=cells("Quantity", "Value"), rows=_rows(info)),
        paragraph(
            "The keys and values of a token depend on it and on earlier tokens only, so they never change: they are "
            "computed once and kept. The cache is one tensor of shape (layers, 2, rows, KV heads, capacity, head "
            f"dimension) = {shape}, allocated once for the prompt and all new tokens; a step computes query, key and "
            "value of the new token alone, appends key and value, and attends to all of them."
        ),
        _cache_derivation(info),
        paragraph("The append as in a textbook (engine/model/plain.py, which the tests compare with):"),
        Code(source_of("engine.model.plain", "Attention", "forward")),
        paragraph("The engine's append, which copies no existing entries (engine/model/cache_kinds.py):"),
        Code(source_of("engine.model.cache_kinds", "KVCache", "append")),
    ]


def model_name(model: str) -> str:
    """The name of a model at the beginning of a sentence."""
    return "The bundled model" if model == "bundled" else model


def _rows(info: ModelInfo) -> tuple[tuple[Text, ...], ...]:
    positions = "learned, a table of" if info.learned_positions else "rotary, up to"
    kept = format_count(info.n_kv_heads)
    return (
        cells("Layers", format_count(info.n_layers)),
        cells("Query heads, key/value heads", f"{format_count(info.n_heads)}, {kept}"),
        cells("Head dimension", format_count(info.head_dim)),
        cells("Embedding dimension, inner dimension", f"{info.hidden_size:,}, {info.intermediate_size:,}"),
        cells("Vocabulary", format_count(info.vocab_size)),
        cells("Positions", f"{positions} {format_count(info.max_positions)}"),
        cells("Feed-forward, norm", f"{'gated' if info.gated_mlp else 'two matrices'}, {_norm(info)}"),
        cells("Parameters loaded by the engine", format_count(info.n_parameters)),
        cells("Parameters by the formulas of Problem 1 (a)", format_count(parameters(spec_of(info)).total)),
        cells("Weights in memory", f"{format_bytes(info.weight_bytes)}, {info.dtype}"),
    )


def _norm(info: ModelInfo) -> str:
    return "LayerNorm" if info.norm == "layernorm" else "RMSNorm"


def _cache_derivation(info: ModelInfo) -> Derivation:
    term = cache_token_term(info)
    return Derivation(
        title=f"Bytes of this model's cache (the engine allocates {info.kv_bytes_per_token:,} B per token)",
        steps=(Step(name=term.name, symbol=symbol_math("kv_token_bytes"), term=term),),
    )
